"""Near-duplicates: copies of an image that were encoded, resized, brightened or mirrored anew.

A perceptual hash proposes pairs, a comparison of thumbnails confirms them. On the hash alone, flat images, sketches
on white and steel textures would pass for copies of one another; on the thumbnails alone, every evenly lit surface.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from training.glance import COLOUR_SIDE, SIDE

Floats = NDArray[np.float32]
Integers = NDArray[np.intp]
Hashes = NDArray[np.uint64]

#: Most bits of 64 in which the hashes of near-duplicates differ.
HAMMING: Final = 7
#: Least correlation of their thumbnails at 16 x 16: at 32 x 32 resizing moves the thin lines of a drawing too much.
CORRELATION: Final = 0.97
#: Grey levels (rms) by which a thumbnail must stand out from what all images share; below is noise.
LEAST_CONTRAST: Final = 3.0
_GREY: Final = 3.0  # rms of Cb and Cr below which a thumbnail has no colour
_COLOUR_NOISE: Final = 6.0
_PRIOR: Final = 20  # images' worth of an even mean, so that a few images are not compared with themselves
_ENOUGH: Final = 64  # partners, from which on an image's other candidates are not looked at
_BLOCK: Final = 2**20  # candidate pairs at once
_AT_ONCE: Final = 2**12  # thumbnails, or pairs of them, in memory as floats

# The 64 lowest frequencies of a 32 x 32 cosine transform but the mean, as (vertical, horizontal).
_FREQUENCIES: Final = sorted(
    ((u, v) for u in range(12) for v in range(12) if u + v > 0), key=lambda at: (sum(at), abs(at[0] - at[1]))
)[:64]


@dataclass(frozen=True, slots=True)
class Pairs:
    """`first` [P] < `second` [P] are positions of images, `similarity` [P] the correlation of their thumbnails and
    `mirrored` [P] whether one is a mirror image of the other."""

    first: Integers
    second: Integers
    similarity: Floats
    mirrored: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.first)


def near_duplicates(thumbnails: Sequence[bytes | None]) -> Pairs:
    """Every pair of images that are copies of one another, give or take encoding, size, brightness and mirroring.

    The hash is the signs of the 64 lowest frequencies of the discrete cosine transform (Zauner, 2010, Implementation
    and benchmarking of perceptual image hash functions), taken of what a thumbnail has beyond the mean of all: where a
    camera stands still, what it always sees makes no two images alike. Candidates come from multi-index hashing
    (Norouzi, Punjani and Fleet, 2012): of two hashes at most 7 bits apart, one of four 16-bit parts is at most one bit
    apart. They are confirmed by the correlation of the thumbnails and by their colours. An image without contrast has
    no near-duplicates.

    Args:
        thumbnails: as `training.glance` makes them; None where there is none.
    """
    known = np.array([at for at, thumbnail in enumerate(thumbnails) if thumbnail is not None], dtype=np.intp)
    if len(known) < 2:
        return _no_pairs()
    table = np.frombuffer(b"".join(thumbnail for thumbnail in thumbnails if thumbnail is not None), np.uint8)
    table = table.reshape(len(known), SIDE * SIDE + 2 * COLOUR_SIDE * COLOUR_SIDE)
    mean = sum(_standard(table[at : at + _AT_ONCE])[0].sum(axis=0) for at in range(0, len(table), _AT_ONCE))
    mean = mean / (len(table) + _PRIOR)
    plain, mirrored, contrast = _hashes(table, mean)
    sharp = np.flatnonzero(contrast >= LEAST_CONTRAST)
    found: list[Pairs] = []
    for flipped, other in ((False, plain), (True, mirrored)):
        partners = np.zeros(len(table), np.int64)
        for left, right in _candidates(plain[sharp], other[sharp]):
            first, second = sharp[left], sharp[right]
            open_ = (partners[first] < _ENOUGH) | (partners[second] < _ENOUGH)
            first, second = first[open_], second[open_]
            for at in range(0, len(first), _AT_ONCE):
                some = _confirmed(table, mean, first[at : at + _AT_ONCE], second[at : at + _AT_ONCE], flipped)
                partners += np.bincount(some.first, minlength=len(table))
                partners += np.bincount(some.second, minlength=len(table))
                found.append(some)
    pairs = _joined(found)
    return Pairs(known[pairs.first], known[pairs.second], pairs.similarity, pairs.mirrored)


def components(pairs: Pairs, count: int) -> Integers:
    """Which group each of `count` images is in, as the position of the group's first image."""
    links = coo_array((np.ones(len(pairs), np.int8), (pairs.first, pairs.second)), shape=(count, count))
    _, group = connected_components(links, directed=False)
    _, first = np.unique(group, return_index=True)
    return np.asarray(first[group], dtype=np.intp)


# --- hashing ---------------------------------------------------------------------------------------------


def _standard(table: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """Luma with mean 0 and deviation 1 [N, 1024], and the deviation it had [N]. Flat ones are all 0."""
    luma = table[:, : SIDE * SIDE].astype(np.float32)
    luma -= luma.mean(axis=1, keepdims=True)
    spread = luma.std(axis=1)
    return luma / np.maximum(spread, 1e-3)[:, None], spread


def _mirror(luma: Floats) -> Floats:
    return luma.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(len(luma), -1)


def _halved(luma: Floats) -> Floats:
    half = SIDE // 2
    pooled: Floats = luma.reshape(-1, half, 2, half, 2).mean(axis=(2, 4)).reshape(len(luma), -1)
    return pooled


def _hashes(table: NDArray[np.uint8], mean: Floats) -> tuple[Hashes, Hashes, Floats]:
    """The hash of each image and of its mirror image, and by how many grey levels it stands out from the mean."""
    at = np.arange(SIDE) + 0.5
    waves = np.cos(np.pi / SIDE * np.outer(np.arange(12), at))
    basis = np.stack([np.outer(waves[u], waves[v]).ravel() for u, v in _FREQUENCIES], axis=1).astype(np.float32)
    plain, mirrored, contrast = [], [], []
    for start in range(0, len(table), _AT_ONCE):
        luma, spread = _standard(table[start : start + _AT_ONCE])
        beyond = luma - mean
        contrast.append(np.sqrt((beyond**2).mean(axis=1)) * spread)
        plain.append(_packed(beyond @ basis))
        mirrored.append(_packed((_mirror(luma) - mean) @ basis))
    return np.concatenate(plain), np.concatenate(mirrored), np.concatenate(contrast)


def _packed(coefficients: NDArray[np.floating]) -> Hashes:
    return np.packbits(coefficients > 0, axis=1).view(np.uint64).ravel()


# --- finding candidates ----------------------------------------------------------------------------------


def _candidates(left: Hashes, right: Hashes) -> Iterator[tuple[Integers, Integers]]:
    """Positions i < j with `left[i]` and `right[j]` at most HAMMING bits apart, each pair once, block by block."""
    for part in range(4):
        keys = _part(right, part)
        order = np.argsort(keys, kind="stable")
        counts = np.bincount(keys, minlength=2**16)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        for flip in (0, *(1 << bit for bit in range(16))):
            wanted = _part(left, part) ^ flip
            for first, second in _matches(starts[wanted], counts[wanted], order):
                apart = left[first] ^ right[second]
                keep = (first < second) & (np.bitwise_count(apart) <= HAMMING)
                for before in range(part):  # else an earlier part has proposed it
                    keep &= np.bitwise_count(_part(apart, before)) > 1
                if keep.any():
                    yield first[keep], second[keep]


def _part(hashes: Hashes, part: int) -> Integers:
    return ((hashes >> np.uint64(16 * part)) & np.uint64(0xFFFF)).astype(np.intp)


def _matches(starts: Integers, counts: Integers, order: Integers) -> Iterator[tuple[Integers, Integers]]:
    rows = np.flatnonzero(counts)
    ends = np.cumsum(counts[rows])
    at = 0
    while at < len(rows):
        before = int(ends[at - 1]) if at else 0
        stop = max(at + 1, int(np.searchsorted(ends, before + _BLOCK, "right")))
        some = rows[at:stop]
        each = counts[some]
        first = np.repeat(some, each)
        inside = np.arange(len(first)) - np.repeat(np.cumsum(each) - each, each)
        yield first, order[np.repeat(starts[some], each) + inside]
        at = stop


# --- confirming them -------------------------------------------------------------------------------------


def _confirmed(table: NDArray[np.uint8], mean: Floats, first: Integers, second: Integers, mirrored: bool) -> Pairs:
    one, other = _standard(table[first])[0], _standard(table[second])[0]
    if mirrored:
        other = _mirror(other)
    one, other = _halved(one - mean), _halved(other - mean)
    norms = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    similarity = (one * other).sum(axis=1) / np.maximum(norms, 1e-6)
    alike = (similarity >= CORRELATION) & _same_colours(table[first], table[second], mirrored)
    return Pairs(first[alike], second[alike], similarity[alike], np.full(int(alike.sum()), mirrored))


def _same_colours(first: NDArray[np.uint8], second: NDArray[np.uint8], mirrored: bool) -> NDArray[np.bool_]:
    """The same drawing in other colours is another image; a colourless copy is a copy."""
    one, other = (
        rows[:, SIDE * SIDE :].astype(np.float32).reshape(-1, 2, COLOUR_SIDE, COLOUR_SIDE) - 128
        for rows in (first, second)
    )
    if mirrored:
        other = other[:, :, :, ::-1]
    a, b, apart = (np.sqrt((values**2).mean(axis=(1, 2, 3))) for values in (one, other, one - other))
    result: Any = (apart <= _COLOUR_NOISE + np.maximum(a, b) / 2) | (np.minimum(a, b) < _GREY)
    return np.asarray(result, dtype=np.bool_)


def _no_pairs() -> Pairs:
    return Pairs(np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0, np.float32), np.empty(0, np.bool_))


def _joined(parts: Sequence[Pairs]) -> Pairs:
    if not parts:
        return _no_pairs()
    return Pairs(
        np.concatenate([part.first for part in parts]),
        np.concatenate([part.second for part in parts]),
        np.concatenate([part.similarity for part in parts]),
        np.concatenate([part.mirrored for part in parts]),
    )
