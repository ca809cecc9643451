"""How accurate the model is now, before any label comes: estimated from its own probabilities, or withheld.

Confidence says how the model errs on images like those it was validated on. The further a window is from these, the
less is known; how far it is, the domain classifier says. So the interval grows with the share of the window that the
classifier tells from the reference, and past `MOST_UNLIKE` there is no estimate at all. `make bench-drift` measures
both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from monitoring.accuracy import Accuracy
from monitoring.window import Scores

#: Share of a window that may be unlike the reference; of more, an estimate is withheld.
MOST_UNLIKE: Final = 0.8
_MIN_ROWS: Final = 20  # held-out reference rows, or window rows; fewer calibrate nothing
_BOOTSTRAPS: Final = 500

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Accuracy without labels; `estimated` is None where `withheld` says why.

    `estimated` is the one to go by. `calibrated` is a second opinion, the mean calibrated confidence: after a severe
    change it promises more still. `unlike` is the share of the window that the domain classifier tells from the
    reference. `unproven` is what was withheld because of it, kept so that labels can show later how far off it was.
    """

    estimated: Accuracy | None = None
    calibrated: Accuracy | None = None
    unlike: float | None = None
    withheld: str | None = None
    unproven: Accuracy | None = None


def estimate(
    held_out: Scores, window: Scores, unlike: float | None, *, proven: float = MOST_UNLIKE, seed: int = 0
) -> Estimate:
    """Accuracy of a window from its probabilities: average thresholded confidence with negative entropy (ATC-NE; Garg
    et al., ICLR 2022), and the mean of confidence after isotonic regression on the reference.

    The intervals are a bootstrap over both sides; the lower end of `estimated` gives way by what is unlike the
    reference, all of which may be wrong. Neither can see concept drift.

    Args:
        held_out: reference rows that took no part in training, with their labels.
        unlike: the share of the window that the domain classifier tells from the reference (`Separation.share`); None
            where it was not measured, and then nothing vouches for an estimate.
        proven: the most of it at which estimates are known to be good.
    """
    known = np.array([label is not None for label in held_out.labels], dtype=bool)
    reference = held_out.take(known)
    usable = _usable(reference)
    reference, right = reference.take(usable), held_out.answers.correct[usable]
    rows = window.take(_usable(window))
    if len(reference) < _MIN_ROWS:
        return Estimate(
            withheld=f"the model has {len(reference)} labelled reference rows that took no part in training; an "
            f"estimate needs {_MIN_ROWS}"
        )
    if len(rows) < _MIN_ROWS:
        return Estimate(withheld=f"the window has {len(rows)} different images; an estimate needs {_MIN_ROWS}")
    if unlike is None:
        return Estimate(withheld="the window was not compared with the reference: nothing says how far it is from it")
    found, calibrated = _both(reference, right, rows, unlike, seed)
    if unlike > proven:
        return Estimate(
            unlike=unlike,
            withheld=f"{unlike:.0%} of the window can be told from the reference, and estimates are only known to be "
            f"good up to {proven:.0%}",
            unproven=found,
        )
    return Estimate(found, calibrated, unlike)


def _both(
    reference: Scores, right: NDArray[np.bool_], window: Scores, unlike: float, seed: int
) -> tuple[Accuracy, Accuracy]:
    window = window.take(np.argsort(window.confidence, kind="stable"))  # in order it is interpolated much faster
    before = _negative_entropy(reference), reference.confidence.astype(np.float64)
    now = _negative_entropy(window), window.confidence.astype(np.float64)
    rng = np.random.default_rng(seed)
    draws = np.empty((2, _BOOTSTRAPS))
    for draw in range(_BOOTSTRAPS):
        known, asked = (rng.integers(len(side), size=len(side)) for side in (reference, window))
        draws[0, draw] = _atc(before[0][known], right[known], now[0])[asked].mean()
        draws[1, draw] = _isotonic(before[1][known], right[known], now[1])[asked].mean()
    return (
        _interval(_atc(before[0], right, now[0]), draws[0], unlike),
        _interval(_isotonic(before[1], right, now[1]), draws[1], 0.0),
    )


def _usable(scores: Scores) -> NDArray[np.int64]:
    return np.flatnonzero(np.isfinite(scores.probabilities).all(axis=1) & np.isfinite(scores.confidence))


def _interval(rows: NDArray[Any], draws: Floats, lower: float) -> Accuracy:
    value, (low, high) = float(rows.mean()), np.quantile(draws, [0.025, 0.975])
    return Accuracy(value, max(0.0, min(value, float(low)) - lower), max(value, float(high)), len(rows))


def _negative_entropy(scores: Scores) -> Floats:
    probabilities = np.clip(scores.probabilities.astype(np.float64), 1e-12, 1.0)
    return np.asarray((probabilities * np.log(probabilities)).sum(axis=1))


def _atc(before: Floats, right: NDArray[np.bool_], now: Floats) -> NDArray[np.bool_]:
    """Which rows count as right."""
    # As many reference rows lie below the threshold as the model got wrong; at a tie the value itself counts as above.
    threshold = np.sort(before)[min(len(before) - 1, int((~right).sum()))]
    return np.asarray(now >= threshold)


def _isotonic(before: Floats, right: NDArray[np.bool_], now: Floats) -> Floats:
    """How likely each row is right."""
    known, at = np.unique(before, return_inverse=True)
    rows = np.bincount(at)
    fitted = isotonic_regression(np.bincount(at, weights=right) / rows, weights=rows).x
    return np.asarray(np.interp(now, known, fitted))
