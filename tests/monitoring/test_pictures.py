"""What a bundle shows of its reference images: JPEGs of a bounded size, none in an older bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from monitoring.pictures import reference_thumbnails
from perennial.bundle import Bundle
from perennial.errors import InvalidBundle
from perennial.thumbnails import thumbnail
from tests.monitoring.conftest import World, write_digits_bundle


@pytest.fixture
def bundle(tmp_path: Path, world: World) -> Bundle:
    return write_digits_bundle(tmp_path, "digits", world, pictured=True)


def test_a_bundle_with_thumbnails_has_them_and_an_older_one_none(bundle: Bundle, tmp_path: Path, world: World) -> None:
    assert set(reference_thumbnails(bundle)) == set(world.reference().scores.digests)
    assert reference_thumbnails(write_digits_bundle(tmp_path / "old", "digits", world)) == {}


def test_only_jpegs_of_a_bounded_size_are_shown(bundle: Bundle) -> None:
    jpeg = thumbnail(np.zeros((8, 8, 3), np.uint8))
    images = [jpeg, b"<svg onload=alert(1)>", jpeg + bytes(2**14), None, b""]
    assert bundle.reference_images is not None
    pq.write_table(
        pa.table({"image_digest": list("abcde"), "image": pa.array(images, pa.binary())}), bundle.reference_images
    )
    assert reference_thumbnails(bundle) == {"a": jpeg}


@pytest.mark.parametrize("wrong", ["bytes", "columns"])
def test_a_file_that_holds_something_else_is_said_so(bundle: Bundle, wrong: str) -> None:
    assert bundle.reference_images is not None
    if wrong == "bytes":
        bundle.reference_images.write_bytes(b"not parquet")
    else:
        pq.write_table(pa.table({"image_digest": ["a"]}), bundle.reference_images)
    with pytest.raises(InvalidBundle, match=r"images\.parquet cannot be read as thumbnails"):
        reference_thumbnails(bundle)
