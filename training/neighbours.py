"""k nearest neighbours on frozen features: what the pretrained features know with nothing learnt at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.probe import Floats, never_negative
from training.resident import Indexes, blocks

MOST: Final = 5
#: Rows that are compared with; of more, so many: a graph holds them all, 100 MB at 1,280 features.
KNOWN: Final = 20_000
_SHARPNESS: Final = 0.07  # the temperature of the votes (Wu et al., CVPR 2018)
_AT_ONCE: Final = 512
_LEAST: Final = 1e-3  # the share of the votes that all classes get alike


def neighbour_logits(
    train: Floats,
    labels: Sequence[int],
    features: Floats,
    classes: int,
    k: int = MOST,
    *,
    at: Indexes | None = None,
) -> NDArray[np.float64]:
    """Logarithms [M, K] of the share of the votes of the `k` training rows most alike by cosine, the nearer the more.

    Args:
        train: [N, D] with `labels` [N]; gone through in blocks, not copied.
        features: [M, D].
        at: the rows of `train` that count, unless all do; `labels` are then theirs.
    """
    root = never_negative(train, at)
    asked, votes = _directions(features, root), np.eye(classes)[np.asarray(labels)]
    parts = [slice(start, start + _AT_ONCE) for start in range(0, len(asked), _AT_ONCE)]
    near = [np.empty((len(asked[part]), 0), np.float32) for part in parts]  # of the rows so far, the most alike
    nearest = [np.empty((len(asked[part]), 0), np.intp) for part in parts]
    for place, rows in blocks(train, at):
        known = _directions(rows, root)
        for number, part in enumerate(parts):
            alike, found = _most_alike(asked[part] @ known.T, k)
            alike, found = np.hstack([near[number], alike]), np.hstack([nearest[number], found + place])
            near[number], best = _most_alike(alike, k)
            nearest[number] = np.take_along_axis(found, best, axis=1)
    found_votes = np.empty((len(asked), classes))
    for number, part in enumerate(parts):
        weights = np.exp((near[number] - near[number].max(axis=1, keepdims=True)) / _SHARPNESS)
        found_votes[part] = np.einsum("mk,mkc->mc", weights, votes[nearest[number]])
    shares = found_votes / found_votes.sum(axis=1, keepdims=True)
    return np.asarray(np.log((1 - _LEAST) * shares + _LEAST / classes))


class NeighbourVotes(nn.Module):
    """The same as a head that can be exported, with the rows that it compares with inside.

    `forward`: features [M, D] -> logarithms of shares [M, K].
    """

    known: Tensor
    votes: Tensor

    def __init__(self, train: Floats, labels: Sequence[int], classes: int, k: int = MOST) -> None:
        super().__init__()
        self.root, self.k, self.classes = never_negative(train), min(k, len(train)), classes
        self.register_buffer("known", torch.from_numpy(_directions(train, self.root)))
        self.register_buffer("votes", torch.eye(classes)[torch.tensor(labels)])

    def forward(self, features: Tensor) -> Tensor:
        values = features.clamp(min=0.0).sqrt() if self.root else features
        directions = values / values.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
        alike, nearest = torch.topk(directions @ self.known.T, self.k, dim=1)
        weights = torch.softmax(alike / _SHARPNESS, dim=1)
        shares = (weights.unsqueeze(2) * self.votes[nearest]).sum(dim=1)
        return torch.log((1 - _LEAST) * shares + _LEAST / self.classes)


def _most_alike(likeness: Floats, k: int) -> tuple[Floats, NDArray[np.intp]]:
    """Of each row the `k` largest and where they are, in any order."""
    if likeness.shape[1] <= k:
        return likeness, np.broadcast_to(np.arange(likeness.shape[1]), likeness.shape)
    at = np.argpartition(-likeness, k - 1, axis=1)[:, :k]
    return np.take_along_axis(likeness, at, axis=1), at


def _directions(features: Floats, root: bool) -> Floats:
    values = np.sqrt(np.maximum(features, 0.0)) if root else np.asarray(features)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.maximum(lengths, 1e-12), np.float32)
