from __future__ import annotations

import numpy as np
import pytest

from perennial.bundle import CurvePoint
from training.rungs import Trial
from training.transfer_verdict import Tried, first_reached, judge, shared_rows

LABELS = np.arange(200) % 2


def trial(name: str, right: int, *, seconds: float = 1.0, curve: tuple[CurvePoint, ...] = (), rows: int = 200) -> Trial:
    """One that has the first `right` of 200 rows right."""
    answers = np.where(np.arange(rows) < right, LABELS[:rows], 1 - LABELS[:rows])
    return Trial(name, np.arange(rows), np.eye(2)[answers], seconds, len(curve), curve)


def points(*accuracies: float) -> tuple[CurvePoint, ...]:
    return tuple(CurvePoint(epoch=at + 1, seconds=at + 1.0, accuracy=each) for at, each in enumerate(accuracies))


@pytest.mark.parametrize(
    ("probe", "random", "scratch", "expected"),
    [
        (190, 120, 130, "positive"),
        (190, None, 130, "positive"),
        (150, 150, 152, "none"),
        (120, 121, 190, "negative"),
        (120, 190, None, "negative"),
        (190, None, None, "not measured"),
    ],
)
def test_the_verdict_is_by_paired_tests(probe: int, random: int | None, scratch: int | None, expected: str) -> None:
    best = trial("linear_probe", probe)
    found = judge(
        Tried(
            best,
            best,
            trial("random", random) if random is not None else None,
            trial("scratch", scratch, curve=points(0.5, scratch / 200)) if scratch is not None else None,
            trial("simple", 100),
        ),
        LABELS,
    )
    assert found.verdict == expected
    assert ("NEGATIVE" in " ".join(found.says)) == (expected == "negative")
    assert not found.simple_suffices


def test_a_simple_model_suffices_only_if_it_is_about_as_good() -> None:
    best = trial("linear_probe", 190)
    assert judge(Tried(best, best, None, None, trial("simple", 189)), LABELS).simple_suffices
    assert not judge(Tried(best, best, None, None, trial("simple", 180)), LABELS).simple_suffices
    # Few rows prove no difference; that alone does not make the simple one as good.
    few, worse = trial("linear_probe", 12, rows=12), trial("simple", 10, rows=12)
    assert not judge(Tried(few, few, None, None, worse), LABELS).simple_suffices


def test_the_time_to_the_accuracy_that_both_reach_is_told() -> None:
    best = trial("partial", 190, curve=points(0.9, 0.95))
    scratch = trial("scratch", 170, curve=points(0.5, 0.7, 0.85))
    quick, slow = trial("linear_probe", 180, seconds=0.5), trial("linear_probe", 180, seconds=2.5)
    of_the_probe = judge(Tried(best, quick, None, scratch, trial("simple", 100)), LABELS).arrival
    assert of_the_probe is not None
    assert (of_the_probe.epochs, of_the_probe.seconds) == (0, 0.5)  # whichever rung with transfer was there first
    found = judge(Tried(best, slow, None, scratch, trial("simple", 100)), LABELS)
    assert found.to_accuracy == pytest.approx(0.85)
    assert found.arrival is not None
    assert (found.arrival.epochs, found.arrival.seconds) == (1, 1.0)
    assert found.arrival_from_scratch is not None
    assert (found.arrival_from_scratch.epochs, found.arrival_from_scratch.seconds) == (3, 3.0)
    assert found.final is not None
    assert found.final_from_scratch is not None
    assert found.final.value > found.final_from_scratch.value


def test_what_is_never_reached_has_no_time() -> None:
    assert first_reached(trial("scratch", 100, curve=points(0.4, 0.5)), 0.9, 0.5).seconds is None
    probe = first_reached(trial("linear_probe", 190, seconds=2.5), 0.9, 0.95)
    assert (probe.epochs, probe.seconds) == (0, 2.5)


def test_rungs_are_compared_on_the_rows_that_both_answered() -> None:
    one = trial("linear_probe", 150)
    other = Trial("scratch", np.array([149, 150, 3]), np.eye(2)[LABELS[[149, 150, 3]]], 1.0)
    mine, theirs = shared_rows(one, other, LABELS)
    assert mine.tolist() == [True, True, False]  # rows 3, 149, 150
    assert theirs.tolist() == [True, True, True]
