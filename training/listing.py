"""What images a folder or manifest lists, and with which labels, before any of them is read."""

from __future__ import annotations

import csv
import math
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from perennial.errors import InvalidDataset

Split = Literal["train", "validation", "test"]

_SPLIT_NAMES: Final[dict[str, Split]] = {
    "train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that is not used, and why."""

    location: str
    reason: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One image as listed, before its bytes were read."""

    location: str
    label: str
    split: Split | None
    weight: float = 1.0
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """Every label that was named, the images, and what is not an image of a class."""

    classes: frozenset[str]
    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...]


def list_folder(root: Path) -> Listing:
    """Class folders, or train/ and val/ of them. Hidden files are passed over, links followed.

    Raises:
        InvalidDataset: there are no class folders, or train/ stands alone.
    """
    folders = {path.name: path for path in _visible(root) if path.is_dir()}
    given = {name: folders[name] for name in _SPLIT_NAMES if name in folders}
    if "train" in given and len(given) > 1:
        roots: list[tuple[Path, Split | None]] = [(folder, _SPLIT_NAMES[name]) for name, folder in given.items()]
    elif "train" in folders and len(folders) == 1:
        raise InvalidDataset(
            f"{root} has train/ but neither val/ nor test/; add one, or give {root / 'train'} to have it split"
        )
    else:
        roots = [(root, None)]
    classes: set[str] = set()
    entries: list[Entry] = []
    skipped: list[Skipped] = []
    for folder, split in roots:
        for child in _visible(folder):
            if not child.is_dir():
                skipped.append(Skipped(printable(str(child)), "not in a class folder"))
                continue
            label = _label(child.name)
            classes.add(label)
            entries += [Entry(location, label, split) for location in _files(child)]
    if not classes:
        raise InvalidDataset(f"{root} has no class folders; put the images of each class into a folder of its own")
    return Listing(frozenset(classes), tuple(entries), tuple(skipped))


def list_manifest(path: Path) -> Listing:
    """The rows of a CSV or Parquet file with columns image, label[, split][, weight].

    Raises:
        InvalidDataset: it cannot be read, lacks a column, or has a split or weight that is not one.
    """
    records = list(_records(path))
    if not records:
        raise InvalidDataset(f"{path} has no rows")
    missing = [name for name in ("image", "label") if name not in records[0]]
    if missing:
        raise InvalidDataset(f"{path} has no column {' and no column '.join(missing)}; it needs image and label")
    classes: set[str] = set()
    entries: list[Entry] = []
    skipped: list[Skipped] = []
    for number, record in enumerate(records, start=1):
        image, label = _text(record["image"]), _label(_text(record["label"]))
        if not image or not label:
            skipped.append(Skipped(f"{path} row {number}", "no image" if not image else "no label"))
            continue
        named = _text(record.get("split")).lower()
        if named and named not in _SPLIT_NAMES:
            raise InvalidDataset(f"{path} row {number}: split {named!r} is not train, validation (val) or test")
        location = image if "://" in image else str(path.parent / image)
        classes.add(label)
        entries.append(Entry(location, label, _SPLIT_NAMES.get(named), _weight(record.get("weight"), path, number)))
    return Listing(frozenset(classes), tuple(entries), tuple(skipped))


def _records(path: Path) -> Iterator[dict[str, Any]]:
    kind = path.suffix.lower()
    try:
        if kind == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                yield from csv.DictReader(file)
        elif kind == ".parquet":
            from pyarrow import parquet

            yield from parquet.read_table(path).to_pylist()
        else:
            raise InvalidDataset(f"{path} is not a folder, nor a manifest ending in .csv or .parquet")
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are ValueErrors
        raise InvalidDataset(f"the manifest {path} cannot be read: {error}") from error


def _weight(value: Any, path: Path, number: int) -> float:
    text = _text(value)
    if not text:
        return 1.0
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise InvalidDataset(f"{path} row {number}: weight {text!r} is not a number above 0")
    return weight


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _label(name: str) -> str:
    # The same accented name has two spellings in Unicode, and file systems differ in which one they give.
    return unicodedata.normalize("NFC", name)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _files(folder: Path) -> Iterator[str]:
    """Every file below a folder that is not hidden, links followed, each folder once."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            yield from (os.path.join(parent, name) for name in sorted(names) if not name.startswith("."))
        seen.add(real)


def printable(text: str) -> str:
    """The same text where it is valid UTF-8, else with its other bytes escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
