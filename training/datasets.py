"""Labelled images: a folder of class folders, a folder with train/ and val/, or a manifest.

A split is fixed by (seed, digest): it is the same wherever the folder lies, and few images change sides when
others come or go. Near-duplicates are on one side of it.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import fsspec

from perennial.bundle import Finding
from perennial.errors import InvalidDataset, InvalidImage, InvalidSettings
from perennial.images import ImageHeader, ImageLimits
from perennial.progress import IMAGES, Progress, Step, silent
from perennial.storage import sha256
from training.allocator import give_back_freed_memory
from training.duplicates import near_duplicates
from training.glance import Glance, Metadata, glance
from training.listing import Entry, Skipped, Split, list_folder, list_manifest, printable
from training.splitting import HELD_OUT_FIRST, assign, leave_out

__all__ = ["DEFAULT_LIMITS", "LabelledImages", "Row", "Skipped", "Split", "load", "read_bytes", "without"]

DEFAULT_LIMITS: Final = ImageLimits()

_READERS: Final = 8  # reading waits for the disk more than for the processor
_WAITING: Final = 1024  # images that they have before them


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled image. `location` is a path on this machine or an fsspec URL, `digest` the sha256 of its bytes;
    `reference` rows go into the bundle's reference. `header` is what the file says of itself (None: nobody asked)."""

    location: str
    label: str
    digest: str
    split: Split
    weight: float = 1.0
    origin: Literal["original", "capture"] = "original"
    reference: bool = False
    header: ImageHeader | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """What a model is trained and judged on. Rows are ordered by digest.

    `groups` names the group of each image that has near-duplicates, and `metadata` has what each file says of itself,
    both by digest; captures are in neither. `findings` are what a person should look at. `thumbnails` are by digest,
    where they were asked for; None of an image whose pixels cannot be decoded.
    """

    location: str
    classes: tuple[str, ...]
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    groups: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Metadata] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    thumbnails: Mapping[str, bytes | None] = field(default_factory=dict, compare=False, repr=False)

    @property
    def fingerprint(self) -> str:
        """sha256 over every image's digest and label: the same images with the same labels, wherever they lie."""
        lines = sorted(f"{row.digest} {row.label}\n" for row in self.rows)
        return sha256("".join(lines).encode())

    def of(self, split: Split) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.split == split)


def load(
    data: str,
    *,
    validation: float,
    test: float,
    seed: int,
    limits: ImageLimits = DEFAULT_LIMITS,
    progress: Progress = silent,
    keep_thumbnails: bool = False,
    known: Mapping[str, Glance] | None = None,
) -> LabelledImages:
    """Read a labelled folder or manifest.

    Where no split is given, images are ranked within their class by a hash of (seed, digest) and the first
    shares become test and validation. With train/ and val/ (or test/) only, the latter is the test split and
    validation is cut from train. A file that cannot be read is skipped and listed; so is a second copy of an
    image, and every copy of an image that carries two labels. Near-duplicates are kept on one side of the split; where
    it was given, those of held-out images are skipped and listed (`training.splitting` has the exceptions).

    Args:
        data: a folder of class folders; a folder with train/ and val/, valid/, validation/ or test/ of class folders;
            or a .csv or .parquet file with columns image, label[, split][, weight], images relative to it.
        validation, test: shares of the images, in 0..1.
        keep_thumbnails: for whoever looks for near-duplicates of these images among others; a kilobyte each.
        known: by digest, what of these images need not be looked at again.

    Raises:
        InvalidDataset: nothing there, one class only, or a class with too few readable images.
        InvalidSettings: the shares leave nothing to train on.
    """
    if validation <= 0 or test <= 0 or validation + test >= 1:
        raise InvalidSettings(
            f"train.validation ({validation:g}) and train.test ({test:g}) must be above 0 and together below 1"
        )
    path = Path(data).expanduser().absolute()
    if path.is_dir():
        try:
            listing = list_folder(path)
        except OSError as error:
            raise InvalidDataset(f"{path} cannot be listed: {error}") from error
    elif path.is_file():
        listing = list_manifest(path)
    else:
        raise InvalidDataset(f"there is nothing at {path}; give a folder with one folder a class, or a manifest")
    readable, glances, unreadable = _read(listing.entries, limits, known or {}, progress)
    kept, repeated = _without_repeats(readable)
    skipped = [*listing.skipped, *unreadable, *repeated]
    if not kept:
        first = f", such as {skipped[0].location}: {skipped[0].reason}" if skipped else ""
        raise InvalidDataset(f"{path} holds no image that can be read ({len(skipped)} skipped{first})")
    listed = Counter(dict.fromkeys(listing.classes, 0))
    listed.update(entry.label for entry in listing.entries)
    if len(listed) < 2:
        raise InvalidDataset(f"{path} has one class only, {next(iter(listed))!r}; a classifier needs two or more")
    entries = _check_given(path, kept)
    pairs = near_duplicates([glances[entry.digest].thumbnail for entry in entries])
    entries, pairs, copies, findings = leave_out(entries, pairs)
    assigned = assign(entries, pairs, validation=validation, test=test, seed=seed, listed=listed)
    rows = [
        _row(entry, assigned.splits[entry.digest], glances[entry.digest].metadata)
        for entry in sorted(entries, key=lambda entry: entry.digest)
    ]
    images = LabelledImages(
        str(path),
        tuple(sorted(listed)),
        tuple(rows),
        tuple(skipped + copies),
        assigned.groups,
        {row.digest: glances[row.digest].metadata for row in rows},
        (*findings, *assigned.findings),
        {row.digest: glances[row.digest].thumbnail for row in rows} if keep_thumbnails else {},
    )
    _require(images)
    del glances, pairs
    give_back_freed_memory()
    return images


def read_bytes(row: Row) -> bytes:
    """The image's bytes, the ones that were listed.

    Raises:
        InvalidDataset: they cannot be read, or are others than when the data was listed.
    """
    data = _read_location(row.location)
    if sha256(data) != row.digest:
        raise InvalidDataset(f"{row.location} was changed while it was in use; start again")
    return data


def without(images: LabelledImages, failures: Mapping[str, str]) -> LabelledImages:
    """The same images without those that turned out to be corrupt.

    Args:
        failures: digest -> reason.

    Raises:
        InvalidDataset: a class has too few images left.
    """
    if not failures:
        return images
    skipped = [Skipped(row.location, failures[row.digest]) for row in images.rows if row.digest in failures]
    rows = tuple(row for row in images.rows if row.digest not in failures)
    rest = replace(images, rows=rows, skipped=images.skipped + tuple(skipped))
    _require(rest)
    return rest


# --- reading ---------------------------------------------------------------------------------------------


def _read(
    entries: Sequence[Entry], limits: ImageLimits, known: Mapping[str, Glance], progress: Progress
) -> tuple[list[Entry], dict[str, Glance], list[Skipped]]:
    kept: list[Entry] = []
    glances: dict[str, Glance] = {}
    skipped: list[Skipped] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for done, found in enumerate(_inspected(pool, entries, limits, known), start=1):
            if isinstance(found, Skipped):
                skipped.append(found)
            else:
                entry, look = found
                kept.append(entry)
                glances[entry.digest] = look
            progress(Step("reading images", done, len(entries), IMAGES))
    return kept, glances, skipped


def _inspected(
    pool: ThreadPoolExecutor, entries: Sequence[Entry], limits: ImageLimits, known: Mapping[str, Glance]
) -> Iterator[tuple[Entry, Glance] | Skipped]:
    # `map` makes all its futures at once, each larger than what it will hold.
    for start in range(0, len(entries), _WAITING):
        yield from pool.map(lambda entry: _inspect(entry, limits, known), entries[start : start + _WAITING])


def _inspect(entry: Entry, limits: ImageLimits, known: Mapping[str, Glance]) -> tuple[Entry, Glance] | Skipped:
    if printable(entry.location) != entry.location:
        return Skipped(printable(entry.location), "the file's name is not valid UTF-8; rename it")
    try:
        if "://" not in entry.location:
            found = os.stat(entry.location)
            if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, a device read without end
                return Skipped(entry.location, "not a regular file")
            if found.st_size > limits.max_bytes:
                return Skipped(entry.location, f"{found.st_size:,} bytes; at most {limits.max_bytes:,} are read")
        data = _read_location(entry.location)
        digest = sha256(data)
        look = known.get(digest) or glance(data, limits)
    except InvalidImage as error:
        return Skipped(entry.location, str(error))
    except (InvalidDataset, OSError, ValueError) as error:
        return Skipped(entry.location, f"cannot be read: {error}")
    return replace(entry, digest=digest), look


def _read_location(location: str) -> bytes:
    try:
        if "://" not in location:
            return Path(location).read_bytes()
        with fsspec.open(location, "rb") as file:
            return bytes(file.read())
    except Exception as error:  # each filesystem raises its own
        raise InvalidDataset(f"{location} cannot be read: {error}") from error


def _without_repeats(entries: Sequence[Entry]) -> tuple[list[Entry], list[Skipped]]:
    # Of equal images the copy that is held out the most is kept: a test image must not also be trained on.
    by_digest: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: (entry.digest, HELD_OUT_FIRST[entry.split], entry.location)):
        by_digest.setdefault(entry.digest, []).append(entry)
    kept: list[Entry] = []
    skipped: list[Skipped] = []
    for copies in by_digest.values():
        first = copies[0]
        other = next((copy for copy in copies if copy.label != first.label), None)
        if other is None:
            kept.append(first)
            skipped += [Skipped(copy.location, f"the same image as {first.location}") for copy in copies[1:]]
            continue
        for copy in copies:
            clash = other if copy.label == first.label else first
            reason = f"labelled {copy.label!r} here and {clash.label!r} at {clash.location}; neither is used"
            skipped.append(Skipped(copy.location, reason))
    return kept, skipped


# --- splitting -------------------------------------------------------------------------------------------


def _check_given(path: Path, entries: Sequence[Entry]) -> list[Entry]:
    """Entries with either no split at all, or train and test ones, with or without validation."""
    given = Counter(entry.split for entry in entries)
    if set(given) == {None}:
        return list(entries)
    if None in given:
        raise InvalidDataset(f"{path}: {given[None]} images have no split and others do; give all of them one, or none")
    if not given["train"] or not (given["validation"] or given["test"]):
        raise InvalidDataset(f"{path} needs images in train and in val or test; it has {dict(given)}")
    if not given["test"]:
        return [replace(entry, split="test") if entry.split == "validation" else entry for entry in entries]
    return list(entries)


def _row(entry: Entry, split: Split, header: ImageHeader) -> Row:
    return Row(
        entry.location, entry.label, entry.digest, split, entry.weight, reference=split != "train", header=header
    )


def _require(images: LabelledImages) -> None:
    """Every class can be trained on, and there is something to validate and to test on."""
    trained = {row.label for row in images.of("train")}
    for label in images.classes:
        if label not in trained:
            raise InvalidDataset(f"class {label!r} has no image left to train on; the skipped ones: {_some(images)}")
    for split in ("validation", "test"):
        if not images.of(split):
            raise InvalidDataset(f"no image is left in the {split} split; the skipped ones: {_some(images)}")


def _some(images: LabelledImages) -> str:
    return "; ".join(f"{skip.location}: {skip.reason}" for skip in images.skipped[-3:]) or "none"
