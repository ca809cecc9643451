from __future__ import annotations

import csv
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from perennial.errors import InvalidDataset, InvalidSettings
from perennial.images import ImageLimits
from perennial.progress import Step
from training.datasets import LabelledImages, load, read_bytes, without


def read(folder: Path, **changes: float) -> LabelledImages:
    options = {"validation": 0.2, "test": 0.3, "seed": 0} | changes
    return load(str(folder), validation=options["validation"], test=options["test"], seed=int(options["seed"]))


def sides(images: LabelledImages) -> dict[str, str]:
    return {row.digest: row.split for row in images.rows}


def test_a_folder_of_class_folders_is_split_within_each_class(shapes: Path) -> None:
    images = read(shapes)
    assert images.classes == ("disc", "square", "stripes")
    assert not images.skipped
    for label in images.classes:
        counts = Counter(row.split for row in images.rows if row.label == label)
        assert counts == {"train": 10, "validation": 4, "test": 6}
    assert all(row.reference == (row.split != "train") for row in images.rows)
    assert {row.weight for row in images.rows} == {1.0}


def test_splits_depend_on_seed_and_bytes_only(shapes: Path, tmp_path: Path) -> None:
    first = read(shapes)
    moved = tmp_path / "moved"
    shutil.copytree(shapes, moved)
    for at, path in enumerate(sorted(moved.rglob("*.png"), reverse=True)):
        path.rename(path.with_name(f"renamed-{at}.png"))
    second = read(moved)
    assert sides(first) == sides(second)
    assert [row.digest for row in first.rows] == [row.digest for row in second.rows]
    assert first.fingerprint == second.fingerprint
    assert sides(first) != sides(read(shapes, seed=1))


def test_few_images_change_sides_when_one_is_added(shapes: Path, tmp_path: Path) -> None:
    grown = tmp_path / "grown"
    shutil.copytree(shapes, grown)
    Image.new("RGB", (20, 20), "teal").save(grown / "disc" / "new.png")
    before, after = sides(read(shapes)), sides(read(grown))
    assert sum(after[digest] != split for digest, split in before.items()) <= 2
    assert read(shapes).fingerprint != read(grown).fingerprint


@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test"])
def test_with_train_and_one_more_folder_the_other_is_the_test_split(
    held_out: str, tmp_path: Path, write_shapes: Callable[..., Path]
) -> None:
    write_shapes(tmp_path / "train", count=10, seed=1)
    write_shapes(tmp_path / held_out, count=4, seed=2)
    images = read(tmp_path)
    for row in images.rows:
        assert (row.split == "test") == (f"/{held_out}/" in row.location)
    assert len(images.of("test")) == 12
    assert len(images.of("validation")) == 6
    assert len(images.of("train")) == 24


def test_three_given_splits_are_kept(tmp_path: Path, write_shapes: Callable[..., Path]) -> None:
    for seed, name in enumerate(("train", "val", "test")):
        write_shapes(tmp_path / name, count=3, seed=seed)
    images = read(tmp_path)
    assert Counter(row.split for row in images.rows) == {"train": 9, "validation": 9, "test": 9}


def test_a_second_copy_is_kept_out_and_never_straddles(tmp_path: Path, write_shapes: Callable[..., Path]) -> None:
    write_shapes(tmp_path / "train", count=8, seed=1)
    write_shapes(tmp_path / "val", count=4, seed=2)
    leaked = tmp_path / "val" / "disc" / "000.png"
    shutil.copy(leaked, tmp_path / "train" / "disc" / "leak.png")
    shutil.copy(tmp_path / "train" / "disc" / "001.png", tmp_path / "train" / "disc" / "again.png")
    images = read(tmp_path)
    assert len({row.digest for row in images.rows}) == len(images.rows) == 36
    reasons = {Path(skip.location).name: skip.reason for skip in images.skipped}
    assert reasons["leak.png"] == f"the same image as {leaked}"
    assert set(reasons) == {"leak.png", "again.png"} or set(reasons) == {"leak.png", "001.png"}


def test_an_image_under_two_labels_is_not_used_and_both_places_are_named(
    tmp_path: Path, write_shapes: Callable[..., Path]
) -> None:
    write_shapes(tmp_path, count=6)
    one, other = tmp_path / "disc" / "000.png", tmp_path / "square" / "copy.png"
    shutil.copy(one, other)
    images = read(tmp_path)
    reasons = {skip.location: skip.reason for skip in images.skipped}
    assert set(reasons) == {str(one), str(other)}
    assert "labelled 'disc' here and 'square' at" in reasons[str(one)]
    assert str(one) in reasons[str(other)]
    assert not {str(one), str(other)} & {row.location for row in images.rows}


def test_corrupt_files_among_good_ones_are_listed_and_the_rest_is_used(
    tmp_path: Path, write_shapes: Callable[..., Path]
) -> None:
    write_shapes(tmp_path, count=6)
    (tmp_path / "disc" / "notes.txt").write_text("taken in May")
    (tmp_path / "disc" / "empty.jpg").write_bytes(b"")
    (tmp_path / "square" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    (tmp_path / "square" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "README.md").write_text("# Shapes")
    images = read(tmp_path)
    assert len(images.rows) == 18
    assert {Path(skip.location).name for skip in images.skipped} == {
        "notes.txt",
        "empty.jpg",
        "broken.png",
        "README.md",
    }
    assert all(skip.reason for skip in images.skipped)


def test_what_is_not_a_regular_file_is_neither_waited_for_nor_read(
    tmp_path: Path, write_shapes: Callable[..., Path]
) -> None:
    write_shapes(tmp_path, count=6)
    os.mkfifo(tmp_path / "disc" / "pipe.jpg")
    os.symlink("/dev/zero", tmp_path / "square" / "device.png")
    images = read(tmp_path)
    assert len(images.rows) == 18
    assert {Path(skip.location).name: skip.reason for skip in images.skipped} == {
        "pipe.jpg": "not a regular file",
        "device.png": "not a regular file",
    }


def test_a_name_that_no_file_can_have_is_skipped(tmp_path: Path, write_shapes: Callable[..., Path]) -> None:
    write_shapes(tmp_path, count=6)
    lines = ["image,label", *(f"{path},{path.parent.name}" for path in sorted(tmp_path.glob("*/*.png")))]
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("\n".join([*lines, "a\0b.png,disc"]) + "\n", "utf-8")
    images = read(manifest)
    assert len(images.rows) == len(lines) - 1
    assert len(images.skipped) == 1


def test_files_over_the_limits_are_skipped(tmp_path: Path, write_shapes: Callable[..., Path]) -> None:
    write_shapes(tmp_path, count=4)
    Image.new("L", (4000, 4000)).save(tmp_path / "disc" / "large.png")
    (tmp_path / "disc" / "heavy.bmp").write_bytes(b"BM" + b"\0" * 60_000)
    limits = ImageLimits(max_bytes=50_000, max_pixels=1_000_000)
    images = load(str(tmp_path), validation=0.2, test=0.2, seed=0, limits=limits)
    reasons = {Path(skip.location).name: skip.reason for skip in images.skipped}
    assert "16,000,000 pixels" in reasons["large.png"]
    assert "60,002 bytes" in reasons["heavy.bmp"]


def test_every_mode_and_non_ascii_names_are_read(tmp_path: Path) -> None:
    modes = {"RGBA": "png", "L": "png", "P": "gif", "CMYK": "jpg", "I;16": "png", "LA": "png"}
    for shade, label in enumerate(("Füchse 🦊", "кошки")):
        folder = tmp_path / label / "sub folder"
        folder.mkdir(parents=True)
        for at, (mode, suffix) in enumerate(modes.items()):
            image = Image.new("L", (20, 16), 40 * at + 10 * shade)
            image = Image.new("I;16", (20, 16), 9000 * at + shade) if mode == "I;16" else image.convert(mode)
            image.save(folder / f"bild-ä-{mode.replace(';', '')}.{suffix}")
    images = read(tmp_path)
    assert images.classes == ("Füchse 🦊", "кошки")
    assert len(images.rows) == 12
    assert not images.skipped


def test_one_label_in_two_spellings_of_unicode_is_one_class(tmp_path: Path) -> None:
    with (tmp_path / "list.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "label"])
        for at in range(8):
            Image.new("RGB", (9, 9), (at, at, at)).save(tmp_path / f"{at}.png")
            table.writerow([f"{at}.png", "tea" if at < 4 else "caf\u00e9" if at % 2 else "cafe\u0301"])
    assert read(tmp_path / "list.csv").classes == ("café", "tea")


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS refuses such names itself")
def test_a_name_that_is_not_utf_8_is_skipped(tmp_path: Path, write_shapes: Callable[..., Path]) -> None:
    write_shapes(tmp_path, count=4)
    source = (tmp_path / "disc" / "000.png").read_bytes()
    with open(os.path.join(os.fsencode(tmp_path), b"disc", b"bad-\xff.png"), "wb") as file:
        file.write(source + b"\0")
    (skip,) = read(tmp_path).skipped
    assert "UTF-8" in skip.reason
    assert skip.location.encode("utf-8")


def test_a_link_that_leads_back_up_is_walked_once(tmp_path: Path, write_shapes: Callable[..., Path]) -> None:
    write_shapes(tmp_path, count=4)
    (tmp_path / "disc" / "loop").symlink_to(tmp_path / "disc", target_is_directory=True)
    images = read(tmp_path)
    assert len(images.rows) == 12


# --- what cannot be used ---------------------------------------------------------------------------------


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match=r"there is nothing at .*nowhere"):
        read(tmp_path / "nowhere")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match="no class folders"):
        read(tmp_path)


def test_one_class_only_is_refused(tmp_path: Path, write_shapes: Callable[..., Path]) -> None:
    write_shapes(tmp_path, classes=("disc",))
    with pytest.raises(InvalidDataset, match="one class only, 'disc'"):
        read(tmp_path)


def test_a_class_with_one_image_is_named_with_what_it_needs(tmp_path: Path, write_shapes: Callable[..., Path]) -> None:
    write_shapes(tmp_path, count=5)
    for path in sorted((tmp_path / "square").iterdir())[1:]:
        path.unlink()
    with pytest.raises(InvalidDataset, match=r"class 'square' has 1 readable image .* needs at least 3 \(1 listed\)"):
        read(tmp_path)


def test_a_class_whose_files_are_all_corrupt_is_named(tmp_path: Path, write_shapes: Callable[..., Path]) -> None:
    write_shapes(tmp_path, count=5)
    for path in (tmp_path / "square").iterdir():
        path.write_bytes(b"not an image")
    with pytest.raises(InvalidDataset, match=r"class 'square' has 0 readable images .*\(5 listed\)"):
        read(tmp_path)


def test_nothing_readable_is_refused_with_an_example(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "x.jpg").write_bytes(b"nothing")
    with pytest.raises(InvalidDataset, match=r"holds no image that can be read \(2 skipped, such as .*x.jpg"):
        read(tmp_path)


def test_train_without_a_held_out_folder_is_explained(tmp_path: Path, write_shapes: Callable[..., Path]) -> None:
    write_shapes(tmp_path / "train", count=3)
    with pytest.raises(InvalidDataset, match="neither val/ nor test/"):
        read(tmp_path)


def test_a_class_that_is_only_held_out_is_refused(tmp_path: Path, write_shapes: Callable[..., Path]) -> None:
    write_shapes(tmp_path / "train", classes=("disc", "square"), count=5, seed=1)
    write_shapes(tmp_path / "val", classes=("disc", "square", "star"), count=3, seed=2)
    with pytest.raises(InvalidDataset, match="class 'star' has 0 readable images to train on"):
        read(tmp_path)


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.2), (0.2, 0.0), (0.6, 0.4)])
def test_shares_that_leave_a_split_empty_are_refused(shapes: Path, validation: float, test: float) -> None:
    with pytest.raises(InvalidSettings, match="together below 1"):
        read(shapes, validation=validation, test=test)


# --- manifests -------------------------------------------------------------------------------------------


def write_manifest(shapes: Path, path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    return path


def manifest_rows(shapes: Path, folder: Path) -> list[dict[str, object]]:
    shutil.copytree(shapes, folder / "images")
    return [
        {"image": f"images/{path.parent.name}/{path.name}", "label": path.parent.name}
        for path in sorted((folder / "images").rglob("*.png"))
    ]


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_a_manifest_gives_the_same_images_as_the_folder(name: str, shapes: Path, tmp_path: Path) -> None:
    rows = manifest_rows(shapes, tmp_path)
    images = read(write_manifest(shapes, tmp_path / name, rows))
    assert images.fingerprint == read(shapes).fingerprint
    assert sides(images) == sides(read(shapes))


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_a_manifests_splits_and_weights_are_kept(name: str, shapes: Path, tmp_path: Path) -> None:
    rows = manifest_rows(shapes, tmp_path)
    for at, row in enumerate(rows):
        row |= {"split": ("train", "val", "test")[at % 3], "weight": 0.5 + at % 2}
    images = read(write_manifest(shapes, tmp_path / name, rows))
    by_location = {row.location: row for row in images.rows}
    names = {"train": "train", "val": "validation", "test": "test"}
    for row in rows:
        found = by_location[str(tmp_path / str(row["image"]))]
        assert (found.split, found.weight) == (names[str(row["split"])], row["weight"])


def test_a_manifest_with_train_and_val_holds_val_out(shapes: Path, tmp_path: Path) -> None:
    rows = manifest_rows(shapes, tmp_path)
    for at, row in enumerate(rows):
        row["split"] = "val" if at % 4 == 0 else "train"
    images = read(write_manifest(shapes, tmp_path / "list.csv", rows))
    assert len(images.of("test")) == 15
    assert len(images.of("validation")) == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "holdout"}, "row 2: split 'holdout' is not"),
        ({"weight": "-1"}, "row 2: weight '-1' is not a number above 0"),
        ({"weight": "heavy"}, "row 2: weight 'heavy'"),
        ({"weight": "nan"}, "row 2: weight 'nan'"),
    ],
)
def test_a_bad_cell_is_named_by_its_row(change: dict[str, str], message: str, shapes: Path, tmp_path: Path) -> None:
    column = next(iter(change))
    rows = [{**row, column: {"split": "train", "weight": "1"}[column]} for row in manifest_rows(shapes, tmp_path)]
    rows[1] |= change
    with pytest.raises(InvalidDataset, match=message):
        read(write_manifest(shapes, tmp_path / "list.csv", rows))


def test_some_rows_without_a_split_are_refused(shapes: Path, tmp_path: Path) -> None:
    rows = [{**row, "split": "train"} for row in manifest_rows(shapes, tmp_path)]
    rows[0]["split"] = ""
    rows[1]["split"] = "test"
    with pytest.raises(InvalidDataset, match="1 images have no split"):
        read(write_manifest(shapes, tmp_path / "list.csv", rows))


def test_a_manifest_without_its_columns_is_refused(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match="no column label"):
        read(write_manifest(shapes, tmp_path / "list.csv", [{"image": "a.png", "class": "a"}]))
    (tmp_path / "empty.csv").write_text("image,label\n")
    with pytest.raises(InvalidDataset, match="no rows"):
        read(tmp_path / "empty.csv")


@pytest.mark.parametrize("name", ["list.csv", "list.parquet", "list.json"])
def test_a_manifest_that_is_not_one_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe\x00\x01 nonsense")
    with pytest.raises(InvalidDataset, match=name):
        read(tmp_path / name)


def test_missing_files_and_labels_of_a_manifest_are_skipped(shapes: Path, tmp_path: Path) -> None:
    rows = manifest_rows(shapes, tmp_path)
    rows += [{"image": "images/none.png", "label": "disc"}, {"image": "images/disc/000.png", "label": ""}]
    images = read(write_manifest(shapes, tmp_path / "list.csv", rows))
    assert len(images.rows) == 60
    assert [skip.reason.split(":")[0] for skip in images.skipped] == ["no label", "cannot be read"]


# --- using them ------------------------------------------------------------------------------------------


def test_bytes_that_changed_since_are_refused(tmp_path: Path, write_shapes: Callable[..., Path]) -> None:
    row = read(write_shapes(tmp_path, count=4)).rows[0]
    assert read_bytes(row) == Path(row.location).read_bytes()
    Image.new("RGB", (8, 8)).save(row.location)
    with pytest.raises(InvalidDataset, match="was changed while it was in use"):
        read_bytes(row)


def test_images_by_url_are_read(tmp_path: Path, shapes: Path) -> None:
    rows = [{**row, "image": f"file://{tmp_path}/{row['image']}"} for row in manifest_rows(shapes, tmp_path)]
    images = read(write_manifest(shapes, tmp_path / "list.csv", rows))
    assert images.rows[0].location.startswith("file://")
    assert read_bytes(images.rows[0])
    assert images.fingerprint == read(shapes).fingerprint


def test_images_found_corrupt_later_are_taken_out(shapes: Path) -> None:
    images = read(shapes)
    gone = images.of("train")[0]
    rest = without(images, {gone.digest: "cut short"})
    assert gone not in rest.rows
    assert [(skip.location, skip.reason) for skip in rest.skipped] == [(gone.location, "cut short")]
    of_disc = {row.digest: "cut short" for row in images.rows if row.label == "disc"}
    with pytest.raises(InvalidDataset, match=r"class 'disc' has no image left to train on.*cut short"):
        without(images, of_disc)


def test_reading_reports_how_far_it_is(shapes: Path) -> None:
    steps: list[Step] = []
    load(str(shapes), validation=0.2, test=0.2, seed=0, progress=steps.append)
    assert [step.done for step in steps] == list(range(1, 61))
    assert {(step.stage, step.total) for step in steps} == {("reading images", 60)}
