"""What was answered with 200 is in the ledger; what cannot be taken is refused early."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest
import sqlalchemy as sa

from perennial.errors import LedgerUnavailable, PerennialError
from perennial.ledger import predictions
from perennial.ledger.ids import new_id
from perennial.ledger.predictions import Prediction
from perennial.storage import Storage, sha256
from service.recorder import Recorder
from tests.service.conftest import Server, World, make_world, picture, serving, wait


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


@pytest.mark.parametrize("attempt", range(3))
def test_nothing_acknowledged_is_lost_to_sigkill(world: World, attempt: int) -> None:
    world.publish_live()
    acknowledged: list[str] = []
    stop = threading.Event()
    with serving(world) as server:

        def send(seed: int) -> None:
            image = picture("red", seed=seed)
            with httpx.Client(base_url=server.url, timeout=10) as http:
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
                assert wait(lambda: len(acknowledged) > 150 + 40 * attempt)
                workers = server.children()
                server.kill()
                assert not any(worker.is_running() for worker in workers)
            finally:
                stop.set()
        assert len(acknowledged) == len(set(acknowledged))
        assert set(predictions.known(world.engine, acknowledged)) == set(acknowledged)


def test_a_full_server_says_so_at_once_and_goes_on(world: World) -> None:
    world.publish_live()
    image = picture("red", size=(1600, 1200), seed=1, form="PNG")
    with serving(world, extra={"PERENNIAL_SERVE__MAX_QUEUE": "2"}) as server:

        def send(_: int) -> httpx.Response:
            return httpx.post(f"{server.url}/v1/predict", content=image, timeout=60)

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


def test_predictions_and_labels_go_to_postgresql(postgres_url: str, tmp_path: Path) -> None:
    world = make_world(tmp_path / "home", database_url=postgres_url)
    version = world.publish_live()
    with serving(world) as server:
        answers = [server.predict(picture(colour)) for colour in ("red", "green", "blue")]
        body = [{"prediction_id": answer["prediction_id"], "label": "red"} for answer in answers]
        assert server.http.post("/v1/feedback", json=body).json()["accepted"] == 3
    rows = predictions.latest(world.engine, version, 10)
    assert [row.prediction.label for row in rows] == ["red", "green", "blue"]
    assert [row.true_label for row in rows] == ["red"] * 3
    world.engine.dispose()


def test_without_the_ledger_the_answer_is_503_and_serving_resumes_when_it_is_back(shared_server: Server) -> None:
    server = shared_server
    other = sa.create_engine(server.world.settings.ledger_url)
    with other.connect() as connection:
        try:
            connection.exec_driver_sql("ALTER TABLE predictions RENAME TO hidden")
            connection.commit()
            answer = server.post("/v1/predict", picture("red"))
            feedback = server.http.post("/v1/feedback", json={"prediction_id": "x", "label": "red"})
            assert (answer.status_code, feedback.status_code) == (503, 503)
            assert answer.json()["type"].endswith(":ledger-unavailable")
            assert int(answer.headers["retry-after"]) > 0
            assert server.http.get("/livez").status_code == 200
        finally:
            connection.exec_driver_sql("ALTER TABLE hidden RENAME TO predictions")
            connection.commit()
    other.dispose()
    assert server.predict(picture("red"))["label"] == "red"


def test_a_group_shares_one_transaction_and_each_waits_for_its_own(engine: sa.Engine, tmp_path: Path) -> None:
    recorder = Recorder(lambda: engine, Storage(f"file://{tmp_path}/s"), capture=0.0)

    async def record() -> None:
        await asyncio.gather(*(recorder.record([row()], [b"x"]) for _ in range(100)))

    asyncio.run(record())
    recorder.close()
    assert predictions.count(engine) == 100


def test_a_row_that_cannot_be_written_fails_alone(engine: sa.Engine, tmp_path: Path) -> None:
    recorder = Recorder(lambda: engine, Storage(f"file://{tmp_path}/s"), capture=0.0)

    async def record() -> list[BaseException | None]:
        broken = row(label=None)
        groups = [recorder.record([each], [b"x"]) for each in (row(), broken, row())]
        return await asyncio.gather(*groups, return_exceptions=True)

    outcomes = asyncio.run(record())
    recorder.close()
    assert [type(outcome) for outcome in outcomes] == [type(None), PerennialError, type(None)]
    assert predictions.count(engine) == 2


def test_when_the_ledger_is_away_nobody_is_told_that_it_was_recorded(tmp_path: Path) -> None:
    def away() -> sa.Engine:
        raise LedgerUnavailable("gone")

    recorder = Recorder(away, Storage(f"file://{tmp_path}/s"), capture=1.0)
    with pytest.raises(LedgerUnavailable):
        asyncio.run(recorder.record([row()], [b"x"]))
    recorder.close()


def test_the_share_of_captured_images_is_kept_and_their_rows_say_where(engine: sa.Engine, tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/s")
    recorder = Recorder(lambda: engine, storage, capture=0.25)
    images = [f"image {index}".encode() for index in range(400)]

    async def record() -> None:
        await asyncio.gather(*(recorder.record([row(image)], [image]) for image in images))

    asyncio.run(record())
    asyncio.run(record())  # the same images again
    recorder.close()
    rows = [each.prediction for each in predictions.latest(engine, "v", 1000)]
    kept = [each for each in rows if each.image_url is not None]
    assert len(kept) == 2 * len({each.image_digest for each in kept})
    assert 60 < len(kept) / 2 < 140
    for each in kept:
        assert each.image_url is not None
        assert sha256(storage.read(storage.key_of(each.image_url))) == each.image_digest


def test_a_storage_that_fails_costs_the_copy_and_not_the_prediction(engine: sa.Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    recorder = Recorder(lambda: engine, Storage(f"file://{tmp_path}/file"), capture=1.0)
    asyncio.run(recorder.record([row()], [b"x"]))
    recorder.close()
    (found,) = predictions.latest(engine, "v", 10)
    assert found.prediction.image_url is None
