"""Fractals of random iterated function systems: a second family of images that nobody had to photograph or label.

After Kataoka et al., "Pre-training without Natural Images" (ACCV 2020): one class is one system of affine maps, its
images are the attractors of slightly changed copies, and systems whose attractor fills too little are thrown away.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from training.glyphs import Atlas

_SIDE, _CHAINS, _STEPS, _BURN = 64, 64, 240, 20
_DRAWINGS = 8  # changed copies of each system
_LEAST_FILL = 0.18  # the share of a coarse grid's cells that the attractor must touch


def fractal_atlas(classes: int, seed: int) -> Atlas:
    """Draw ``classes`` systems, eight changed copies of each, as signed fields ``[8 x classes, 64, 64]``."""
    random = np.random.default_rng([seed, 2020])
    fields: list[NDArray[np.float16]] = []
    kept = 0
    while kept < classes:
        maps = _system(random)
        counts = _attractor(maps, random)
        if counts is None or _fill(counts) < _LEAST_FILL:
            continue
        copies = [_field(counts)]
        while len(copies) < _DRAWINGS:
            # One coefficient in three moves by up to a fifth, as in the paper's instance augmentation.
            change = 1 + random.uniform(-0.2, 0.2, maps.shape) * (random.random(maps.shape) < 1 / 3)
            changed = _attractor(maps * change, random)
            if changed is not None:
                copies.append(_field(changed))
        fields += copies
        kept += 1
    labels = np.repeat(np.arange(classes), _DRAWINGS)
    stacked = np.stack(fields) if fields else np.zeros((0, _SIDE, _SIDE), np.float16)
    return Atlas(stacked, labels, tuple(f"fractal {i}" for i in range(classes)))


def _system(random: np.random.Generator) -> NDArray[np.float64]:
    """Two to eight affine maps ``[maps, 2, 3]``, each contracting, so that the attractor exists and is bounded."""
    maps = random.uniform(-1, 1, (int(random.integers(2, 9)), 2, 3))
    largest = np.linalg.svd(maps[:, :, :2], compute_uv=False)[:, :1, None]
    maps[:, :, :2] *= random.uniform(0.4, 0.9, (len(maps), 1, 1)) / largest
    return maps


def _attractor(maps: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64] | None:
    """Play the chaos game with many chains at once; counts a pixel ``[64, 64]``, or None if the points flee."""
    weights = np.abs(np.linalg.det(maps[:, :, :2])) + 0.01
    picks = random.choice(len(maps), (_STEPS, _CHAINS), p=weights / weights.sum())
    points = np.zeros((_CHAINS, 2))
    trail = np.empty((_STEPS, _CHAINS, 2))
    for step, pick in enumerate(picks):
        chosen = maps[pick]
        points = np.einsum("nij,nj->ni", chosen[:, :, :2], points) + chosen[:, :, 2]
        trail[step] = points
    cloud = trail[_BURN:].reshape(-1, 2)
    if not np.isfinite(cloud).all() or np.abs(cloud).max() > 1e3:
        return None
    low, high = cloud.min(0), cloud.max(0)
    extent = float((high - low).max())
    if extent < 1e-6:
        return None
    # Three quarters of the page, centred, as the glyphs are.
    pixels = ((cloud - (low + high) / 2) / extent * 0.75 + 0.5) * _SIDE
    column, row = pixels.astype(np.int64).clip(0, _SIDE - 1).T
    return np.bincount(row * _SIDE + column, minlength=_SIDE**2).reshape(_SIDE, _SIDE).astype(np.float64)


def _fill(counts: NDArray[np.float64]) -> float:
    coarse = counts.reshape(_SIDE // 2, 2, _SIDE // 2, 2).sum((1, 3))
    return float((coarse > 0).mean())


def _field(counts: NDArray[np.float64]) -> NDArray[np.float16]:
    """Log density as a field: positive on the half of the touched pixels that are touched most."""
    density = gaussian_filter(np.log1p(counts), 0.6)
    middle = float(np.median(density[counts > 0]))
    return np.asarray((3 * (density / middle - 0.7)).clip(-3, 3), np.float16)
