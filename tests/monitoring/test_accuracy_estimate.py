"""Accuracy before labels: how close it comes, how its interval grows with distance, and when it is withheld."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from monitoring.backtest import Past, backtest, proven
from monitoring.embedding import Separation, separate
from monitoring.estimate import MOST_UNLIKE, Estimate, estimate
from monitoring.window import Scores
from tests.monitoring.conftest import brighter, dark_and_soft, noisy, turned


def unlabelled(scores: Scores) -> Scores:
    return replace(scores, labels=(None,) * len(scores))


def unlike(reference: Scores, window: Scores) -> float:
    found = separate(reference.embedding, window.embedding)
    assert found is not None
    return found.share


@pytest.mark.parametrize("change", [None, brighter, noisy])
def test_the_estimate_follows_the_true_accuracy_without_labels(world: Any, change: Any) -> None:
    reference = world.scores(world.reference_rows)
    window = world.scores(world.traffic[:500], change)
    found = estimate(reference, unlabelled(window), unlike(reference, window), proven=1.0)
    true = window.answers.correct.mean()
    assert found.estimated is not None
    assert found.calibrated is not None
    assert abs(found.estimated.value - true) <= 0.04
    for each in (found.estimated, found.calibrated):
        assert 0 <= each.low <= each.value <= each.high <= 1
        assert each.rows == 500
    assert found.estimated.low <= true <= found.estimated.high
    assert found.withheld is found.unproven is None


@pytest.mark.parametrize("change", [turned, dark_and_soft])
def test_what_no_reference_row_looks_like_is_not_estimated(world: Any, change: Any) -> None:
    reference = world.scores(world.reference_rows)
    window = unlabelled(world.scores(world.traffic[:500], change))
    share = unlike(reference, window)
    assert share > MOST_UNLIKE
    found = estimate(reference, window, share)
    assert found.estimated is found.calibrated is None
    assert found.withheld is not None
    assert f"{share:.0%} of the window can be told from the reference" in found.withheld
    assert found.unproven == estimate(reference, window, share, proven=1.0).estimated


def test_the_interval_grows_downwards_with_what_is_unlike_the_reference(world: Any) -> None:
    reference, window = world.scores(world.reference_rows), unlabelled(world.scores(world.traffic[:500]))
    near, far = (estimate(reference, window, share).estimated for share in (0.0, 0.5))
    assert near is not None
    assert far is not None
    assert (far.value, far.high) == (near.value, near.high)
    assert near.low - far.low == pytest.approx(0.5)


def test_a_share_of_a_window_that_is_something_else_is_measured(world: Any) -> None:
    reference = world.scores(world.reference_rows)
    plain, other = world.scores(world.traffic[:280]), world.scores(world.traffic[280:400], turned)
    mixed = np.concatenate([plain.embedding, other.embedding])
    found = separate(reference.embedding, mixed)
    assert found is not None
    assert 0.15 <= found.share <= 0.35  # of .3
    assert Separation(0.48, 1.0).share == 0


@pytest.mark.parametrize(
    ("reference_rows", "window_rows", "share", "why"),
    [
        (19, 400, 0.1, "19 labelled reference rows that took no part in training"),
        (400, 19, 0.1, "the window has 19 different images"),
        (400, 0, None, "the window has 0 different images"),
        (400, 400, None, "was not compared with the reference"),
    ],
)
def test_without_what_it_rests_on_an_estimate_is_withheld(
    world: Any, reference_rows: int, window_rows: int, share: float | None, why: str
) -> None:
    scores = world.scores(world.reference_rows)
    found = estimate(scores.take(np.arange(reference_rows)), scores.take(np.arange(window_rows)), share)
    assert found.withheld is not None
    assert why in found.withheld
    assert found == Estimate(withheld=found.withheld)


def test_rows_that_are_not_numbers_are_left_out(world: Any) -> None:
    reference, window = world.scores(world.reference_rows), world.scores(world.traffic[:300])
    window.probabilities[:100] = np.nan
    window.confidence[100:110] = np.nan
    found = estimate(reference, window, 0.0).estimated
    assert found == estimate(reference, window.take(np.arange(110, 300)), 0.0).estimated
    assert found is not None
    assert found.rows == 190


def test_calibrated_confidence_is_scikit_learns(world: Any) -> None:
    reference, window = world.scores(world.reference_rows), world.scores(world.traffic[:300])
    fitted = IsotonicRegression(out_of_bounds="clip").fit(reference.confidence, reference.answers.correct)
    found = estimate(reference, window, 0.0).calibrated
    assert found is not None
    assert found.value == pytest.approx(fitted.predict(window.confidence).mean(), abs=1e-6)


def past(error: float, share: float | None, *, withheld: bool = False) -> Past:
    return Past(0.9, 0.9 - error, share, withheld)


@pytest.mark.parametrize(
    ("windows", "most"),
    [
        ([], MOST_UNLIKE),
        ([past(0.01, 0.3), past(0.2, 0.5)], MOST_UNLIKE),
        ([past(0.01, None, withheld=True)], MOST_UNLIKE),
        ([past(0.01, 0.9, withheld=True)], 0.92),
        ([past(0.01, 0.9), past(0.02, 0.95, withheld=True)], 0.97),
        ([past(0.01, 1.0)], 1.0),
        ([past(0.01, 0.9), past(0.3, 0.85, withheld=True)], MOST_UNLIKE),
    ],
)
def test_labels_can_prove_estimates_of_windows_further_away(windows: list[Past], most: float) -> None:
    assert proven(windows) == pytest.approx(most)


def test_what_was_withheld_is_no_part_of_the_past_error() -> None:
    found = backtest([past(0.01, 0.1), past(0.03, None), past(0.4, 0.9, withheld=True)])
    assert found is not None
    assert (found.windows, found.error, found.worst) == (2, pytest.approx(0.02), pytest.approx(0.03))
    assert backtest([past(0.4, 0.9, withheld=True)]) is None
