"""A retrain decodes no original image that was looked at before, and finds the same about all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from perennial.bundle import Bundle
from perennial.images import ImageLimits
from perennial.settings import Settings
from training import datasets, glance_cache
from training.datasets import LabelledImages
from training.glance_cache import recall, remember
from training.material import original_data

LIMITS = ImageLimits()


@pytest.fixture
def mixed(tmp_path: Path, write_shapes: Callable[..., Path]) -> Path:
    """Several formats and modes, one of them with EXIF, and one file whose pixels cannot be decoded."""
    folder = write_shapes(tmp_path / "data", classes=("disc", "square"), count=8)
    first, second, third, fourth = sorted((folder / "disc").glob("*.png"))[:4]
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    Image.open(first).save(first.with_suffix(".jpg"), quality=77, exif=exif)
    Image.open(second).convert("LA").save(second)
    Image.open(third).convert("P").save(third.with_suffix(".gif"))
    fourth.write_bytes(fourth.read_bytes()[:200])
    for path in (first, third):
        path.unlink()
    return folder


def read(folder: Path, **options: object) -> LabelledImages:
    return datasets.load(str(folder), validation=0.2, test=0.2, seed=0, keep_thumbnails=True, **options)  # type: ignore[arg-type]


def test_what_is_remembered_is_recalled_as_it_was(mixed: Path, tmp_path: Path) -> None:
    images = read(mixed)
    remember(tmp_path, images)
    remember(tmp_path, images)
    known = recall(tmp_path, [*images.metadata, "00" * 32], LIMITS)
    undecodable = [digest for digest, thumbnail in images.thumbnails.items() if thumbnail is None]
    assert len(undecodable) == 1
    assert known.keys() == images.thumbnails.keys() - undecodable
    assert {digest: look.thumbnail for digest, look in known.items()} == {
        digest: thumbnail for digest, thumbnail in images.thumbnails.items() if thumbnail is not None
    }
    assert all(look.metadata == images.metadata[digest] for digest, look in known.items())
    assert {look.metadata.format for look in known.values()} == {"PNG", "JPEG", "GIF"}
    assert {77, None} == {look.metadata.quality for look in known.values()}
    again = read(mixed, known=known)
    assert again == images
    assert again.thumbnails == images.thumbnails


def test_what_is_over_the_limits_by_now_is_looked_at_again_and_refused(mixed: Path, tmp_path: Path) -> None:
    images = read(mixed)
    remember(tmp_path, images)
    small = ImageLimits(max_pixels=100)
    assert recall(tmp_path, list(images.metadata), small) == {}
    assert recall(tmp_path, list(images.metadata), ImageLimits(max_bytes=10)) == {}


def test_a_damaged_cache_is_made_anew(mixed: Path, tmp_path: Path) -> None:
    images = read(mixed)
    remember(tmp_path, images)
    [vectors] = tmp_path.glob("glances/*/vectors.f32")
    data = bytearray(vectors.read_bytes())
    data[1000] ^= 1
    vectors.write_bytes(data)
    assert recall(tmp_path, list(images.metadata), LIMITS) == {}
    remember(tmp_path, images)
    assert recall(tmp_path, list(images.metadata), LIMITS)


def test_a_retrain_looks_once_at_each_original_image(
    shape_bundle: Bundle, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    glance = datasets.glance
    monkeypatch.setattr(datasets, "glance", lambda *given: looked.append(1) or glance(*given))
    first = original_data(shape_bundle, settings, LIMITS)
    assert len(looked) == len(first.rows)
    again = original_data(shape_bundle, settings, LIMITS)
    assert len(looked) == len(first.rows)
    assert again == first
    assert again.thumbnails == first.thumbnails
    monkeypatch.setattr(glance_cache, "_EDITION", glance_cache._EDITION + 1)
    assert original_data(shape_bundle, settings, LIMITS) == first
    assert len(looked) == 2 * len(first.rows)
