"""k nearest neighbours on frozen features: what the pretrained features know with nothing learnt at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.probe import Floats, never_negative

MOST: Final = 5
_SHARPNESS: Final = 0.07  # the temperature of the votes (Wu et al., CVPR 2018)
_AT_ONCE: Final = 512
_LEAST: Final = 1e-3  # the share of the votes that all classes get alike


def neighbour_logits(
    train: Floats, labels: Sequence[int], features: Floats, classes: int, k: int = MOST
) -> NDArray[np.float64]:
    """Logarithms [M, K] of the share of the votes of the `k` training rows most alike by cosine, the nearer the more.

    Args:
        train: [N, D] with `labels` [N]; features: [M, D].
    """
    root = never_negative(train)
    known, asked = _directions(train, root), _directions(features, root)
    votes = np.eye(classes)[np.asarray(labels)]
    k = min(k, len(train))
    found = np.empty((len(asked), classes))
    for start in range(0, len(asked), _AT_ONCE):
        likeness = asked[start : start + _AT_ONCE] @ known.T
        nearest = np.argpartition(-likeness, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(likeness, nearest, axis=1)
        weights = np.exp((near - near.max(axis=1, keepdims=True)) / _SHARPNESS)
        found[start : start + _AT_ONCE] = np.einsum("mk,mkc->mc", weights, votes[nearest])
    shares = found / found.sum(axis=1, keepdims=True)
    return np.asarray(np.log((1 - _LEAST) * shares + _LEAST / classes))


def _directions(features: Floats, root: bool) -> Floats:
    values = np.sqrt(np.maximum(features, 0.0)) if root else np.asarray(features)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.maximum(lengths, 1e-12), np.float32)
