"""Retention on real databases and real storages: what goes, what stays, and what a crash or a race leaves behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from perennial import retention
from perennial.bundle import Bundle, upload_bundle
from perennial.errors import LeaseHeld, StorageUnavailable
from perennial.ids import new_id
from perennial.ledger import (
    deployments,
    labels,
    leases,
    models,
    open_ledger,
    predictions,
    rejected_images,
    rollouts,
    traffic,
    webhook_positions,
)
from perennial.ledger import retention as ledger_retention
from perennial.ledger.labels import Feedback
from perennial.ledger.predictions import Prediction
from perennial.ledger.rejected_images import RejectedImages
from perennial.retention import Pruned
from perennial.settings_sections import RetentionSettings
from perennial.storage import Storage, capture_key, sha256

NOW = datetime.now(UTC)
BOUNDLESS = {"images_days": 0, "images_bytes": 0, "labelled_days": 0, "rows_days": 0, "rows_max": 0}


class Place:
    """A ledger and a storage, and a past for them."""

    def __init__(self, engine: sa.Engine, storage: Storage) -> None:
        self.engine = engine
        self.storage = storage

    def row(
        self, days: float, image: bytes | None = None, *, label: str | None = None, version: str = "retired"
    ) -> str:
        """A prediction of so many days ago, its image stored; returns its id."""
        at = NOW - timedelta(days=days)
        digest = sha256(image if image is not None else os.urandom(8))
        url = None if image is None else self.image(image, days)
        vector = np.zeros(4, dtype=np.float32)
        row = replace(_row(at, vector), model_version=version, image_digest=digest, image_url=url)
        predictions.record(self.engine, [row])
        if label is not None:
            labels.add(self.engine, [Feedback(row.id, label)])
        return row.id

    def image(self, data: bytes, days: float) -> str:
        """An image stored so many days ago."""
        key = capture_key(sha256(data), "PNG")
        if self.storage.exists(key):
            return self.storage.url_of(key)
        url = self.storage.write(key, data)
        path = self.storage.local_path(key)
        if path is not None:
            moment = (NOW - timedelta(days=days)).timestamp()
            os.utime(path, (moment, moment))
        return url

    def has(self, *images: bytes) -> list[bool]:
        return [self.storage.exists(capture_key(sha256(image), "PNG")) for image in images]

    def urls(self) -> dict[str, str | None]:
        with self.engine.connect() as connection:
            table = connection.execute(sa.text("SELECT id, image_url FROM predictions"))
            return {row.id: row.image_url for row in table}

    def prune(self, *, dry_run: bool = False, window: int = 1000, now: datetime = NOW, **settings: float) -> Pruned:
        chosen = RetentionSettings(**(BOUNDLESS | settings))  # type: ignore[arg-type]
        return retention.prune(self.engine, self.storage, chosen, window=window, dry_run=dry_run, now=now)


@pytest.fixture
def place(engine: sa.Engine, tmp_path: Path) -> Place:
    return Place(engine, Storage(f"file://{tmp_path / 'storage'}"))


def test_old_predictions_go_and_labelled_ones_stay_longer(place: Place) -> None:
    old, labelled, very_old, new = (
        place.row(40),
        place.row(40, label="disc"),
        place.row(400, label="square"),
        place.row(5),
    )
    assert place.prune(rows_days=30, labelled_days=365, dry_run=True).rows.count == 2
    assert set(place.urls()) == {old, labelled, very_old, new}
    done = place.prune(rows_days=30, labelled_days=365)
    assert (done.rows.count, done.nothing) == (2, False)
    assert 300 * 2 < done.rows.bytes < 1000 * 2
    assert set(place.urls()) == {labelled, new}
    assert place.prune(rows_days=30, labelled_days=365).nothing
    # What people said is kept even where the prediction is gone.
    assert set(labels.order(place.engine, [labelled, very_old])) == {labelled, very_old}


def test_old_counts_of_rejected_images_go_as_predictions_do(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for days in range(10):
        at = NOW - timedelta(days=days)
        rejected_images.add(place.engine, [RejectedImages("v", at, reason, 1 + days) for reason in ("a", "b")])
    assert place.prune().nothing
    assert place.prune(rows_days=5.5, dry_run=True).rejections.count == 8
    monkeypatch.setattr(ledger_retention, "MOST_ROWS", 3)  # two minutes at a time
    done = place.prune(rows_days=5.5)
    assert (done.rejections.count, done.rows.count, done.nothing) == (8, 0, False)
    assert rejected_images.count_since(place.engine, "v", None) == {"a": 21, "b": 21}
    assert place.prune(rows_days=5.5).nothing


def test_past_the_most_rows_the_oldest_unlabelled_go(place: Place) -> None:
    ids = [place.row(days, label="disc" if days == 9 else None) for days in range(10)]
    assert place.prune(rows_max=4, dry_run=True).rows.count == 5
    assert place.prune(rows_max=4).rows.count == 5
    assert set(place.urls()) == {*ids[:4], ids[9]}
    assert place.prune(rows_max=4).nothing
    assert place.prune(rows_max=5).nothing


def test_many_rows_go_in_many_transactions(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_retention, "MOST_ROWS", 3)
    kept = [place.row(50, label="disc") for _ in range(5)]
    for _ in range(10):
        place.row(50)
    assert place.prune(rows_days=30).rows.count == 10
    assert set(place.urls()) == set(kept)


def test_the_window_of_a_live_model_stays_however_old_it_is(place: Place, made_bundle: Callable[[str], Bundle]) -> None:
    bundle = made_bundle("20260101-000000-00000")
    models.register(place.engine, bundle, upload_bundle(bundle, place.storage))
    version = bundle.manifest.version
    deployments.deploy(place.engine, "shapes", version, reason="a test", actor="test")
    ids = [place.row(100 - hour / 24, version=version) for hour in range(10)]
    place.row(100)
    assert place.prune(rows_days=30, rows_max=1, window=4).rows.count == 7
    assert set(place.urls()) == set(ids[-4:])


def test_an_image_goes_when_its_newest_use_is_too_old_and_no_row_names_it_then(place: Place) -> None:
    old, used_again, new, never = b"old", b"used again", b"new", b"never captured"
    first, second = place.row(50, old), place.row(40, old)
    again = place.row(50, used_again)
    place.row(3, used_again)
    place.row(3, new)
    place.row(50)
    planned = place.prune(images_days=30, dry_run=True)
    assert planned.aged.count == 1
    assert place.has(old) == [True]
    done = place.prune(images_days=30)
    assert (done.aged.count, done.aged.bytes, done.rows.count) == (1, len(old), 0)
    assert (done.kept.count, done.kept.bytes) == (2, len(used_again) + len(new))
    assert place.has(old, used_again, new, never) == [False, True, True, False]
    assert place.urls()[first] is None
    assert place.urls()[second] is None
    assert place.urls()[again] is not None
    assert place.prune(images_days=30).nothing


def test_a_labelled_image_outlives_the_others(place: Place) -> None:
    plain, labelled, labelled_long_ago = b"plain", b"labelled", b"labelled long ago"
    place.row(50, plain)
    place.row(60, labelled, label="disc")
    place.row(50, labelled)  # one of its predictions has the label
    place.row(500, labelled_long_ago, label="disc")
    assert place.prune(images_days=30, labelled_days=365).aged.count == 2
    assert place.has(plain, labelled, labelled_long_ago) == [False, True, False]


def test_past_the_most_bytes_the_longest_unused_go_and_labelled_ones_last(place: Place) -> None:
    images = [bytes([number]) * 1000 for number in range(6)]
    place.row(20, images[0], label="disc")
    for age, image in enumerate(images[1:5], start=11):
        place.row(30 - age, image)
    place.row(0, images[5])  # may be in a request that is being answered
    planned = place.prune(images_bytes=3500, dry_run=True)
    done = place.prune(images_bytes=3500)
    assert planned.over_size == done.over_size
    assert planned.kept == done.kept
    assert (done.over_size.count, done.over_size.bytes, done.kept.bytes) == (3, 3000, 3000)
    assert place.has(*images) == [True, False, False, False, True, True]
    assert place.prune(images_bytes=3500).nothing

    assert place.prune(images_bytes=1000).over_size.count == 2
    assert place.has(*images) == [False, False, False, False, False, True]
    assert place.prune(images_bytes=1).nothing  # what is in use stays


def test_of_images_used_in_the_same_minute_no_more_go_than_must(place: Place) -> None:
    images = [bytes([number]) * 100 for number in range(20)]
    for image in images:
        place.row(2, image)
    assert place.prune(images_bytes=1250).over_size.count == 8
    assert sum(place.has(*images)) == 12


def test_images_that_no_row_names_go_once_they_have_settled(place: Place) -> None:
    orphan, fresh, named = b"orphan", b"fresh orphan", b"named"
    place.image(orphan, 2)
    place.image(fresh, 0.5)  # its row may still wait on a worker's disk
    place.row(2, named)
    (place.storage.local_path("captures/ab/notes.txt") or Path()).parent.mkdir(parents=True, exist_ok=True)
    place.storage.write("captures/ab/notes.txt", b"somebody's")
    assert place.prune(dry_run=True).unnamed.count == 1
    assert place.prune().unnamed.count == 1
    assert place.has(orphan, fresh, named) == [False, True, True]
    assert place.storage.exists("captures/ab/notes.txt")


def test_a_ledger_that_names_no_image_does_not_empty_the_storage(place: Place) -> None:
    image, old = b"of another ledger", b"too old for any"
    place.image(image, 5)
    place.image(old, 40)
    assert place.prune().nothing
    assert place.prune(images_days=30).unnamed.count == 1
    assert place.has(image, old) == [True, False]


def test_the_images_of_removed_rows_go_with_them(place: Place) -> None:
    gone, shared = b"gone", b"shared"
    place.row(9, gone)
    place.row(9, shared)
    place.row(1, shared)
    planned = place.prune(rows_days=7, dry_run=True)
    assert place.has(gone, shared) == [True, True]
    done = place.prune(rows_days=7)
    assert planned.document() == done.document() | {"dry_run": True}
    assert (done.rows.count, done.unnamed.count) == (2, 1)
    assert place.has(gone, shared) == [False, True]


def test_a_prune_killed_between_the_rows_and_the_image_is_completed_by_the_next(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, other = b"old", b"other"
    row = place.row(50, old)
    place.row(5, other)

    def killed(*_: object) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(place.storage, "delete_all", killed)
    with pytest.raises(SystemExit):
        place.prune(images_days=30)
    monkeypatch.undo()
    assert place.urls()[row] is None
    assert place.has(old) == [True]
    done = place.prune(images_days=30)
    assert (done.aged.count, done.unnamed.count) == (0, 1)
    assert place.has(old, other) == [False, True]


def test_an_image_that_is_predicted_on_while_it_would_go_stays(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    image = b"back again"
    place.row(50, image)
    forget = ledger_retention.forget_images

    def and_comes_again(engine: sa.Engine, digests: list[str]) -> int:
        forgotten = forget(engine, digests)
        place.row(0, image)
        return forgotten

    monkeypatch.setattr(ledger_retention, "forget_images", and_comes_again)
    assert place.prune(images_days=30).nothing
    assert place.has(image) == [True]


def test_a_retrain_keeps_the_labelled_images_that_it_reads(place: Place) -> None:
    plain, labelled = b"plain", b"labelled"
    place.row(500, plain)
    place.row(500, labelled, label="disc")
    with leases.held(place.engine, "retrain:shapes", 60):
        assert place.prune(images_days=30, labelled_days=30).aged.count == 1
        assert place.has(plain, labelled) == [False, True]
    assert place.prune(images_days=30, labelled_days=30).aged.count == 1
    assert place.has(labelled) == [False]


def test_one_prune_at_a_time_and_a_dry_run_at_any(place: Place) -> None:
    with leases.held(place.engine, retention.LEASE, 60):
        with pytest.raises(LeaseHeld):
            place.prune()
        assert place.prune(dry_run=True).nothing


def test_what_a_crash_left_half_written_is_removed(place: Place) -> None:
    place.image(b"whole", 3)
    left = place.storage.local_path("captures/.0123.png.1a2b3c4d")
    recent = place.storage.local_path("captures/.4567.png.1a2b3c4d")
    assert left is not None
    assert recent is not None
    left.write_bytes(b"ha")
    recent.write_bytes(b"ha")
    long_ago = (NOW - timedelta(days=2)).timestamp()
    os.utime(left, (long_ago, long_ago))
    assert place.prune(dry_run=True).leftovers.count == 1
    assert place.prune().leftovers.count == 1
    assert (left.exists(), recent.exists()) == (False, True)


def test_on_s3_images_go_by_the_ledger_and_by_size(engine: sa.Engine, s3_storage: Storage) -> None:
    place = Place(engine, s3_storage)
    images = [bytes([number]) * 100 for number in range(5)]
    for age, image in enumerate(images):
        place.row(10 * age + 1, image)
    orphan = b"named by no row"
    place.image(orphan, 0)  # S3 says when it was stored: now
    assert place.prune(images_days=30).aged.count == 2
    assert place.has(*images, orphan) == [True, True, True, False, False, True]
    assert place.prune(images_bytes=150).over_size.count == 2
    assert place.has(*images, orphan) == [True, False, False, False, False, True]
    tomorrow = NOW + timedelta(days=1, hours=1)
    assert place.prune(now=tomorrow).unnamed.count == 1
    assert place.has(images[0], orphan) == [True, False]


def test_a_storage_that_is_away_is_said_so_and_nothing_is_lost(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    row = place.row(50, b"old")

    def away(*_: object) -> None:
        raise StorageUnavailable("the storage is away")

    monkeypatch.setattr(place.storage, "listing", away)
    with pytest.raises(StorageUnavailable):
        place.prune(images_days=30)
    assert place.urls()[row] is not None
    monkeypatch.undo()
    assert place.prune(images_days=30).aged.count == 1


def test_the_service_writes_on_while_rows_and_images_go(place: Place, tmp_path: Path) -> None:
    vector = np.zeros(4, dtype=np.float32)
    old = [_row(NOW - timedelta(days=50), vector) for _ in range(12_000)]
    predictions.record(place.engine, old)
    place.row(50, b"old")
    waits: list[float] = []
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            began = time.monotonic()
            predictions.record(place.engine, [_row(NOW, vector) for _ in range(20)])
            place.storage.write(capture_key(sha256(os.urandom(8)), "PNG"), b"new")
            waits.append(time.monotonic() - began)

    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve)
        try:
            done = place.prune(rows_days=30, images_days=20)
        finally:
            stop.set()
        serving.result()
    assert (done.rows.count, done.unnamed.count) == (12_001, 1)
    assert predictions.count(place.engine) == 20 * len(waits)
    assert len(waits) > 5
    assert max(waits) < 5


def _row(at: datetime, vector: Any) -> Prediction:
    return Prediction(
        new_id(int(at.timestamp() * 1000)), at, "v", "float32", "disc", 0.9, vector, vector, vector, 8, 8,
        "PNG", "RGB", 100, sha256(os.urandom(8)), None, None, 1.0,
    )  # fmt: skip


@pytest.mark.parametrize("before", ["0001", "0002", "0003", "0004"])
def test_a_ledger_of_a_schema_before_is_migrated_with_its_rows(place: Place, ledger_url: str, before: str) -> None:
    row = place.row(3, b"image")
    labels.add(place.engine, [Feedback(row, "disc")])
    with place.engine.begin() as connection:
        connection.execute(sa.text("DROP INDEX ix_labels_id"))
        connection.execute(sa.text("ALTER TABLE labels DROP COLUMN known"))
        for table in ("rollouts", "shadow_answers", "traffic", "watched_rows"):
            connection.execute(sa.text(f"DROP TABLE {table}"))
        if before < "0004":
            connection.execute(sa.text("DROP TABLE webhook_positions"))
        if before < "0003":
            connection.execute(sa.text("DROP TABLE rejected_images"))
        if before == "0001":
            connection.execute(sa.text("DROP INDEX ix_predictions_image_digest"))
        connection.execute(sa.text(f"UPDATE alembic_version SET version_num = '{before}'"))
    place.engine.dispose()
    opened = open_ledger(ledger_url)
    indexes = {index["name"] for index in sa.inspect(opened).get_indexes("predictions")}
    assert "ix_predictions_image_digest" in indexes
    assert rejected_images.count_since(opened, "retired", None) == {}
    assert webhook_positions.position(opened, "default", "a" * 64).attempts == 0
    [(identifier, version)] = predictions.known(opened, [row]).items()
    assert identifier == row
    assert [each.true_label for each in predictions.latest(opened, version, 10)] == ["disc"]  # of old it is known
    assert rollouts.running(opened, "default") is None
    minute = (NOW - timedelta(days=3)).replace(second=0, microsecond=0)
    assert traffic.answered(opened, [version], minute, timedelta(minutes=1), 1) == [1]
    opened.dispose()


def test_sqlite_finds_the_rows_of_an_image_by_the_index(tmp_path: Path) -> None:
    engine = open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    query = "SELECT max(at) FROM predictions WHERE image_url IS NOT NULL AND image_digest IN ('a', 'b')"
    with engine.connect() as connection:
        plan = " ".join(str(step) for step in connection.execute(sa.text(f"EXPLAIN QUERY PLAN {query}")).all())
    engine.dispose()
    assert "ix_predictions_image_digest" in plan
