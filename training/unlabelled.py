"""Images without labels: every file below a folder that is one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perennial.errors import InvalidDataset
from perennial.images import ImageLimits, InputRule, Pixels
from perennial.progress import Progress, Step, silent
from perennial.storage import sha256
from training.datasets import DEFAULT_LIMITS, Row, Skipped
from training.features import decode, in_batches
from training.listing import printable
from training.pixels import mapped_pixels

NO_LABEL: Final = ""


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """`rows` in order of their digests, each image once, with no label; every one of them can be decoded."""

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]

    @property
    def fingerprint(self) -> str:
        """sha256 over every image's digest: the same images, wherever they lie."""
        return sha256("\n".join(row.digest for row in self.rows).encode())


def load(
    folder: Path, *, threads: int, limits: ImageLimits = DEFAULT_LIMITS, progress: Progress = silent
) -> Unlabelled:
    """The images below a folder, whatever its folders are called. Hidden files are passed over; a file that is no
    image, or a second copy of one, is skipped and listed.

    Raises:
        InvalidDataset: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise InvalidDataset(f"there is no folder {folder}; give one with images in it, labelled or not")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    rows: dict[str, Row] = {}
    skipped: list[Skipped] = []
    for done, path in enumerate(files, start=1):
        location = str(path.absolute())
        try:
            if path.stat().st_size > limits.max_bytes:
                skipped.append(Skipped(printable(location), f"more than {limits.max_bytes:,} bytes"))
                continue
            digest = sha256(path.read_bytes())
        except OSError as error:
            skipped.append(Skipped(printable(location), f"cannot be read: {error}"))
            continue
        if digest in rows:
            skipped.append(Skipped(printable(location), f"the same image as {rows[digest].location}"))
        else:
            rows[digest] = Row(location, NO_LABEL, digest, "train")
        progress(Step("reading images", done, len(files)))
    found = [rows[digest] for digest in sorted(rows)]
    broken: dict[str, str] = {}
    small = InputRule(resize=32, crop=32)  # only whether it can be decoded is of interest
    for part in in_batches(found, lambda batch: decode(batch, small, limits)[2], threads=threads):
        broken |= part
    skipped += [Skipped(printable(row.location), broken[row.digest]) for row in found if row.digest in broken]
    kept = tuple(row for row in found if row.digest not in broken)
    if not kept:
        first = f", such as {skipped[0].location}: {skipped[0].reason}" if skipped else ""
        raise InvalidDataset(f"{folder} holds no image that can be read ({len(skipped)} skipped{first})")
    return Unlabelled(kept, tuple(skipped))


def pixels_of(
    images: Unlabelled, rule: InputRule, path: Path, *, threads: int, limits: ImageLimits, progress: Progress = silent
) -> Pixels:
    """uint8 [N, side, side, 3] of all rows in order, mapped from `path`; side is what the rule resizes to."""
    return mapped_pixels(images.rows, rule, path, threads=threads, limits=limits, progress=progress)
