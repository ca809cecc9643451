"""Held-out images that have an abnormally close neighbour among the training images, in the eyes of the backbone.

It finds what a perceptual hash cannot: copies that were cropped or turned. It only points at them: two photos of one
person look the same to a backbone too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from perennial.bundle import Finding
from training.datasets import Row
from training.resident import blocks, taken

Floats = NDArray[np.float32]

#: A neighbour is abnormally close if its distance is at most this share of the next one's. Among photos of ants and
#: bees no two come below .73; nine of ten copies that were cropped by a tenth or turned by 5 degrees come below .7.
CLOSE: Final = 0.67
_FEWEST: Final = 10  # training images of a label; of fewer, the nearest may be the only one of its kind
_AT_ONCE: Final = 4096  # held-out rows
_SHOWN: Final = 12


@dataclass(frozen=True, slots=True)
class Neighbours:
    """`held_out` and its nearest `trained` row; `ratio` is their distance over that of the second nearest."""

    held_out: Row
    trained: Row
    ratio: float


def embedding_duplicates(features: Floats, rows: Sequence[Row], *, groups: Mapping[str, str]) -> tuple[Neighbours, ...]:
    """Held-out rows whose nearest training row is abnormally close, the closest first.

    Distances are between centred features of length 1. No threshold on them serves all data: same-class neighbours are
    at a cosine of .46 among photos of ants and bees and of .85 among photos of steel. So the nearest is compared with
    the second nearest (the ratio test of Lowe, 2004, Distinctive image features from scale-invariant keypoints).

    Args:
        features: [N, D], of `rows`.
        groups: near-duplicates that are known already; pairs within one are left out.

    Both sides are gone through in blocks and not copied. Of 100,000 rows that is 250 MB and half a minute.
    """
    train = np.flatnonzero([row.split == "train" for row in rows])
    held_out = np.flatnonzero([row.split != "train" for row in rows])
    if len(train) < 3 or not len(held_out):
        return ()
    sums = [known.sum(axis=0, dtype=np.float64) for _, known in blocks(features, train)]
    centre: Floats = (np.sum(sums, axis=0) / len(train)).astype(np.float32)
    trained = Counter(row.label for row in rows if row.split == "train")
    found: list[Neighbours] = []
    for start in range(0, len(held_out), _AT_ONCE):
        block = held_out[start : start + _AT_ONCE]
        nearest, first, second = _two_nearest(_unit(taken(features, block) - centre), features, train, centre)
        ratio = np.sqrt(np.maximum(1 - first, 0) / np.maximum(1 - second, 1e-6))
        for at in np.flatnonzero(ratio <= CLOSE):
            one, other = rows[int(block[at])], rows[int(train[nearest[at]])]
            same_group = one.digest in groups and groups[one.digest] == groups.get(other.digest)
            if trained[other.label] >= _FEWEST and not same_group:
                found.append(Neighbours(one, other, float(ratio[at])))
    return tuple(sorted(found, key=lambda pair: pair.ratio))


def _two_nearest(
    asked: Floats, features: Floats, train: NDArray[np.intp], centre: Floats
) -> tuple[NDArray[np.intp], Floats, Floats]:
    """The place in `train` of the row most alike each of `asked` [M, D], its cosine, and the next one's; [M] each."""
    nearest = np.zeros(len(asked), np.intp)
    first, second = np.full((2, len(asked)), -np.inf, np.float32)
    lines = np.arange(len(asked))
    for place, known in blocks(features, train):
        similar = asked @ _unit(known - centre).T
        at = similar.argmax(axis=1)
        best = similar[lines, at]
        similar[lines, at] = -np.inf
        runner_up = similar.max(axis=1)
        # The second of all is the better of the two seconds and the worse of the two firsts.
        second = np.maximum(np.maximum(second, runner_up), np.minimum(first, best))
        nearest = np.where(best > first, at + place, nearest)
        first = np.maximum(first, best)
    return nearest, first, second


def findings(neighbours: Sequence[Neighbours], held_out: int) -> tuple[Finding, ...]:
    """One finding on them all; none where there are none. `held_out` counts all held-out rows."""
    if not neighbours:
        return ()
    first = neighbours[0]
    message = (
        f"{len(neighbours)} of {held_out:,} held-out images have a training image that is far closer to them than any "
        f"other in the eyes of the backbone, such as {first.held_out.location} and {first.trained.location}. Look at "
        "them: copies that were cropped or turned, frames of one film or photos of one object make the accuracy look "
        "better than it is, and belong on one side of the split"
    )
    pairs = [location for pair in neighbours for location in (pair.held_out.location, pair.trained.location)]
    return (Finding(kind="embedding_near_duplicates", message=message, locations=tuple(pairs[:_SHOWN])),)


def _unit(vectors: Floats) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Floats = (vectors / np.maximum(norms, 1e-12)).astype(np.float32, copy=False)
    return result
