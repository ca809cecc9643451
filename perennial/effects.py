"""How far apart two samples are, in numbers that do not grow with their size; and how far chance alone puts them.

A monitor acts on an effect, not on significance alone. What chance makes of an effect falls with the root of the rows,
so its size is measured once, on the reference itself, and kept in the bundle; a check scales it to its own window.
"""

from __future__ import annotations

from math import sqrt
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from perennial.chance import ChanceEffects

Array = NDArray[np.float64]

#: Spreads below this count as this: a column that hardly varied is not shifted by a rounding error.
LEAST_SPREAD: Final = 0.01
#: Probabilities compared by column: of many classes, those the reference gives the most. The rest is covered by the
#: confidence and by the class mix.
MOST_PROBABILITIES: Final = 32
#: What `chance_effects` says, chance alone stays under so often. No more: significance is asked for as well.
CHANCE_QUANTILE: Final = 0.9
_SPLITS: Final = 400
_MOST_ROWS: Final = 1000  # of the reference, in one split: the law of the root does the rest
_LEAST_ROWS: Final = 40


def standardised_distance(left: NDArray[Any], right: NDArray[Any], left_weights: NDArray[Any] | None = None) -> float:
    """The Wasserstein distance of two samples [N] and [M] in standard deviations of the first. Weights [N] stand for a
    first sample of another mix; they do not change the unit."""
    left, right = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    weights = np.ones(len(left)) if left_weights is None else left_weights
    order, other = np.argsort(left, kind="stable"), np.sort(right)
    every = np.sort(np.concatenate([left, right]))
    # In one dimension it is the area between the distribution functions.
    below = np.concatenate([[0.0], np.cumsum(weights[order])])[np.searchsorted(left[order], every[:-1], side="right")]
    apart = np.abs(below / weights.sum() - np.searchsorted(other, every[:-1], side="right") / len(other))
    return float(apart @ np.diff(every)) / max(float(left.std()), LEAST_SPREAD)


def shares(left: NDArray[Any], right: NDArray[Any]) -> tuple[NDArray[Any], Array, Array]:
    """The categories of either sample, and the share each has of the first and of the second."""
    names, inverse = np.unique(np.concatenate([left, right]).astype(str), return_inverse=True)
    first = np.bincount(inverse[: len(left)], minlength=len(names)) / max(1, len(left))
    second = np.bincount(inverse[len(left) :], minlength=len(names)) / max(1, len(right))
    return names, first, second


def tested_probabilities(probabilities: NDArray[Any]) -> list[int]:
    """The columns of probabilities [N, K] that are compared one by one, in order."""
    given = np.nan_to_num(probabilities).mean(axis=0)
    return sorted(int(index) for index in np.argsort(-given, kind="stable")[:MOST_PROBABILITIES])


def chance_effects(
    properties: NDArray[Any], probabilities: NDArray[Any], predicted: NDArray[Any], *, seed: int = 0
) -> ChanceEffects | None:
    """Split the reference in halves at random, again and again, and see how far apart they are.

    Args:
        properties: [N, P] of every reference row.
        probabilities: [H, K] and predicted [H], of the rows that were held out.

    Returns None where there are fewer than 40 rows to split.
    """
    if min(len(properties), len(predicted)) < _LEAST_ROWS:
        return None
    rng = np.random.default_rng(seed)
    known = _some(np.asarray(properties, dtype=np.float64), rng)
    drawn = rng.permutation(len(predicted))[:_MOST_ROWS]
    answers = np.asarray(probabilities, dtype=np.float64)[drawn]
    outputs = np.column_stack([answers[:, tested_probabilities(answers)], answers.max(axis=1)])
    sides = _halves(len(outputs), rng)
    _, classes = np.unique(predicted[drawn].astype(str), return_inverse=True)
    mix = np.abs(sides @ np.eye(classes.max() + 1)[classes]).sum(axis=1) / 2
    return ChanceEffects(
        properties=_by_root(_distances(known, _halves(len(known), rng)), len(known)),
        output=_by_root(_distances(outputs, sides), len(outputs)),
        class_mix=_by_root(mix, len(outputs)),
    )


def _some(rows: Array, rng: np.random.Generator) -> Array:
    """Rows that are all numbers, at most so many."""
    finite = rows[np.isfinite(rows).all(axis=1)]
    return finite[rng.permutation(len(finite))[:_MOST_ROWS]]


def _halves(rows: int, rng: np.random.Generator) -> Array:
    """[S, rows]: in each split, what a row adds to the difference of the two halves' distribution functions."""
    half = rows // 2
    sides = np.zeros(rows)
    sides[:half], sides[half : 2 * half] = 1 / max(1, half), -1 / max(1, half)
    return np.stack([rng.permutation(sides) for _ in range(_SPLITS)])


def _distances(rows: Array, sides: Array) -> Array:
    """[S]: the largest distance of a column in each split; a column is sorted once for all splits."""
    found = np.zeros(len(sides))
    for column in rows.T:
        order = np.argsort(column, kind="stable")
        gaps = np.diff(column[order])
        spread = max(float(column.std()), LEAST_SPREAD)
        area = np.abs(np.cumsum(sides[:, order], axis=1)[:, :-1]) @ gaps
        found = np.maximum(found, area / spread)
    return found


def _by_root(effects: Array, rows: int) -> float:
    half = rows // 2
    return float(np.quantile(effects, CHANCE_QUANTILE)) / sqrt(2 / max(1, half))
