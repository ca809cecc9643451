"""An alarm opens on windows that agree, and closes on windows that are clean."""

from __future__ import annotations

import numpy as np
import pytest

from monitoring.persistence import Looked, Persistence, State, without_rows_in_common
from monitoring.verdict import Verdict

OK, LENS, DATA, LITTLE = (
    Verdict.OK, Verdict.SENSOR_SHIFT, Verdict.DATA_DRIFT, Verdict.INSUFFICIENT_DATA,
)  # fmt: skip
USUAL = Persistence()


@pytest.mark.parametrize(
    ("latest_first", "opens", "closes"),
    [
        ((), False, False),
        ((LENS,), False, False),
        ((OK, OK), False, False),
        ((OK, OK, OK), False, True),
        ((LENS, LENS), True, False),
        ((LENS, OK, DATA), True, False),
        ((OK, LENS, DATA), False, False),  # it was opened by the one before
        ((LENS, OK, OK, DATA), False, False),
        ((OK, OK, LENS), False, False),
        ((OK, OK, OK, LENS, LENS), False, True),
    ],
)
def test_two_of_three_open_and_three_clean_close(latest_first: tuple[Verdict, ...], opens: bool, closes: bool) -> None:
    assert (USUAL.opens(latest_first), USUAL.closes(latest_first)) == (opens, closes)


def test_the_state_follows() -> None:
    assert USUAL.state((OK, OK), is_open=False) is State.HEALTHY
    assert USUAL.state((OK, LENS), is_open=False) is State.SUSPECTED
    assert USUAL.state((LENS, LENS), is_open=False) is State.DRIFTING
    assert USUAL.state((OK, OK), is_open=True) is State.DRIFTING


def test_windows_that_overlap_count_once_and_those_with_too_little_do_not_count() -> None:
    checks = [
        Looked(LENS, "70", "90"),
        Looked(LENS, "60", "80"),  # shares rows with the one after it
        Looked(LITTLE, "55", "58"),
        Looked(OK, "40", "60"),
        Looked(DATA, None, None),
        Looked(DATA, "10", "39"),
    ]
    assert without_rows_in_common(checks) == [LENS, OK, DATA]


@pytest.mark.parametrize(
    ("rule", "rate"),
    [(USUAL, 0.2), (Persistence(1, 1, 1), 0.05), (Persistence(3, 4, 2), 0.4), (Persistence(2, 2, 1), 0.3)],
)
def test_the_expected_time_between_false_alarms_is_that_of_a_simulation(rule: Persistence, rate: float) -> None:
    random, waits = np.random.default_rng(0), []
    for _ in range(4000):
        outcomes: list[int] = []
        while True:
            outcomes.append(int(random.random() < rate))
            if sum(outcomes[-rule.open_of :]) >= rule.open_after:
                break
        waits.append(len(outcomes))
    assert rule.windows_between_false_alarms(rate) == pytest.approx(np.mean(waits), rel=0.06)


def test_at_the_defaults_chance_opens_an_alarm_once_in_thousands_of_windows() -> None:
    assert 8_000 < USUAL.windows_between_false_alarms(5 * 0.0015) < 10_000
    assert USUAL.windows_between_false_alarms(0.0) == float("inf")
