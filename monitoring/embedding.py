"""Is the window's embedding another distribution than the reference's? A domain classifier answers.

A classifier is trained to tell reference rows from window rows; where it can, on rows it was not trained on, the two
differ (Lopez-Paz and Oquab, "Revisiting classifier two-sample tests", ICLR 2017). The classifier is linear in the
components and their squares, so it sees shifts of mean and of spread, and is solved in closed form: all permutations
of the permutation test are solved at once, which makes its p-value exact and the whole test cheap.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from perennial.effects import CHANCE_QUANTILE

Array = NDArray[np.float64]

PERMUTATIONS: Final = 999
MAX_ROWS: Final = 1000  # of each side; more would cost time and add no power that matters
MIN_ROWS: Final = 20  # of each side; fewer cannot be told apart
_FOLDS: Final = 5
# Sequential Monte Carlo (Besag and Clifford, 1991): most clean windows are done after a tenth of the permutations.
_FIRST_LOOK: Final = 99
_CLEARLY_CHANCE: Final = 10
# Standard deviations of the permuted areas, which are all but normal: none of the other 900 would come near.
_CLEARLY_APART: Final = 8.0
_RIDGE: Final = 0.01  # of the features' unit variance: keeps the solve stable where components are collinear
_CLIP: Final = 4.0  # standard deviations; squares of far outliers would drown the rest


@dataclass(frozen=True, slots=True)
class Separation:
    """`auc` is .5 where the two cannot be told apart, 1 where always; `p_value` is the permutation test's."""

    auc: float
    p_value: float

    @property
    def share(self) -> float:
        """The least share of the window that differs from the reference: a share s that is always told, and a rest that
        is told by chance, make an area of (1 + s) / 2 at most."""
        return max(0.0, 2 * self.auc - 1)


def separate(reference: NDArray[Any], window: NDArray[Any], *, seed: int = 0) -> Separation | None:
    """Tell window rows from reference rows.

    Args:
        reference: [N, E] and window [M, E]; rows with a value that is not a number must be gone.

    Returns None where either side has fewer than `MIN_ROWS` rows or nothing varies.
    """
    everything = np.zeros(len(reference), dtype=np.int64), np.zeros(len(window), dtype=np.int64)
    return separate_within(reference, everything[0], window, everything[1], seed=seed)


def separate_within(
    reference: NDArray[Any],
    reference_class: NDArray[Any],
    window: NDArray[Any],
    window_class: NDArray[Any],
    *,
    seed: int = 0,
) -> Separation | None:
    """The same with the classes' shares taken out: rows are compared, and permuted, within their class only.

    It does what resampling the reference to the window's class mix does (Roschewitz et al., MICCAI 2025), without
    the duplicates that would leak between folds. Classes with fewer than 2 rows on either side are left out.

    Args:
        reference_class: [N] and window_class [M]: the predicted class of each row, as any comparable values.
    """
    rng = np.random.default_rng(seed)
    reference, reference_class = _sample(reference, reference_class, rng)
    window, window_class = _sample(window, window_class, rng)
    x = np.concatenate([reference, window]).astype(np.float64)
    y = np.concatenate([np.zeros(len(reference)), np.ones(len(window))])
    classes, stratum = np.unique(np.concatenate([reference_class, window_class]), return_inverse=True)
    ones = np.bincount(stratum, weights=y, minlength=len(classes))
    zeros = np.bincount(stratum, minlength=len(classes)) - ones
    kept = ((ones >= 2) & (zeros >= 2))[stratum]
    x, y, stratum = x[kept], y[kept], stratum[kept]
    if min(y.sum(), len(y) - y.sum()) < MIN_ROWS:
        return None
    features = _features(x)
    if features.shape[1] == 0:
        return None
    strata = [np.flatnonzero(stratum == value) for value in np.unique(stratum)]
    fold = rng.permutation(len(y)) % _FOLDS
    observed, exceeded, tried = 0.0, 0, 0
    for count in (_FIRST_LOOK, PERMUTATIONS - _FIRST_LOOK):
        labels = np.repeat(y[:, None], count + 1, axis=1)  # column 0 is what was observed
        for rows in strata:
            labels[rows, 1:] = rng.permuted(labels[rows, 1:], axis=0)
        areas = _areas(_out_of_fold_scores(features, labels, strata, fold), labels, strata)
        observed, tried = float(areas[0]), tried + count
        exceeded += int((areas[1:] >= areas[0] - 1e-6).sum())
        if exceeded >= _CLEARLY_CHANCE:  # the rest could not make it significant
            break
        if observed - areas[1:].mean() >= _CLEARLY_APART * areas[1:].std():
            tried = PERMUTATIONS
            break
    return Separation(observed, (1 + exceeded) / (1 + tried))


def separate_within_grown(
    reference: NDArray[Any],
    reference_class: NDArray[Any],
    window: NDArray[Any],
    window_class: NDArray[Any],
    *,
    seed: int = 0,
) -> Separation | None:
    """The same within the classes that have a larger share of the window than of the reference, and no others.

    Images of something new are taken for a class or two: that is where they are found, and where they are not thinned
    out by all that stayed the same. Under a mere change of mix the newcomers look like the class that they swell.
    """
    names, inverse = np.unique(np.concatenate([reference_class, window_class]), return_inverse=True)
    left, right = inverse[: len(reference)], inverse[len(reference) :]
    share = np.bincount(right, minlength=len(names)) / max(1, len(right))
    grown = share > np.bincount(left, minlength=len(names)) / max(1, len(left))
    before, now = grown[left], grown[right]
    return separate_within(reference[before], reference_class[before], window[now], window_class[now], seed=seed)


def domain_scores(reference: NDArray[Any], window: NDArray[Any], *, seed: int = 0) -> tuple[Array, Array] | None:
    """How much like a window's each row looks to the same classifier, judged by one that was not trained on it: of the
    reference's rows [N, E] that are all numbers, and of the window's [M, E], NaN where a value is not a number. The
    numbers have an order and no unit.

    Returns None where there are too few of either side, or nothing varies.
    """
    whole, known = (np.isfinite(rows).all(axis=1) for rows in (window, reference))
    count = int(known.sum())
    if min(count, int(whole.sum())) < MIN_ROWS:
        return None
    x = np.concatenate([reference[known], window[whole]]).astype(np.float64)
    features = _features(x)
    if features.shape[1] == 0:
        return None
    labels = np.repeat([0.0, 1.0], [count, len(x) - count])[:, None]
    fold = np.random.default_rng(seed).permutation(len(x)) % _FOLDS
    scores = _out_of_fold_scores(features, labels, [np.arange(len(x))], fold)[:, 0].astype(np.float64)
    asked = np.full(len(window), np.nan)
    asked[whole] = scores[count:]
    return scores[:count], asked


def unlikeness(reference: NDArray[Any], window: NDArray[Any], *, seed: int = 0) -> Array:
    """How unlike the reference each row of the window is: [M] in 0..1, the share of the reference's rows [N, E] that
    look less like a window's (`domain_scores`). About even where the two cannot be told apart; .5 where nothing is
    known of a row."""
    found = domain_scores(reference, window, seed=seed)
    return np.full(len(window), 0.5) if found is None else share_below(*found)


def share_below(known: Array, asked: Array) -> Array:
    """Of each of `asked` [M], the share of `known` [N] that is not above it; .5 of what is not a number."""
    share = np.searchsorted(np.sort(known), asked, side="right") / len(known)
    return np.where(np.isnan(asked), 0.5, share)


def chance_auc(reference_rows: int, window_rows: int) -> float:
    """The area that chance stays under 9 times of 10 with so many rows (Mann and Whitney, 1947)."""
    rows = [min(count, MAX_ROWS) for count in (reference_rows, window_rows)]
    if min(rows) < 1:
        return 1.0
    return float(0.5 + norm.ppf(CHANCE_QUANTILE) * sqrt((1 / rows[0] + 1 / rows[1]) / 12))


def _sample(rows: NDArray[Any], classes: NDArray[Any], rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    if len(rows) <= MAX_ROWS:
        return rows, classes
    chosen = rng.choice(len(rows), MAX_ROWS, replace=False)
    return rows[chosen], classes[chosen]


def _features(x: Array) -> Array:
    """Components and their squares, each standardised over both sides; what does not vary is left out."""
    linear = np.clip(_standardised(x), -_CLIP, _CLIP)
    return np.concatenate([_standardised(linear), _standardised(linear**2)], axis=1)


def _standardised(x: Array) -> Array:
    spread = x.std(axis=0)
    varies = spread > 1e-9 * (1 + np.abs(x).max(axis=0, initial=0.0))
    return np.asarray((x[:, varies] - x[:, varies].mean(axis=0)) / spread[varies])


def _out_of_fold_scores(
    features: Array, labels: Array, strata: list[NDArray[np.int64]], fold: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Least squares on what is left of features and labels once each class's mean is taken out (Frisch and Waugh)."""
    centred_x, centred_y = features.copy(), labels.copy()
    for rows in strata:
        centred_x[rows] -= centred_x[rows].mean(axis=0)
        centred_y[rows] -= centred_y[rows].mean(axis=0)
    scores = np.empty(labels.shape, dtype=np.float32)
    for number in range(_FOLDS):
        train, test = fold != number, fold == number
        gram = centred_x[train].T @ centred_x[train]
        gram[np.diag_indices_from(gram)] += _RIDGE * train.sum()
        weights = np.linalg.solve(gram, centred_x[train].T @ centred_y[train])
        scores[test] = centred_x[test] @ weights
    return scores


def _areas(scores: NDArray[np.float32], labels: Array, strata: list[NDArray[np.int64]]) -> Array:
    """The area under the ROC curve of each column, within classes, averaged over the pairs a class has."""
    won, pairs = np.zeros(scores.shape[1]), 0.0
    for rows in strata:
        ones = float(labels[rows, 0].sum())
        zeros = len(rows) - ones
        ranks = rankdata(scores[rows], axis=0)
        # A class counts by its effective number of rows, not by its pairs, which would let the largest class decide.
        weight = 1.0 / len(rows)
        won += weight * ((ranks * labels[rows]).sum(axis=0) - ones * (ones + 1) / 2)
        pairs += weight * ones * zeros
    return np.asarray(won / pairs)
