"""Near-duplicates: what is one, what is not, and on which side of a split they are."""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from perennial.errors import InvalidImage
from perennial.images import ImageLimits
from training.datasets import LabelledImages, load
from training.duplicates import components, near_duplicates
from training.glance import glance

LIMITS = ImageLimits()


def picture(seed: int, size: tuple[int, int] = (150, 110)) -> Image.Image:
    """Soft blobs of colour with fine grain: as unlike any other as a photo."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(30, 200, (9, 12, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    grain = random.integers(-12, 13, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(coarse, dtype=np.int64) + grain, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def thumbnails(*images: bytes) -> list[bytes | None]:
    return [glance(data, LIMITS).thumbnail for data in images]


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "as a JPEG of quality 30": lambda image: encoded(image, "JPEG", quality=30),
    "as WebP": lambda image: encoded(image, "WEBP", quality=60),
    "half as large": lambda image: encoded(image.resize((75, 55)), "JPEG", quality=85),
    "squashed to a square": lambda image: encoded(image.resize((128, 128)), "JPEG", quality=85),
    "brightened": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.2), "JPEG", quality=90),
    "darkened": lambda image: encoded(ImageEnhance.Brightness(image).enhance(0.7)),
    "with more contrast": lambda image: encoded(ImageEnhance.Contrast(image).enhance(1.3)),
    "without colour": lambda image: encoded(image.convert("L")),
    "mirrored": lambda image: encoded(ImageOps.mirror(image), "JPEG", quality=80),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_known_however_it_was_saved(how: str) -> None:
    images = [encoded(picture(seed)) for seed in range(40)]
    pairs = near_duplicates(thumbnails(*images, *(COPIES[how](picture(seed)) for seed in range(8))))
    assert sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(at, 40 + at) for at in range(8)]
    assert set(pairs.mirrored.tolist()) == {how == "mirrored"}
    groups = components(pairs, 48)
    assert groups[:40].tolist() == list(range(40))
    assert groups[40:].tolist() == list(range(8))


def test_an_image_that_is_stored_turned_is_known_upright() -> None:
    stored = picture(0).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    stored.save(buffer, "JPEG", quality=90, exif=exif)
    look = glance(buffer.getvalue(), LIMITS)
    assert (look.metadata.width, look.metadata.height, look.metadata.exif) == (150, 110, True)
    assert len(near_duplicates([look.thumbnail, *thumbnails(encoded(picture(0)), encoded(picture(1)))])) == 1


def test_flat_images_are_no_copies_of_one_another() -> None:
    flat = [encoded(Image.new("RGB", (64, 64), (shade, shade, shade))) for shade in range(60, 90)]
    assert len(near_duplicates(thumbnails(*flat))) == 0


def test_one_drawing_in_two_colours_is_two_images() -> None:
    red, blue = Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(red).polygon([(10, 50), (20, 8), (58, 40)], fill=(255, 60, 60))
    ImageDraw.Draw(blue).polygon([(10, 50), (20, 8), (58, 40)], fill=(90, 100, 255))
    assert len(near_duplicates(thumbnails(encoded(red), encoded(blue)))) == 0
    assert len(near_duplicates(thumbnails(encoded(red), encoded(red, "JPEG", quality=90)))) == 1


def test_what_a_still_camera_always_sees_makes_no_two_images_alike() -> None:
    scene = picture(0)
    random = np.random.default_rng(0)
    shots = []
    for _ in range(60):
        shot = scene.copy()
        left, top = (int(value) for value in random.integers(0, 80, 2))
        ImageDraw.Draw(shot).ellipse((left, top, left + 22, top + 22), fill="white")
        shots.append(encoded(shot))
    found = near_duplicates(thumbnails(*shots))
    assert len(found) < 10  # discs that happen to lie in one place
    assert len(near_duplicates(thumbnails(*shots, encoded(Image.open(io.BytesIO(shots[7])), "JPEG")))) > len(found)


def test_pixels_that_cannot_be_decoded_lose_no_image() -> None:
    whole = encoded(picture(0), "JPEG", quality=90)
    look = glance(whole[: len(whole) // 2], LIMITS)
    assert look.thumbnail is None
    assert (look.metadata.width, look.metadata.format, look.metadata.quality) == (150, "JPEG", 90)
    assert len(near_duplicates([None, *thumbnails(whole, whole), None])) == 1
    with pytest.raises(InvalidImage):
        glance(b"nothing", LIMITS)


def test_no_two_real_photos_are_taken_for_copies_that_are_none(test_data: Path) -> None:
    photos = sorted((test_data / "hymenoptera").glob("*/*/*"))[:160]
    sketches = sorted((test_data / "pacs" / "sketch").glob("*/*"))[::6]
    steel = sorted((test_data / "neu_surface_defects").glob("*/*"))[::9]
    for paths in (photos, sketches, steel):
        assert len(near_duplicates([glance(path.read_bytes(), LIMITS).thumbnail for path in paths])) == 0


# --- on which side they are ------------------------------------------------------------------------------


def write(folder: Path, classes: dict[str, range]) -> Path:
    for label, seeds in classes.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            picture(seed).save(folder / label / f"{seed}.png")
    return folder


def read(folder: Path, seed: int = 0) -> LabelledImages:
    return load(str(folder), validation=0.2, test=0.3, seed=seed)


def copy(source: Path, target: Path, how: str) -> None:
    target.write_bytes(COPIES[how](Image.open(source).convert("RGB")))


def kinds(images: LabelledImages) -> list[str]:
    return [finding.kind for finding in images.findings]


def test_copies_of_held_out_images_are_not_trained_on_and_are_listed(tmp_path: Path) -> None:
    write(tmp_path / "train", {"a": range(10), "b": range(10, 20)})
    write(tmp_path / "val", {"a": range(20, 25), "b": range(25, 30)})
    for number, how in enumerate(("as a JPEG of quality 30", "half as large", "brightened", "mirrored")):
        copy(tmp_path / "val" / "a" / f"{20 + number}.png", tmp_path / "train" / "a" / f"copy-{number}.jpg", how)
    images = read(tmp_path)
    assert {Path(skip.location).name: skip.reason for skip in images.skipped} == {
        f"copy-{number}.jpg": f"a near-duplicate of {tmp_path}/val/a/{20 + number}.png, which is held out"
        for number in range(4)
    }
    assert len(images.rows) == 30
    assert kinds(images) == ["near_duplicates_left_out"]
    assert "4 images" in images.findings[0].message
    assert str(tmp_path / "train" / "a" / "copy-0.jpg") in images.findings[0].locations


def test_a_validation_image_that_is_a_copy_of_a_test_image_is_left_out(tmp_path: Path) -> None:
    for name, start in (("train", 0), ("val", 20), ("test", 40)):
        write(tmp_path / name, {"a": range(start, start + 6), "b": range(start + 6, start + 12)})
    copy(tmp_path / "test" / "a" / "40.png", tmp_path / "val" / "a" / "copy.jpg", "brightened")
    copy(tmp_path / "val" / "b" / "26.png", tmp_path / "train" / "b" / "copy.jpg", "brightened")
    images = read(tmp_path)
    assert {skip.location for skip in images.skipped} == {f"{tmp_path}/val/a/copy.jpg", f"{tmp_path}/train/b/copy.jpg"}
    assert Counter(row.split for row in images.rows) == {"train": 12, "validation": 12, "test": 12}


@pytest.mark.parametrize("seed", range(4))
def test_near_duplicates_never_straddle_a_split_that_is_made_here(seed: int, tmp_path: Path) -> None:
    write(tmp_path, {"a": range(15), "b": range(15, 30)})
    for number in range(6):
        label = "a" if number < 3 else "b"
        source = tmp_path / label / f"{number if number < 3 else number + 20}.png"
        for how in ("half as large", "darkened", "mirrored"):
            copy(source, source.with_name(f"{source.stem} {how}.jpg"), how)
    images = read(tmp_path, seed)
    assert len(images.rows) == 48
    side = {row.digest: row.split for row in images.rows}
    members = Counter(images.groups.values())
    assert sorted(members.values()) == [4] * 6
    for group in members:
        assert len({side[digest] for digest, own in images.groups.items() if own == group}) == 1
    for label in ("a", "b"):
        counts = Counter(row.split for row in images.rows if row.label == label)
        assert abs(counts["test"] - 7) <= 3
        assert abs(counts["validation"] - 5) <= 3
    assert kinds(images) == ["near_duplicates"]


def test_groups_move_with_the_folder_and_with_nothing_else(tmp_path: Path) -> None:
    first = write(tmp_path / "first", {"a": range(12), "b": range(12, 24)})
    copy(first / "a" / "3.png", first / "a" / "copy.jpg", "half as large")
    second = tmp_path / "second"
    shutil.copytree(first, second)
    for at, path in enumerate(sorted(second.rglob("*.*"), reverse=True)):
        os.rename(path, path.with_name(f"renamed-{at}{path.suffix}"))
    one, other = read(first), read(second)
    assert {row.digest: row.split for row in one.rows} == {row.digest: row.split for row in other.rows}
    assert one.groups == other.groups
    picture(99).save(second / "a" / "new.png")
    after = {row.digest: row.split for row in read(second).rows}
    assert sum(after[row.digest] != row.split for row in one.rows) <= 3


def test_copies_with_two_labels_are_on_one_side_and_said_to_disagree(tmp_path: Path) -> None:
    write(tmp_path, {"a": range(12), "b": range(12, 24)})
    copy(tmp_path / "a" / "3.png", tmp_path / "b" / "copy.jpg", "half as large")
    images = read(tmp_path)
    assert len({row.split for row in images.rows if row.digest in images.groups}) == 1
    assert kinds(images) == ["near_duplicates_with_other_labels", "near_duplicates"]
    assert "'a'" in images.findings[0].message
    assert "'b'" in images.findings[0].message


def test_a_class_of_one_scene_is_split_all_the_same_and_a_finding_says_so(tmp_path: Path) -> None:
    write(tmp_path, {"a": range(1), "b": range(12, 24)})
    for number, (name, how) in enumerate(COPIES.items()):
        (tmp_path / "a" / f"{number} {name}.jpg").write_bytes(how(picture(0)))
    images = read(tmp_path)
    assert {row.split for row in images.rows if row.label == "a"} == {"train", "validation", "test"}
    assert kinds(images) == ["near_duplicates", "near_duplicates_across_splits"]
    assert "class 'a'" in images.findings[1].message


def test_a_class_that_would_be_mostly_gone_keeps_its_copies_and_a_finding_says_so(tmp_path: Path) -> None:
    write(tmp_path / "train", {"b": range(10, 20)})
    write(tmp_path / "val", {"a": range(20, 26), "b": range(26, 32)})
    (tmp_path / "train" / "a").mkdir()
    for seed in range(20, 26):
        copy(tmp_path / "val" / "a" / f"{seed}.png", tmp_path / "train" / "a" / f"{seed}.jpg", "brightened")
    images = read(tmp_path)
    assert not images.skipped
    assert kinds(images) == ["near_duplicates_across_splits"]
    assert "6 images of 'a'" in images.findings[0].message


def test_clean_data_are_not_accused(shapes: Path) -> None:
    images = read(shapes)
    assert not images.findings
    assert not images.groups
    assert set(images.metadata) == {row.digest for row in images.rows}
