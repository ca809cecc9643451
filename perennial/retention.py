"""Retention: predictions and captured images go when they are too old, or the oldest of them when they are too many.

Rows first, then images. An image goes by its newest use: the last prediction on it that is still in the ledger. The
rows that name it forget it before it is deleted, so a prune that is killed leaves no row that names a missing image;
what it leaves in storage is named by no row, and the next one takes it. Nothing here stops the service or a retrain.
"""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from perennial.ledger import leases, retention
from perennial.ledger.retention import Expired
from perennial.leftovers import Places, find_folders, find_leftovers
from perennial.progress import Progress, Step, silent
from perennial.settings_sections import RetentionSettings
from perennial.storage import Blob, Storage

LEASE: Final = "prune"
_LEASE_SECONDS: Final = 60.0
#: Rows wait on local disk and images on their way: what has been in storage for less is not yet called unnamed ...
_SETTLED: Final = timedelta(days=1)
#: ... and what was used within this time may be in a request that is being answered.
_IN_USE: Final = timedelta(minutes=10)
#: A training may work for long without writing a file.
_TRAINED: Final = timedelta(days=7)
_BATCH: Final = 500
_CAPTURE: Final = re.compile(r"([0-9a-f]{64})\.[a-z]{3}")

#: Where an image stands in the order in which they go when there are too many: (labelled, minute of its last use).
_Place = tuple[bool, int]


@dataclass(slots=True)
class Tally:
    """How many, and how many bytes they take."""

    count: int = 0
    bytes: int = 0

    def add(self, count: int, size: int) -> None:
        self.count += count
        self.bytes += size


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed; with `dry_run` what would have been.

    `rows`: predictions. `rejections`: counts of images that could not be read, one for each minute and reason.
    `traffic`: counts of predictions, one for each minute and version.
    `aged`, `over_size`, `unnamed`: images that were too old, too many, or named by no row. `leftovers`: files that
    crashes left half written, reports that no check names, and what a killed training left. `kept`: the images that
    are left.
    """

    dry_run: bool
    rows: Tally = field(default_factory=Tally)
    rejections: Tally = field(default_factory=Tally)
    traffic: Tally = field(default_factory=Tally)
    aged: Tally = field(default_factory=Tally)
    over_size: Tally = field(default_factory=Tally)
    unnamed: Tally = field(default_factory=Tally)
    leftovers: Tally = field(default_factory=Tally)
    kept: Tally = field(default_factory=Tally)

    @property
    def nothing(self) -> bool:
        """Was there nothing to do?"""
        gone = (self.rows, self.rejections, self.traffic, self.aged, self.over_size, self.unnamed, self.leftovers)
        return not any(tally.count for tally in gone)

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "dry_run": self.dry_run,
            "rows": asdict(self.rows),
            "rejections": asdict(self.rejections),
            "traffic": asdict(self.traffic),
            "images": {
                "aged": asdict(self.aged),
                "over_size": asdict(self.over_size),
                "unnamed": asdict(self.unnamed),
                "kept": asdict(self.kept),
            },
            "leftovers": asdict(self.leftovers),
        }


@dataclass(frozen=True, slots=True)
class _Image:
    blob: Blob
    digest: str
    used: datetime  # when it was stored, if no row names it
    labelled: bool
    named: bool


@dataclass(frozen=True, slots=True)
class _Run:
    """One prune: where, and the moments before which things are too old (None: never)."""

    engine: sa.Engine
    storage: Storage
    expired: Expired
    images_before: datetime | None
    labelled_images_before: datetime | None
    unnamed_before: datetime | None
    in_use_from: datetime
    now: datetime
    result: Pruned
    progress: Progress
    places: Places | None


def prune(
    engine: sa.Engine,
    storage: Storage,
    settings: RetentionSettings,
    *,
    window: int,
    dry_run: bool = False,
    now: datetime | None = None,
    places: Places | None = None,
    progress: Progress = silent,
) -> Pruned:
    """Remove what the settings do not keep, of the whole ledger and storage, whichever model's.

    Args:
        window: `monitor.window`; so many of the newest rows of every live version stay whatever their age.
        now: ages are counted from this moment.
        places: this machine's folders, where trainings that were killed left something; None leaves them alone.

    Raises:
        LeaseHeld: another process is pruning.
        LedgerUnavailable, StorageUnavailable: something is left; the next call takes it.
    """
    now = now or datetime.now(UTC)
    if dry_run:
        return _prune(engine, storage, settings, window, now, places, progress, dry_run=True)
    with leases.held(engine, LEASE, _LEASE_SECONDS):
        return _prune(engine, storage, settings, window, now, places, progress, dry_run=False)


def _prune(
    engine: sa.Engine,
    storage: Storage,
    settings: RetentionSettings,
    window: int,
    now: datetime,
    places: Places | None,
    progress: Progress,
    *,
    dry_run: bool,
) -> Pruned:
    images_before = _days_before(now, settings.images_days)
    labelled_before = _days_before(now, settings.labelled_days)
    # A ledger that names no image at all may be the wrong one, or new: then an image is only held to its age.
    settled = now - _SETTLED if retention.names_images(engine) else images_before
    run = _Run(
        engine=engine,
        storage=storage,
        expired=Expired(
            _latest(
                _days_before(now, settings.rows_days),
                retention.oldest_of_newest(engine, settings.rows_max) if settings.rows_max else None,
            ),
            labelled_before,
            retention.window_starts(engine, window),
        ),
        images_before=images_before,
        labelled_images_before=min(images_before, labelled_before) if images_before and labelled_before else None,
        unnamed_before=settled,
        in_use_from=now - _IN_USE,
        now=now,
        result=Pruned(dry_run),
        progress=progress,
        places=places,
    )
    _remove_rows(run)
    _remove_counts(run, retention.REJECTIONS, run.result.rejections)
    _remove_counts(run, retention.TRAFFIC, run.result.traffic)
    _remove_images(run, settings.images_bytes)
    _remove_leftovers(run)
    return run.result


def _remove_rows(run: _Run) -> None:
    if run.result.dry_run:
        found = retention.count_expired(run.engine, run.expired)
        run.result.rows.add(found.rows, found.bytes)
        return
    since = None
    while True:
        with _leaving_room():
            removed = retention.delete_expired(run.engine, run.expired, since)
        if not removed.rows:
            return
        since = removed.until
        run.result.rows.add(removed.rows, removed.bytes)
        run.progress(Step("removing predictions", run.result.rows.count, 0))


def _remove_counts(run: _Run, table: sa.Table, tally: Tally) -> None:
    def add(removed: int) -> None:
        tally.add(removed, removed * retention.COUNT_BYTES)

    if run.result.dry_run:
        add(retention.count_expired_counts(run.engine, table, run.expired))
        return
    removed = retention.MOST_ROWS
    while removed >= retention.MOST_ROWS:
        with _leaving_room():
            removed = retention.delete_expired_counts(run.engine, table, run.expired)
        add(removed)


def _remove_images(run: _Run, most_bytes: int) -> None:
    left: Counter[_Place] = Counter()  # bytes
    for images in _images(run, "looking at images"):
        gone = _remove(run, [image for image in images if _is_aged(run, image)], run.result.aged)
        gone |= _remove(run, [image for image in images if _is_unnamed(run, image)], run.result.unnamed)
        for image in images:
            if image.digest not in gone:
                run.result.kept.add(1, image.blob.bytes)
                if image.used < run.in_use_from:
                    left[_place(image)] += image.blob.bytes
    excess = run.result.kept.bytes - most_bytes
    if most_bytes and excess > 0 and left:
        _remove_oldest(run, left, excess)


def _remove_oldest(run: _Run, left: Counter[_Place], excess: int) -> None:
    # The order of a million images is not held: where to stop is found from their bytes minute by minute.
    for last in sorted(left):
        if left[last] >= excess:
            break
        excess -= left[last]
    for images in _images(run, "removing the oldest images"):
        over = []
        for image in images:
            place = _place(image)
            if place > last or image.used >= run.in_use_from or _is_aged(run, image) or _is_unnamed(run, image):
                continue
            if place == last:  # of this minute only as many as it takes
                if excess <= 0:
                    continue
                excess -= image.blob.bytes
            over.append(image)
        removed = Tally()
        _remove(run, over, removed)
        run.result.over_size.add(removed.count, removed.bytes)
        run.result.kept.add(-removed.count, -removed.bytes)


def _images(run: _Run, stage: str) -> Iterator[list[_Image]]:
    """Every captured image, in batches, with its last use."""
    folders = run.storage.folders("captures")  # 256 of them, so that a million images are not listed at once
    for done, folder in enumerate(folders, start=1):
        captures = [
            (match[1], blob)
            for blob in run.storage.listing(folder)
            if (match := _CAPTURE.fullmatch(blob.key.rsplit("/", 1)[-1]))
        ]
        for start in range(0, len(captures), _BATCH):
            batch = captures[start : start + _BATCH]
            uses = retention.uses(run.engine, [digest for digest, _ in batch], run.expired)
            yield [
                _Image(blob, digest, use.at, use.labelled, True)
                if (use := uses.get(digest))
                else _Image(blob, digest, blob.modified, False, False)
                for digest, blob in batch
            ]
        run.progress(Step(stage, done, len(folders)))


def _is_aged(run: _Run, image: _Image) -> bool:
    before = run.labelled_images_before if image.labelled else run.images_before
    return image.named and before is not None and image.used < min(before, run.in_use_from)


def _is_unnamed(run: _Run, image: _Image) -> bool:
    before = run.unnamed_before
    return not image.named and before is not None and image.used < min(before, run.in_use_from)


def _place(image: _Image) -> _Place:
    return image.labelled, int(image.used.timestamp() // 60)


def _remove(run: _Run, images: Sequence[_Image], tally: Tally) -> set[str]:
    """Remove these images; returns the digests of those that are gone."""
    if any(image.labelled for image in images) and retention.retraining(run.engine):
        images = [image for image in images if not image.labelled]  # it is reading them; the next prune takes them
    if not images:
        return set()
    if not run.result.dry_run:
        digests = [image.digest for image in images]
        forgotten = retention.MOST_ROWS
        while forgotten == retention.MOST_ROWS:
            with _leaving_room():
                forgotten = retention.forget_images(run.engine, digests)
        again = retention.named(run.engine, digests)  # predicted on this very moment
        images = [image for image in images if image.digest not in again]
        run.storage.delete_all([image.blob.key for image in images])
    tally.add(len(images), sum(image.blob.bytes for image in images))
    return {image.digest for image in images}


def _remove_leftovers(run: _Run) -> None:
    found = find_leftovers(run.engine, run.storage, run.now - _SETTLED)
    if not run.result.dry_run:
        run.storage.delete_all([blob.key for blob in found])
    run.result.leftovers.add(len(found), sum(blob.bytes for blob in found))
    folders = find_folders(run.engine, run.places, run.now - _TRAINED) if run.places is not None else []
    for folder in folders:
        if not run.result.dry_run:
            shutil.rmtree(folder.path)
        run.result.leftovers.add(1, folder.bytes)


@contextmanager
def _leaving_room() -> Iterator[None]:
    """After the block, leave the database to others for as long as it took."""
    began = time.monotonic()
    yield
    time.sleep(time.monotonic() - began)


def _days_before(now: datetime, days: float) -> datetime | None:
    return now - timedelta(days=days) if days else None


def _latest(*moments: datetime | None) -> datetime | None:
    return max((moment for moment in moments if moment is not None), default=None)
