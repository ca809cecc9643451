"""Could one lens explain it? Separates a camera that changed from images of something else.

A lens gone dark, soft or pale changes every image alike: each property is moved and scaled, but its distribution
keeps its shape, and images that were brighter and sharper than others still are. Sketches in place of photos move
the same properties, and change how they go together. Both are measured with location and scale taken out, so the
size of the shift does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, wasserstein_distance

#: Measured on photos and digits: darkening, blur, noise, contrast, grey and JPEG stay under .17 in `structure` and
#: under .15 in `shape`, sketches and sketches among photos are above .35 in one of the two.
MOST_STRUCTURE: Final = 0.25
MOST_SHAPE: Final = 0.25
_MIN_ROWS: Final = 100  # of the newest part of a window; fewer make the correlations too noisy
_LEAST_SPREAD: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Misfit:
    """What one lens cannot explain: 0 is all explained.

    `structure` is the mean absolute change of the properties' rank correlations; `shape` the median over the
    properties of the Wasserstein distance once both sides are standardised (in standard deviations).
    """

    structure: float
    shape: float

    @property
    def one_lens(self) -> bool:
        return self.structure <= MOST_STRUCTURE and self.shape <= MOST_SHAPE


def misfit(reference: NDArray[Any], window: NDArray[Any]) -> Misfit:
    """Compare properties [N, P] with a window's [M, P], oldest row first.

    A change that began or ended within the window, or one camera of several, leaves a mixture that no single lens
    explains. Then the newest and the oldest third are asked alone, and the rows that lie outside of what the
    reference holds; but only where the shift is there at its full size.
    """
    known = np.isfinite(reference).any(axis=0) & np.isfinite(window).any(axis=0)
    reference, window = (np.where(np.isfinite(side), side, np.nan)[:, known] for side in (reference, window))
    whole = _compare(reference, window)
    if whole.one_lens:
        return whole
    third = max(_MIN_ROWS, len(window) // 3)
    for part in (window[-third:], window[:third], window[_outside(reference, window)]):
        if _MIN_ROWS <= len(part) < len(window) and _shift(reference, part) >= _shift(reference, window):
            alone = _compare(reference, part)
            if alone.one_lens:
                return alone
    return whole


def _shift(reference: NDArray[Any], window: NDArray[Any]) -> float:
    """The largest shift of a property's mean, in reference standard deviations."""
    spread = np.maximum(np.nanstd(reference, axis=0), _LEAST_SPREAD)
    return float((np.abs(np.nanmean(window, axis=0) - np.nanmean(reference, axis=0)) / spread).max(initial=0.0))


def _outside(reference: NDArray[Any], window: NDArray[Any]) -> NDArray[np.bool_]:
    """Rows with a property beyond the least or the greatest that the reference holds."""
    low, high = np.nanmin(reference, axis=0), np.nanmax(reference, axis=0)
    return np.asarray(((window < low) | (window > high)).any(axis=1))


def _compare(reference: NDArray[Any], window: NDArray[Any]) -> Misfit:
    left = reference[np.isfinite(reference).all(axis=1)].astype(np.float64)
    right = window[np.isfinite(window).all(axis=1)].astype(np.float64)
    if len(left) < 2 or len(right) < 2:
        return Misfit(0.0, 0.0)
    varies = (left.std(axis=0) > _LEAST_SPREAD) & (right.std(axis=0) > _LEAST_SPREAD)
    left, right = left[:, varies], right[:, varies]
    if left.shape[1] == 0:
        return Misfit(0.0, 0.0)
    shapes = [
        wasserstein_distance((a - a.mean()) / a.std(), (b - b.mean()) / b.std())
        for a, b in zip(left.T, right.T, strict=True)
    ]
    pairs = np.triu_indices(left.shape[1], 1)
    if not len(pairs[0]):
        return Misfit(0.0, float(np.median(shapes)))
    change = np.abs(np.corrcoef(rankdata(left, axis=0).T) - np.corrcoef(rankdata(right, axis=0).T))
    return Misfit(float(change[pairs].mean()), float(np.median(shapes)))
