"""Rows of features without more memory than they need.

Features are mapped from disk where there are many (`training.feature_cache`), and what was looked at through a map
counts as this process's memory until it is given back: of 100,000 images half a gigabyte, beside every copy.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indexes = NDArray[np.intp] | NDArray[np.int64]

#: From so many numbers on, features are not worked on in float64, nor all at once: 64 MiB a copy, which 6,500 images
#: of 1,280 features are. What is learnt from so many does not hang on the 8th digit.
LARGE: Final = 2**23
BLOCK: Final = 2048  # rows
# Of rows that lie far apart each brings its neighbourhood along: 64 KiB and more. So few are looked at between one time
# of giving back and the next.
_APART: Final = 256


def taken(features: Floats, at: Indexes) -> Floats:
    """`features[at]`, a copy."""
    found = np.empty((len(at), features.shape[1]), features.dtype)
    for start in range(0, len(at), _APART):
        found[start : start + _APART] = features[at[start : start + _APART]]
        give_back(features)
    return found


def blocks(features: Floats, at: Indexes | None = None) -> Iterator[tuple[int, Floats]]:
    """The rows (those at `at`, unless all are meant) a few thousand at a time, each with the place of its first one. A
    block may be read-only; it is good until the next is asked for."""
    for start in range(0, len(features) if at is None else len(at), BLOCK):
        if at is None:
            yield start, features[start : start + BLOCK]
            give_back(features)
        else:
            yield start, taken(features, at[start : start + BLOCK])


def give_back(features: Floats) -> None:
    """What is in memory of a map of a file that is only read: it will be read again when it is asked for."""
    mapped = getattr(features, "_mmap", None)
    if mapped is not None and getattr(features, "mode", "") == "r" and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
