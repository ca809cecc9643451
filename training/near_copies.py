"""Which labelled captures are near-duplicates, of one another or of the original images.

A camera that films one scene sends the same picture a hundred times. To train on one and judge on the next would show
nothing, and to judge on all hundred would count one answer a hundred times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from perennial.errors import InvalidDataset, InvalidImage
from perennial.images import ImageLimits
from perennial.progress import IMAGES, Progress, Step, silent
from training.datasets import LabelledImages, Row, read_bytes
from training.duplicates import components, near_duplicates
from training.glance import glance

_READERS: Final = 8  # reading waits for the storage more than for the processor


@dataclass(frozen=True, slots=True)
class NearCopies:
    """`groups` names by digest the group of each capture that has near-duplicates among the captures. `of_held_out` are
    the captures that are near-duplicates of a held-out original image, themselves or by another of their group;
    `of_trained` the same of the other original images."""

    groups: Mapping[str, str] = field(default_factory=dict)
    of_held_out: frozenset[str] = frozenset()
    of_trained: frozenset[str] = frozenset()

    def group(self, digest: str) -> str:
        """Its group's name; that of an image without near-duplicates is its own digest."""
        return self.groups.get(digest, digest)


def near_copies(
    captures: Sequence[Row], original: LabelledImages, limits: ImageLimits, progress: Progress = silent
) -> NearCopies:
    """Compare thumbnails (`training.duplicates`): those of `original` are known, each capture is looked at. One that
    cannot be read has no near-duplicates here: whoever uses it will say so."""
    thumbnails: list[bytes | None] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for done, thumbnail in enumerate(pool.map(lambda row: _thumbnail(row, limits), captures), start=1):
            thumbnails.append(thumbnail)
            progress(Step("looking for near-duplicates", done, len(captures), IMAGES))
    known = {row.digest for row in captures}
    others = [row for row in original.rows if row.digest not in known]
    thumbnails += [original.thumbnails.get(row.digest) for row in others]
    of = components(near_duplicates(thumbnails), len(thumbnails)).tolist()
    mine, theirs = of[: len(captures)], of[len(captures) :]
    sizes = Counter(mine)
    held_out = {at for at, row in zip(theirs, others, strict=True) if row.split == "test"}
    trained = set(theirs) - held_out
    return NearCopies(
        {row.digest: captures[at].digest for row, at in zip(captures, mine, strict=True) if sizes[at] > 1},
        frozenset(row.digest for row, at in zip(captures, mine, strict=True) if at in held_out),
        frozenset(row.digest for row, at in zip(captures, mine, strict=True) if at in trained),
    )


def _thumbnail(row: Row, limits: ImageLimits) -> bytes | None:
    try:
        return glance(read_bytes(row), limits).thumbnail
    except (InvalidDataset, InvalidImage):
        return None
