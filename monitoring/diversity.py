"""Of many rows a few: those that are worth the most, and that are not like one another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def apart(worth: Array, points: Array, count: int, *, least: float = 0.0) -> list[int]:
    """Places of at most `count` rows in order: each time the most worthy one, less so the nearer it lies to one that
    was taken (greedy, as in core-set selection: Sener and Savarese, ICLR 2018).

    Args:
        worth: [N], none negative.
        points: [N, E], in which nearness is measured, against how far a row is from the middle in the median.
        least: ends where nothing is worth as much any more. Above 0, near-copies of what was taken are left out.
    """
    spread = float(np.median(np.linalg.norm(points - points.mean(axis=0), axis=1))) or 1.0
    nearness = np.full(len(points), np.inf)
    left, taken = np.ones(len(points), dtype=bool), list[int]()
    for _ in range(min(count, len(points))):
        value = np.where(left, worth * np.minimum(1.0, nearness / spread), -1.0)
        best = int(value.argmax())
        if value[best] < least:
            break
        taken.append(best)
        left[best] = False
        nearness = np.minimum(nearness, np.linalg.norm(points - points[best], axis=1))
    return taken
