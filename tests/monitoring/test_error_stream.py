"""A rise of errors is found where it is; a stream that stays as it was, or gets better, says nothing."""

from __future__ import annotations

import numpy as np
import pytest

from monitoring.error_stream import latest_rise


def stream(*parts: tuple[int, float], seed: int = 0) -> list[bool]:
    """So many answers with such a share of errors, one part after the other."""
    random = np.random.default_rng(seed)
    return [bool(value) for count, share in parts for value in random.random(count) < share]


@pytest.mark.parametrize("seed", range(10))
def test_a_doubling_of_errors_is_found_near_where_it_is(seed: int) -> None:
    found = latest_rise(stream((3000, 0.08), (1500, 0.2), seed=seed))
    assert found is not None
    assert abs(found.at - 3000) < 400
    assert found.before == pytest.approx(0.08, abs=0.03)
    assert found.after == pytest.approx(0.2, abs=0.05)


def test_streams_that_do_not_change_are_left_alone() -> None:
    found = [latest_rise(stream((5000, 0.08), seed=seed)) for seed in range(20)]
    assert sum(rise is not None for rise in found) <= 1


def test_errors_that_become_fewer_are_no_rise_and_end_one() -> None:
    assert latest_rise(stream((2000, 0.3), (2000, 0.05))) is None
    assert latest_rise(stream((2000, 0.05), (2000, 0.3))) is not None
    assert latest_rise(stream((2000, 0.05), (2000, 0.3), (3000, 0.05))) is None


def test_after_is_the_share_since_the_place_that_is_named_however_often_it_rose() -> None:
    wrong = [*stream((250, 0.02), (244, 0.3)), *[True] * 56]
    found = latest_rise(wrong)
    assert found is not None
    assert found.at > 56
    assert found.at + found.since == len(wrong)
    assert found.before == pytest.approx(sum(wrong[: found.at]) / found.at)
    assert found.after == pytest.approx(sum(wrong[found.at :]) / found.since)
    assert found.after < 0.6


def test_few_answers_or_none_say_nothing() -> None:
    assert latest_rise([]) is None
    assert latest_rise([True] * 10) is None
