"""A bundle shows a bounded number of its reference images, in a bounded number of bytes, the same ones each time."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from perennial.thumbnails import is_thumbnail
from training import reference_images
from training.datasets import Row
from training.reference_images import ReferenceImages

SIDE = 128


def rows_of(count: int, *, reference: bool = True) -> list[Row]:
    return [Row(f"/{at}.png", "a", f"{at:064x}", "validation", reference=reference) for at in range(count)]


def noise(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def test_only_reference_rows_are_kept_and_no_more_than_the_bounds_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_images, "MOST", 12)
    rows = [*rows_of(20)[::-1], *rows_of(4, reference=False)]
    pixels = noise(len(rows))
    kept = ReferenceImages(rows)
    for start in range(0, len(rows), 5):  # in batches, in another order than the digests'
        kept.look(rows[start : start + 5], pixels[start : start + 5])
    table = kept.table().to_pydict()
    assert table["image_digest"] == [f"{at:064x}" for at in range(12)]
    assert all(is_thumbnail(image) and Image.open(io.BytesIO(image)).size == (96, 96) for image in table["image"])

    size = sum(len(image) for image in table["image"][:7])
    monkeypatch.setattr(reference_images, "MOST_BYTES", size)
    assert kept.table().to_pydict()["image_digest"] == table["image_digest"][:7]


def test_without_reference_rows_the_table_is_empty_and_has_its_columns() -> None:
    rows = rows_of(3, reference=False)
    kept = ReferenceImages(rows)
    kept.look(rows, noise(3))
    table = kept.table()
    assert (table.num_rows, table.column_names) == (0, ["image_digest", "image"])
