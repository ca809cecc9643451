"""How many bodies are read at once, and how many bytes they may be together."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import ValidationError

from perennial.errors import Overloaded
from perennial.settings_sections import ServeSettings
from service import body_memory
from service.body_memory import BodyMemory
from tests.service.conftest import PLAIN, Server, World, picture, serving

MIB = 2**20


def test_small_bodies_never_wait() -> None:
    async def run() -> None:
        memory = BodyMemory(512 * MIB, lambda: 6)
        for _ in range(256):
            room = memory.hold(53_000)
            assert await asyncio.wait_for(room.__aenter__(), 0.1) is room
            room.add(53_000, more=False)
        assert memory.held == 256 * 53_000
        assert memory.waiting == 0

    asyncio.run(run())


def test_large_bodies_are_read_in_order_as_others_leave() -> None:
    async def run() -> None:
        memory = BodyMemory(512 * MIB, lambda: 2)
        read: list[int] = []
        leave = [asyncio.Event() for _ in range(5)]

        async def request(number: int) -> None:
            async with memory.hold(10 * MIB) as room:
                room.add(10 * MIB, more=False)
                assert (room.waited > 0) is (number >= 2)
                read.append(number)
                await leave[number].wait()

        tasks = [asyncio.create_task(request(number)) for number in range(5)]
        await asyncio.sleep(0.01)
        assert (read, memory.held, memory.waiting) == ([0, 1], 20 * MIB, 3)
        leave[1].set()
        await asyncio.sleep(0.01)
        assert (read, memory.held) == ([0, 1, 2], 20 * MIB)
        tasks[3].cancel()  # its client gave up
        leave[0].set()
        await asyncio.sleep(0.01)
        assert read == [0, 1, 2, 4]
        for event in leave:
            event.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (memory.held, memory.waiting) == (0, 0)
        async with asyncio.timeout(0.1), memory.hold(100 * MIB):
            assert memory.held == 0

    asyncio.run(run())


def test_a_request_that_is_cancelled_as_its_turn_comes_passes_it_on() -> None:
    async def run() -> None:
        memory = BodyMemory(512 * MIB, lambda: 1)
        first = memory.hold(20 * MIB)
        await first.__aenter__()

        async def wait() -> None:
            async with memory.hold(20 * MIB):
                raise AssertionError("it was cancelled")

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        await first.__aexit__(None, None, None)  # gives the turn to the task, which has not run since
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(0.1), memory.hold(20 * MIB):
            assert task.cancelled()

    asyncio.run(run())


def test_a_slow_sender_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_memory, "_PATIENCE_SECONDS", 0.05)

    async def run() -> None:
        memory = BodyMemory(512 * MIB, lambda: 1)
        async with memory.hold(30 * MIB) as slow:
            slow.add(1000, more=True)
            async with asyncio.timeout(1), memory.hold(30 * MIB) as fast:
                fast.add(30 * MIB, more=False)
                assert memory.held == 30 * MIB + 1000
            slow.add(1000, more=False)
        assert memory.held == 0
        async with asyncio.timeout(0.1), memory.hold(30 * MIB):  # the turn was given back once, not twice
            second = asyncio.create_task(memory.hold(30 * MIB).__aenter__())
            await asyncio.sleep(0.01)
            assert not second.done()
            second.cancel()

    asyncio.run(run())


def test_what_is_over_the_bound_is_refused_and_given_back() -> None:
    async def run() -> None:
        memory = BodyMemory(100, lambda: 6)
        async with memory.hold(80) as first:
            first.add(80, more=False)
            async with memory.hold(50) as second:
                second.add(15, more=True)
                with pytest.raises(Overloaded, match="100, are being worked on"):
                    second.add(15, more=True)
            assert memory.held == 80
        assert memory.held == 0

    asyncio.run(run())


def test_a_bound_below_one_image_is_a_settings_error() -> None:
    with pytest.raises(ValidationError, match="max_queue_bytes"):
        ServeSettings(max_bytes=1000, max_queue_bytes=999)


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that may hold little more than one image."""
    from tests.service.conftest import make_world

    world: World = make_world(tmp_path_factory.mktemp("tight") / "home")
    world.publish_live()
    bounds = {"PERENNIAL_SERVE__MAX_BYTES": "100000", "PERENNIAL_SERVE__MAX_QUEUE_BYTES": "120000"}
    with serving(world, extra=bounds) as server:
        yield server


def test_bodies_that_are_too_much_together_are_refused_and_those_before_them_answered(tight: Server) -> None:
    image = picture("red")
    parts = urlsplit(tight.url)
    with socket.create_connection((parts.hostname or "", parts.port or 80)) as slow:
        padded = image + bytes(90_000 - len(image))
        slow.sendall(
            f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: {len(padded)}\r\n\r\n"
            .encode() + padded[:-1]
        )  # fmt: skip
        time.sleep(0.5)
        answer = tight.http.post("/v1/predict", content=image + bytes(60_000))
        assert answer.status_code == 503
        assert answer.json()["type"].endswith("overloaded")
        assert "retry-after" in answer.headers
        small = tight.http.post("/v1/predict", content=image)
        assert small.status_code == 200
        slow.sendall(padded[-1:])
        assert slow.recv(100).startswith(b"HTTP/1.1 200")
    assert tight.http.post("/v1/predict", content=image + bytes(60_000)).status_code == 200


def test_a_batch_that_could_never_be_held_is_too_large(tight: Server) -> None:
    image = picture("red")
    files = [("images", ("a.png", image + bytes(50_000), "image/png")) for _ in range(3)]
    answer = tight.http.post("/v1/predict/batch", files=files)
    assert answer.status_code == 413


def test_many_large_images_at_once_are_all_answered(shared_server: Server) -> None:
    body = picture("red") + bytes(5 * MIB)  # three of them are more than is read ahead

    def send(_: int) -> int:
        with httpx.Client(timeout=60, verify=PLAIN) as http:
            return http.post(f"{shared_server.url}/v1/predict", content=body).status_code

    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(send, range(72))) == [200] * 72
