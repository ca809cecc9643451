"""Are there more images in the window that are like nothing in the reference?

Tests of whole distributions hardly see a few per cent of very different images: one camera of ten that went blind, the
first of something new. Those lie far from everything known. How far an image is from its nearest neighbour in one half
of the reference is compared with the same distance of the other half (split conformal; Vovk et al., 2005), and the same
the other way round: the window's share among the furthest is hypergeometric as long as nothing changed,
whatever the distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from perennial.effects import LEAST_SPREAD

Array = NDArray[np.float64]

MIN_ROWS: Final = 20  # of each half of the reference, and of the window
_MOST_ROWS: Final = 2000  # of the half that is looked up
#: The furthest so many of all: few for few that are far off, more for many that are somewhat off. Both are tried, and
#: corrected for.
_FURTHEST: Final = (0.01, 0.025, 0.05, 0.1)
_BLOCK: Final = 1000


@dataclass(frozen=True, slots=True)
class Novelty:
    """`excess`: how far the window's share among the furthest exceeds the reference's; `p_value`: that of an excess
    so large by chance; `rows` [M] are the window's images among the furthest."""

    excess: float
    p_value: float
    rows: NDArray[np.bool_]


def find_novel(reference: NDArray[Any], window: NDArray[Any], *, seed: int = 0) -> Novelty | None:
    """Compare rows [N, E] and [M, E] by the distance to their nearest neighbour, in reference standard deviations.

    A row with a value that is not a number is left out. Returns None where there are too few others.
    """
    known, asked = (np.flatnonzero(np.isfinite(side).all(axis=1)) for side in (reference, window))
    if min(len(known) // 2, len(asked)) < MIN_ROWS or not reference.shape[1]:
        return None
    rng = np.random.default_rng(seed)
    left, right = (np.asarray(side[kept], np.float64) for side, kept in ((reference, known), (window, asked)))
    halves = rng.permutation(len(left)) % 2, rng.permutation(len(right)) % 2
    ranked = [_furthest_first(left, halves[0] == half, right, halves[1] != half) for half in (0, 1)]
    best = Novelty(0.0, 1.0, np.zeros(len(window), dtype=bool))
    for share in _FURTHEST:
        furthest = np.concatenate([order[: max(1, round(share * len(order)))] for order in ranked])
        novel = furthest[furthest >= 0]
        chance = hypergeom(len(left) + len(right), len(right), len(furthest))
        p_value = float(chance.sf(len(novel) - 1)) * len(_FURTHEST)
        if p_value < best.p_value:
            far = np.zeros(len(window), dtype=bool)
            far[asked[novel]] = True
            excess = len(novel) / len(right) - (len(furthest) - len(novel)) / len(left)
            best = Novelty(excess, p_value, far)
    return best


def _furthest_first(
    reference: Array, looked_up: NDArray[np.bool_], window: Array, asked: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The rows of the other half of the reference, each as -1, and those asked of the window, by their number, in the
    order of their distance to the nearest of those looked up. Only these say what the unit is: an outlier must not
    shorten its own distance."""
    known = reference[looked_up][:_MOST_ROWS]
    spread = np.maximum(known.std(axis=0), LEAST_SPREAD)
    rows = np.concatenate([reference[~looked_up], window[asked]]) / spread
    numbers = np.concatenate([np.full(int((~looked_up).sum()), -1), np.flatnonzero(asked)])
    # Ties count for the reference: many equal distances (copies, constant columns) must not look like novelty.
    return np.asarray(numbers[np.lexsort((numbers, -_nearest(rows, known / spread)))])


def _nearest(rows: Array, looked_up: Array) -> Array:
    """[N]: how far each row is from the nearest of `looked_up`."""
    squares = (looked_up**2).sum(axis=1)
    found = [np.empty(0)]
    for at in range(0, len(rows), _BLOCK):
        asked = rows[at : at + _BLOCK]
        found.append(((asked**2).sum(axis=1)[:, None] + squares - 2 * asked @ looked_up.T).min(axis=1))
    return np.asarray(np.sqrt(np.maximum(np.concatenate(found), 0)))
