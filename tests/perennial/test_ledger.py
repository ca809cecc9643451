"""The ledger keeps its promises, the same on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from perennial.bundle import Bundle
from perennial.errors import (
    InvalidSettings,
    LeaseHeld,
    LedgerUnavailable,
    NoLiveModel,
    NothingToDo,
    Overtaken,
    UnknownModel,
)
from perennial.ids import new_id
from perennial.ledger import (
    EventKind,
    checks,
    connect,
    deployments,
    events,
    labels,
    leases,
    models,
    open_ledger,
    predictions,
    rejected_images,
    schema,
)
from perennial.ledger.connect import writing
from perennial.ledger.labels import Feedback
from perennial.ledger.predictions import Prediction
from perennial.ledger.rejected_images import RejectedImages

START = datetime(2026, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)


def prediction(number: int = 0, version: str = "v1", **changes: object) -> Prediction:
    fields: dict[str, object] = {
        "id": new_id(int(START.timestamp() * 1000) + number),
        "at": START + timedelta(milliseconds=number),
        "model_version": version,
        "precision": "float32",
        "label": "disc",
        "confidence": 0.75,
        "probabilities": np.array([0.75, 0.25], np.float32),
        "embedding": np.arange(4, dtype=np.float32),
        "properties": np.zeros(7, np.float32),
        "width": 640,
        "height": 480,
        "format": "JPEG",
        "mode": "RGB",
        "bytes": 53_000,
        "image_digest": f"{number:064d}",
        "image_url": f"file:///captures/{number}.jpg",
        "source": None,
        "latency_ms": 3.5,
    }
    return Prediction(**(fields | changes))  # type: ignore[arg-type]


def test_a_prediction_comes_back_as_it_went_in(engine: sa.Engine) -> None:
    row = prediction(label="Käfer 🐞", source="kamera-3")
    predictions.record(engine, [row])
    (found,) = predictions.latest(engine, "v1", 10)
    assert found.true_label is None
    for name in Prediction.__dataclass_fields__:
        assert np.array_equal(getattr(found.prediction, name), getattr(row, name)), name
    assert found.prediction.embedding.dtype == np.float32
    assert found.prediction.at.tzinfo is not None


def test_recording_twice_keeps_one(engine: sa.Engine) -> None:
    rows = [prediction(number) for number in range(5)]
    predictions.record(engine, rows[:3])
    predictions.record(engine, rows)
    assert predictions.count(engine) == 5


def test_a_window_is_the_latest_rows_of_one_version_oldest_first(engine: sa.Engine) -> None:
    rows = [prediction(number, "v1" if number % 3 else "v2") for number in range(30)]
    predictions.record(engine, rows)
    window = predictions.latest(engine, "v1", 8)
    expected = [row.id for row in rows if row.model_version == "v1"][-8:]
    assert [row.prediction.id for row in window] == expected


def test_the_last_label_wins_and_repeating_it_changes_nothing(engine: sa.Engine) -> None:
    row = prediction()
    predictions.record(engine, [row])
    assert labels.add(engine, [Feedback(row.id, "square")]) == 1
    assert labels.add(engine, [Feedback(row.id, "square")]) == 0
    assert labels.add(engine, [Feedback(row.id, "disc"), Feedback(row.id, "triangle")]) == 1
    assert predictions.latest(engine, "v1", 1)[0].true_label == "triangle"
    with engine.connect() as connection:
        # Append-only: the earlier labels are still there.
        assert connection.execute(sa.select(sa.func.count()).select_from(schema.labels)).scalar() == 2


def test_labelled_captures_have_a_label_and_an_image(engine: sa.Engine) -> None:
    rows = [prediction(number, image_url=None if number == 2 else f"file:///{number}") for number in range(6)]
    predictions.record(engine, rows)
    labels.add(engine, [Feedback(row.id, "square") for row in rows[1:5]])
    found = predictions.labelled_captures(engine, ["v1"])
    assert [row.prediction.id for row in found] == [rows[1].id, rows[3].id, rows[4].id]
    later = predictions.labelled_captures(engine, ["v1"], since=rows[3].at, limit=1)
    assert [row.prediction.id for row in later] == [rows[4].id]
    assert predictions.labelled_captures(engine, ["v9"]) == []


def test_known_ids_are_told_from_unknown_ones(engine: sa.Engine) -> None:
    rows = [prediction(number) for number in range(1200)]
    predictions.record(engine, rows)
    found = predictions.known(engine, [row.id for row in rows] + [new_id(), "nonsense"])
    assert found == {row.id: "v1" for row in rows}


def test_many_writers_at_once_lose_nothing(engine: sa.Engine) -> None:
    rows = [prediction(number) for number in range(400)]
    faults: list[BaseException] = []

    def write(part: list[Prediction]) -> None:
        try:
            for row in part:
                predictions.record(engine, [row])
        except BaseException as error:  # noqa: BLE001 - a thread must not swallow what it met
            faults.append(error)

    threads = [threading.Thread(target=write, args=(rows[start::8],)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert predictions.count(engine, "v1") == 400


def test_predictions_are_counted_from_a_moment_on(engine: sa.Engine) -> None:
    predictions.record(engine, [prediction(number) for number in range(10)] + [prediction(5, "v2")])
    assert predictions.count_since(engine, "v1", START + timedelta(milliseconds=4)) == 6
    assert predictions.count_since(engine, "v1", START - timedelta(days=1)) == 10
    assert predictions.count_since(engine, "v1", START + timedelta(days=1)) == 0


def test_rejected_images_add_up_by_minute_version_and_reason(engine: sa.Engine) -> None:
    noon, later = START.replace(second=0, microsecond=0), START.replace(minute=5, second=0, microsecond=0)

    def reject(images: int, at: datetime = noon, version: str = "v1", reason: str = "empty-image") -> RejectedImages:
        return RejectedImages(version, at, reason, images)

    rejected_images.add(engine, [])
    rejected_images.add(engine, [reject(3), reject(2, later), reject(1, version="v2"), reject(7, reason="cut")])
    rejected_images.add(engine, [reject(4), reject(1, later, reason="cut")])
    assert rejected_images.count_since(engine, "v1", None) == {"empty-image": 9, "cut": 8}
    assert rejected_images.count_since(engine, "v1", noon + timedelta(seconds=1)) == {"empty-image": 2, "cut": 1}
    assert rejected_images.count_since(engine, "v2", noon) == {"empty-image": 1}
    assert rejected_images.count_since(engine, "v3", None) == {}
    with engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(schema.rejected_images)).scalar() == 5


def test_many_processes_may_count_in_the_same_minute(engine: sa.Engine) -> None:
    rows = [RejectedImages("v1", START + timedelta(minutes=number), "cut", 1) for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        some = [pool.submit(rejected_images.add, engine, rows[:: 1 if number % 2 else -1]) for number in range(16)]
        assert [each.exception() for each in some] == [None] * 16
    assert rejected_images.count_since(engine, "v1", None) == {"cut": 16 * 20}


def test_the_live_model_is_the_last_deployment(engine: sa.Engine, made_bundle: Callable[[str], Bundle]) -> None:
    with pytest.raises(NoLiveModel, match="perennial train"):
        deployments.live(engine, "shapes")
    for version in ("20260101-000000-00001", "20260101-000000-00002"):
        models.register(engine, made_bundle(version), f"file:///bundles/{version}")
        deployments.deploy(engine, "shapes", version, reason="first", actor="test")
    live = deployments.live(engine, "shapes")
    assert live.version == "20260101-000000-00002"
    event = events.last(engine, "shapes", [EventKind.DEPLOYED])
    assert event is not None
    assert event.id == live.event_id
    assert event.detail["replaces"] == "20260101-000000-00001"
    assert models.get(engine, "shapes", live.version).manifest.classes == ("disc", "square")
    with pytest.raises(NoLiveModel):
        deployments.live(engine, "another-name")


def test_an_unknown_version_is_not_deployed(engine: sa.Engine) -> None:
    with pytest.raises(UnknownModel, match="the newest are: none yet"):
        deployments.deploy(engine, "shapes", "nope", reason="", actor="test")


def test_rolling_back_goes_back_step_by_step(engine: sa.Engine, made_bundle: Callable[[str], Bundle]) -> None:
    versions = [f"20260101-000000-0000{number}" for number in range(3)]
    for version in versions:
        models.register(engine, made_bundle(version), "file:///x")
        deployments.deploy(engine, "shapes", version, reason="new", actor="test")
    assert deployments.roll_back(engine, "shapes", reason="bad", actor="test").version == versions[1]
    assert deployments.roll_back(engine, "shapes", reason="bad too", actor="test").version == versions[0]
    with pytest.raises(NothingToDo):
        deployments.roll_back(engine, "shapes", reason="worse", actor="test")
    kinds = [event.kind for event in events.after(engine, "shapes")]
    assert kinds == [EventKind.DEPLOYED] * 3 + [EventKind.ROLLED_BACK] * 2


def test_a_model_judged_against_one_that_is_no_longer_live_is_not_deployed(
    engine: sa.Engine, made_bundle: Callable[[str], Bundle]
) -> None:
    versions = [f"20260101-000000-0000{number}" for number in range(3)]
    for version in versions:
        models.register(engine, made_bundle(version), "file:///x")
    for version in versions[:2]:
        deployments.deploy(engine, "shapes", version, reason="new", actor="test")
    with pytest.raises(Overtaken, match="judged against"):
        deployments.deploy(engine, "shapes", versions[2], reason="late", actor="test", replaces=versions[0])
    assert deployments.live(engine, "shapes").version == versions[1]
    deployments.deploy(engine, "shapes", versions[2], reason="in time", actor="test", replaces=versions[1])
    assert deployments.live(engine, "shapes").version == versions[2]


def test_a_reader_that_follows_the_ids_misses_no_event(engine: sa.Engine) -> None:
    first = writing(engine)
    connection = first.__enter__()
    events.append(connection, "shapes", EventKind.CHECK_CHANGED, {"number": 1})
    second = threading.Thread(target=events.add, args=(engine, "shapes", EventKind.CHECK_CHANGED, {"number": 2}))
    second.start()
    second.join(0.3)
    assert events.after(engine, "shapes") == []  # the second waits for its turn
    first.__exit__(None, None, None)
    second.join()
    assert [event.detail["number"] for event in events.after(engine, "shapes")] == [1, 2]


def test_events_are_read_from_where_one_stopped(engine: sa.Engine) -> None:
    ids = [events.add(engine, "shapes", EventKind.CHECK_CHANGED, {"number": number}) for number in range(5)]
    events.add(engine, "other", EventKind.CHECK_CHANGED, {})
    assert [event.detail["number"] for event in events.after(engine, "shapes", ids[1])] == [2, 3, 4]
    assert [event.id for event in events.after(engine, "shapes", limit=2)] == ids[:2]


def test_a_check_and_its_events_are_written_together(engine: sa.Engine) -> None:
    def record(detail: dict[str, object]) -> int:
        return checks.record(
            engine,
            name="shapes",
            model_version="v1",
            window={"rows": 300},
            verdict="data_drift",
            detail={"score": 1.0},
            report_url=None,
            events_to_add=[(EventKind.DRIFT_OPENED, detail)],
        )

    number = record({"cause": "data_drift"})
    (row,) = checks.latest(engine, "shapes")
    assert (row.id, row.verdict, row.window) == (number, "data_drift", {"rows": 300})
    event = events.last(engine, "shapes", [EventKind.DRIFT_OPENED])
    assert event is not None
    assert event.detail == {"cause": "data_drift", "check": number}
    with pytest.raises((sa.exc.StatementError, TypeError)):  # each driver serialises in its own place
        record({"not json": object()})
    assert len(checks.latest(engine, "shapes", 10)) == 1


def test_a_lease_has_one_holder(engine: sa.Engine) -> None:
    with leases.held(engine, "retrain:shapes", 60):
        with pytest.raises(LeaseHeld, match=r"another process \(.* until"), leases.held(engine, "retrain:shapes", 60):
            pytest.fail("two holders")
        with leases.held(engine, "retrain:other", 60):
            pass


def test_opening_a_migrated_ledger_again_changes_nothing(ledger_url: str) -> None:
    first = open_ledger(ledger_url)
    predictions.record(first, [prediction()])
    first.dispose()
    again = open_ledger(ledger_url)
    assert predictions.count(again) == 1
    again.dispose()


def test_the_migrations_make_the_tables_that_the_code_declares(engine: sa.Engine) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []


def test_a_ledger_from_the_future_is_refused(ledger_url: str) -> None:
    engine = open_ledger(ledger_url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(InvalidSettings, match="upgrade"):
        open_ledger(ledger_url)


def test_several_processes_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    # SQLite's own waiting does not cover the change to a write-ahead log.
    def open_first(path: Path, together: threading.Barrier) -> None:
        engine = connect._sqlite(sa.make_url(f"sqlite:///{path}"))
        together.wait()
        with engine.connect():
            pass
        engine.dispose()

    with ThreadPoolExecutor(8) as pool:
        for number in range(20):
            together = threading.Barrier(8)
            opened = [pool.submit(open_first, tmp_path / f"{number}.sqlite", together) for _ in range(8)]
            assert [each.exception() for each in opened] == [None] * 8


def test_several_processes_may_migrate_at_once(ledger_url: str) -> None:
    engines: list[sa.Engine] = []
    faults: list[BaseException] = []

    def start() -> None:
        try:
            engines.append(open_ledger(ledger_url))
        except BaseException as error:  # noqa: BLE001 - a thread must not swallow what it met
            faults.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    for engine in engines:
        engine.dispose()


def test_a_database_that_is_away_is_said_to_be_away(free_port: int) -> None:
    with pytest.raises(LedgerUnavailable, match="does not answer"):
        open_ledger(f"postgresql://nobody@127.0.0.1:{free_port}/none")


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LedgerUnavailable, match="cannot be made"):
        open_ledger(f"sqlite:///{tmp_path / 'file' / 'ledger.sqlite'}")


def test_what_is_not_a_database_url_is_a_settings_error() -> None:
    with pytest.raises(InvalidSettings, match="database_url"):
        open_ledger("nonsense")


def test_ids_sort_by_time_and_are_version_seven() -> None:
    ids = [new_id(1_700_000_000_000 + step) for step in range(100)]
    assert ids == sorted(ids)
    assert {value[14] for value in ids} == {"7"}
    assert len({new_id() for _ in range(1000)}) == 1000


def test_what_was_labelled_of_a_versions_answers(engine: sa.Engine) -> None:
    rows = [prediction(number, confidence=0.5 + number / 64) for number in range(6)]
    rows += [prediction(6, confidence=0.9, image_url=None), prediction(7, version="v2")]
    predictions.record(engine, rows)
    labels.add(engine, [Feedback(rows[at].id, "disc") for at in (0, 2, 4, 6, 7)])
    sure, labelled = labels.labelling(engine, "v1", rows[1].id, rows[7].id, limit=10)
    assert sure.tolist() == [0.9, *(0.5 + number / 64 for number in (5, 4, 3, 2, 1))]
    assert sure[labelled].tolist() == [0.5 + 4 / 64, 0.5 + 2 / 64], "without an image nothing can be judged"
    assert labels.labelling(engine, "v1", rows[0].id, rows[7].id, limit=2)[0].tolist() == [0.9, 0.5 + 5 / 64]
    assert [len(each) for each in labels.labelling(engine, "v3", rows[0].id, rows[7].id, limit=2)] == [0, 0]
