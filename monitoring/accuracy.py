"""How accurate the model is now: by labels where there are some, else estimated from its own confidence."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import fisher_exact

from monitoring.window import Answers, Scores

_MIN_ROWS: Final = 20  # held-out reference rows, or window rows; fewer calibrate nothing
_BOOTSTRAPS: Final = 500
_Z: Final = 1.959964  # the normal quantile of a two-sided 95 % interval


@dataclass(frozen=True, slots=True)
class Accuracy:
    """An accuracy with its 95 % interval; `rows` is how many images it was taken from."""

    value: float
    low: float
    high: float
    rows: int


def counted(correct: NDArray[np.bool_]) -> Accuracy | None:
    """The share of labelled rows that were right, with Wilson's interval; None where there are no labels."""
    n = len(correct)
    if n == 0:
        return None
    p = float(correct.mean())
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    return Accuracy(p, max(0.0, middle - half), min(1.0, middle + half), n)


def estimated(held_out: Scores, window: Scores, *, seed: int = 0) -> Accuracy | None:
    """Accuracy without labels: average thresholded confidence (ATC-MC; Garg et al., ICLR 2022).

    The threshold is the confidence that the reference's share of errors lies below; the estimate is the share of the
    window above it. The interval is a bootstrap over both. It cannot see concept drift, and after a severe shift it
    promises too much: never a guarantee.

    Args:
        held_out: reference rows that took no part in training, with their labels.

    Returns None where either side has fewer than 20 rows.
    """
    known = np.array([label is not None for label in held_out.labels], dtype=bool)
    before = held_out.confidence[known].astype(np.float64)
    right = held_out.answers.correct
    finite = np.isfinite(before)
    before, right = before[finite], right[finite]
    now = window.confidence[np.isfinite(window.confidence)].astype(np.float64)
    if min(len(before), len(now)) < _MIN_ROWS:
        return None
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(_BOOTSTRAPS):
        rows = rng.integers(len(before), size=len(before))
        draws.append(_atc(before[rows], right[rows], now[rng.integers(len(now), size=len(now))]))
    value = _atc(before, right, now)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Accuracy(value, min(value, float(low)), max(value, float(high)), len(now))


def loss_p_value(unseen: Answers, answers: Answers) -> float:
    """Of Fisher's exact test that fewer answers are right than of the reference's held-out rows."""
    before, now = unseen.correct, answers.correct
    table = [[int(now.sum()), int((~now).sum())], [int(before.sum()), int((~before).sum())]]
    return float(fisher_exact(table, alternative="less").pvalue)


def _atc(before: NDArray[Any], right: NDArray[np.bool_], now: NDArray[Any]) -> float:
    # As many reference rows lie below the threshold as the model got wrong; at a tie the value itself counts as above.
    threshold = np.sort(before)[min(len(before) - 1, int((~right).sum()))]
    return float((now >= threshold).mean())
