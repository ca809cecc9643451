"""The process that decodes and infers, and what happens to the service when it dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import psutil
import pytest

from perennial.bundle import Bundle, open_bundle
from perennial.errors import EmptyImage, InferenceLost, InvalidBundle, InvalidSettings, TruncatedImage
from perennial.graph import FLOAT32, OPENVINO, Graph
from perennial.images import ImageHeader, InputRule, prepare
from perennial.settings_sections import ServeSettings
from perennial.storage import sha256
from service.inference import Inference, ModelHandle
from service.inference_wire import (
    MESSAGE_BYTES,
    ImageMemory,
    InferenceFailed,
    Scored,
    pack_error,
    pack_scored,
    unpack_reply,
)
from tests.service.conftest import COLOURS, SIDE, Clients, Server, World, graph_bytes, picture, serving, wait


@pytest.fixture
def bundle(world: World) -> Bundle:
    return open_bundle(world.home / "made" / world.publish())


class Scoring(Inference):
    """With an event loop of its own, which outlives a call as a server's does."""

    def __init__(self, serve: ServeSettings, threads: int) -> None:
        super().__init__(serve, threads)
        self.runner = asyncio.Runner()

    def all(self, model: ModelHandle, *images: bytes) -> list[Any]:
        async def main() -> list[Any]:
            return await asyncio.gather(*(self.score(model, image) for image in images), return_exceptions=True)

        return self.runner.run(main())

    def close(self) -> None:
        super().close()
        self.runner.close()


@pytest.fixture
def inference() -> Iterator[Scoring]:
    inference = Scoring(ServeSettings(), threads=2)
    yield inference
    inference.close()


def processes_of(server: Server) -> list[psutil.Process]:
    """One for each worker, while it runs."""
    found = []
    for child in server.children():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "service.inference_process" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_an_image_is_scored_as_in_this_process(inference: Scoring, bundle: Bundle) -> None:
    model = inference.load(bundle, OPENVINO, FLOAT32)
    images = [picture(COLOURS[index % 3], size=(64, 48), seed=index) for index in range(20)]
    graph = Graph(graph_bytes(), threads=1)
    for image, found in zip(images, inference.all(model, *images), strict=True):
        expected = graph.run(prepare(image, InputRule(SIDE, SIDE)).pixels[np.newaxis])
        assert isinstance(found, Scored)
        assert np.array_equal(found.probabilities, expected.probabilities[0])
        assert np.array_equal(found.embedding, expected.embedding[0])
        assert np.array_equal(found.properties, expected.properties[0])
        assert found.header == ImageHeader("JPEG", "RGB", 64, 48)
        assert found.digest == sha256(image)
        assert 0 < found.decode_seconds < 5
        assert 0 < found.infer_seconds < 5
        assert 0 < time.perf_counter() - found.began < 30


def test_bad_images_fail_alone_and_as_what_they_are(inference: Scoring, bundle: Bundle) -> None:
    model = inference.load(bundle, OPENVINO, FLOAT32)
    good = picture("red", size=(320, 240))
    outcomes = inference.all(model, good, b"", good[:-200], good)
    assert [type(outcome) for outcome in outcomes] == [Scored, EmptyImage, TruncatedImage, Scored]
    assert "send the whole file" in str(outcomes[2])


def test_a_graph_is_let_go_with_its_last_handle(inference: Scoring, bundle: Bundle) -> None:
    model = inference.load(bundle, OPENVINO, FLOAT32)
    number = model.number
    inference.forget_unused()
    assert isinstance(inference.all(model, picture("red"))[0], Scored)
    other = inference.load(bundle, OPENVINO, FLOAT32)
    del model
    inference.forget_unused()
    gone = ModelHandle(number, OPENVINO, FLOAT32, {})
    (outcome,) = inference.all(gone, picture("red"))
    assert isinstance(outcome, InferenceFailed)
    assert "KeyError" in str(outcome)
    assert other.number != number


def test_what_cannot_be_loaded_is_said_and_nothing_is_lost(inference: Scoring, bundle: Bundle) -> None:
    model = inference.load(bundle, OPENVINO, FLOAT32)
    with pytest.raises(InvalidSettings, match="tvm"):
        inference.runtime("tvm")
    with pytest.raises(InvalidSettings, match="does not compute natively"):
        inference.load(bundle, "onnxruntime", "bfloat16")
    bundle.graph.chmod(0o644)
    bundle.graph.write_bytes(b"no graph")
    with pytest.raises(InvalidBundle):
        inference.load(bundle, OPENVINO, FLOAT32)
    assert isinstance(inference.all(model, picture("red"))[0], Scored)
    assert inference.runtime(None)[0] == OPENVINO


def test_a_graph_whose_classes_are_not_the_manifests_is_refused(inference: Scoring, bundle: Bundle) -> None:
    manifest = bundle.manifest.model_copy(update={"classes": ("a", "b")})
    with pytest.raises(InvalidBundle, match="3 probabilities, the manifest 2"):
        inference.load(Bundle(bundle.path, manifest, bundle.digest), OPENVINO, FLOAT32)


def test_it_does_not_outlive_the_service(bundle: Bundle) -> None:
    inference = Scoring(ServeSettings(), threads=1)
    process = psutil.Process(inference._process.pid)
    inference.load(bundle, OPENVINO, FLOAT32)
    os.kill(process.pid, signal.SIGTERM)  # a stop is the service's to say
    assert inference.runtime(None)
    inference.close()
    assert not process.is_running()


def test_it_is_started_again_with_its_models_and_what_waited_is_answered(inference: Scoring, bundle: Bundle) -> None:
    model = inference.load(bundle, OPENVINO, FLOAT32)
    killed = inference._process.pid

    async def main() -> list[Any]:
        images = [inference.score(model, picture("green", seed=seed)) for seed in range(30)]
        os.kill(killed, signal.SIGKILL)
        return await asyncio.gather(*images, return_exceptions=True)

    outcomes = inference.runner.run(main())
    assert {type(outcome) for outcome in outcomes} <= {Scored, InferenceLost}
    assert (
        sum(isinstance(outcome, InferenceLost) for outcome in outcomes) <= 5
    )  # those it worked on, and three that lay ready
    assert inference.ready
    assert inference._process.pid != killed


def test_an_image_that_takes_for_ever_ends_it(bundle: Bundle) -> None:
    inference = Scoring(ServeSettings(timeout=1), threads=1)
    model = inference.load(bundle, OPENVINO, FLOAT32)
    os.kill(inference._process.pid, signal.SIGSTOP)
    began = time.monotonic()
    (outcome,) = inference.all(model, picture("red"))
    assert isinstance(outcome, InferenceLost)
    assert 2 <= time.monotonic() - began < 10
    assert wait(lambda: inference.ready)
    inference.close()


def test_the_server_outlives_its_death_under_load(world: World) -> None:
    world.publish_live()
    with serving(world) as server:
        workers = server.workers()
        with Clients(server) as clients:
            for _ in range(3):
                answered = len(clients.answers)
                assert wait(lambda: len(clients.answers) > answered + 50)  # noqa: B023 - called at once
                (process,) = processes_of(server)
                process.kill()
                assert server.http.get("/livez").status_code == 200
                assert wait(lambda: processes_of(server) not in ([], [process]))  # noqa: B023
                assert wait(lambda: server.http.get("/readyz").status_code == 200)
        text = server.http.get("/metrics").text
        output = server.output()
        assert server.workers() == workers
    assert len(clients.failures) <= 3 * 4
    assert all('"urn:perennial:problem:inference-lost"' in failure for failure in clients.failures), clients.failures
    assert "perennial_inference_restarts_total 3.0" in text
    assert "signal SIGKILL" in output
    assert world.rows() == len(clients.answers)


def test_it_ends_with_its_worker_and_knows_no_password(world: World) -> None:
    world.publish_live()
    with serving(world) as server:
        (process,) = processes_of(server)
        assert not any(name.startswith("PERENNIAL_") for name in process.environ())
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)
        assert wait(lambda: not process.is_running())


def test_messages_come_out_as_they_went_in() -> None:
    memory = ImageMemory(3, 100)
    assert memory.size >= 100
    memory.put(1, b"one")
    memory.put(2, b"other")
    assert memory.get(1, 3) + memory.get(2, 5) == b"oneother"
    vectors = [np.linspace(0, 1, size, dtype=np.float32) for size in (5, 9, 7)]
    sent = Scored(ImageHeader("PNG", "RGBA", 3, 4), "ab" * 32, vectors[0], vectors[1], vectors[2], 1.5, 0.25, 0.5, 8)
    slot, got = unpack_reply(memory, memoryview(pack_scored(memory, 2, sent)))
    assert slot == 2
    assert isinstance(got, Scored)
    assert (got.header, got.digest, got.batch) == (sent.header, sent.digest, sent.batch)
    assert (got.began, got.decode_seconds, got.infer_seconds) == (1.5, 0.25, 0.5)
    for mine, theirs in zip((got.probabilities, got.embedding, got.properties), vectors, strict=True):
        assert np.array_equal(mine, theirs)
    slot, refused = unpack_reply(memory, memoryview(pack_error(1, TruncatedImage("broken off"), "")))
    assert (slot, type(refused), str(refused)) == (1, TruncatedImage, "broken off")
    odd = "\ud800" + "\U0001f600" * 5000
    message = pack_error(1, TruncatedImage(odd), "")
    assert len(message) < MESSAGE_BYTES
    _, refused = unpack_reply(memory, memoryview(message))
    assert str(refused) == odd[:2000]
    with pytest.raises(ValueError, match="do not fit"):
        memory.put(1, bytes(memory.size + 1))
    _, failed = unpack_reply(memory, memoryview(pack_error(0, ValueError("no"), "Traceback: no")))
    assert (type(failed), str(failed)) == (InferenceFailed, "Traceback: no")
    memory.close()


def test_memory_of_large_images_is_given_back() -> None:
    """In a process of its own: in that of the tests other libraries decide when freed memory goes back."""
    program = """
import os, psutil
from service.inference_wire import ImageMemory
memory = ImageMemory(2, 64 * 2**20)
rss = psutil.Process().memory_info().rss
memory.put(0, b"\\xff" * (64 * 2**20))
assert os.fstat(memory.descriptor).st_blocks * 512 >= 64 * 2**20
assert psutil.Process().memory_info().rss - rss < 20 * 2**20  # it is not this process's
memory.release(0, 64 * 2**20)
assert os.fstat(memory.descriptor).st_blocks == 0
assert memory.get(0, 4) == bytes(4)
memory.close()
print("given back")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout) == (0, "given back\n"), ran.stderr
