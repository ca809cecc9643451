"""How accurate the model is now, counted by labels."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import fisher_exact

from monitoring.window import Answers

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


def loss_p_value(unseen: Answers, answers: Answers) -> float:
    """Of Fisher's exact test that fewer answers are right than of the reference's held-out rows."""
    before, now = unseen.correct, answers.correct
    table = [[int(now.sum()), int((~now).sum())], [int(before.sum()), int((~before).sum())]]
    return float(fisher_exact(table, alternative="less").pvalue)
