"""`reference-images.parquet`: what reference images look like, so that a monitor anywhere can show them."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final

import pyarrow as pa

from perennial.images import Pixels
from perennial.thumbnails import thumbnail
from training.datasets import Row

MOST: Final = 1000  # of more reference rows these many are drawn
MOST_BYTES: Final = 2_000_000


class ReferenceImages:
    """Thumbnails of what the model sees of reference images, taken from pixels that are decoded anyway.

    Of many rows it takes those with the lowest digests, which are a random draw and the same one each time.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        digests = {row.digest for row in rows if row.reference}
        self._wanted = frozenset(heapq.nsmallest(MOST, digests))
        self._found: dict[str, bytes] = {}

    def look(self, rows: Sequence[Row], pixels: Pixels) -> None:
        """Keep the pixels [N, H, W, 3] of those of the rows [N] that are wanted. Several threads may."""
        for row, image in zip(rows, pixels, strict=True):
            if row.digest in self._wanted:
                self._found[row.digest] = thumbnail(image)

    def table(self) -> pa.Table:
        """`image_digest` and `image` (JPEG), ordered by digest, as many as `MOST_BYTES` hold."""
        kept: dict[str, bytes] = {}
        size = 0
        for digest in sorted(self._found):
            size += len(self._found[digest])
            if size > MOST_BYTES:
                break
            kept[digest] = self._found[digest]
        return pa.table(
            {"image_digest": pa.array(list(kept), pa.string()), "image": pa.array(list(kept.values()), pa.binary())}
        )
