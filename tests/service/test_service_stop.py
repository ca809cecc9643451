"""A server that is told to stop finishes what it accepted, and ends in time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest

from perennial.ledger import predictions, rejected_images
from tests.service.conftest import PLAIN, World, picture, serving, wait


def test_a_stopping_server_answers_what_it_accepted_and_empties_its_journal(world: World) -> None:
    version = world.publish_live()
    image = picture("red", size=(1600, 1200), seed=1, form="PNG")
    answered: list[str] = []
    broken: list[str] = []
    stop = threading.Event()
    with serving(world) as server:

        def send() -> None:
            with httpx.Client(base_url=server.url, timeout=30, verify=PLAIN) as http:
                while not stop.is_set():
                    try:
                        answer = http.post("/v1/predict", content=image)
                    except httpx.ConnectError:  # it does not listen any more
                        return
                    except httpx.TransportError as error:
                        broken.append(repr(error))
                        return
                    if answer.status_code == 200:
                        answered.append(answer.json()["prediction_id"])
                    else:
                        broken.append(answer.text)

        with ThreadPoolExecutor(8) as clients:
            for _ in range(8):
                clients.submit(send)
            try:
                assert wait(lambda: len(answered) > 30)
                assert server.post("/v1/predict", image[:-500]).status_code == 400
                server.process.terminate()
                server.process.wait(25)
            finally:
                stop.set()
    assert rejected_images.count_since(world.engine, version, None) == {"truncated-image": 1}
    # A connection that the server closes while a client is about to use it again is the client's to repeat. What was
    # worked on was answered: there is no row that nobody was told of.
    assert len(broken) <= 8, broken
    assert world.journals() == []
    assert set(predictions.known(world.engine, answered)) == set(answered)
    assert predictions.count(world.engine) == len(answered)


@pytest.mark.parametrize("seconds", [3])
def test_a_stopping_server_ends_in_time_though_the_ledger_is_away(world: World, seconds: int) -> None:
    version = world.publish_live()
    with (
        serving(world, extra={"PERENNIAL_SERVE__DRAIN_TIMEOUT": str(seconds)}) as server,
        world.engine.connect() as connection,
    ):
        connection.exec_driver_sql("ALTER TABLE predictions RENAME TO hidden")
        connection.commit()
        made = server.predict(picture("red"))["prediction_id"]
        hanging = threading.Thread(target=_upload_slowly, args=(server.url,))
        hanging.start()
        time.sleep(0.5)
        began = time.monotonic()
        server.process.terminate()
        server.process.wait(20)
        took = time.monotonic() - began
        hanging.join()
        connection.exec_driver_sql("ALTER TABLE hidden RENAME TO predictions")
        connection.commit()
    assert took < seconds + 2
    assert any(world.journals())
    with serving(world):
        assert [row.prediction.id for row in world.latest(version)] == [made]


def _upload_slowly(url: str) -> None:
    def body() -> object:
        for _ in range(60):
            yield b"\xff\xd8"
            time.sleep(0.2)

    with suppress(httpx.TransportError):
        httpx.post(f"{url}/v1/predict", content=body(), timeout=20)  # type: ignore[arg-type]
