"""Images that are inferred together are answered as if each had come alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from perennial.graph import ONNXRUNTIME, Graph, GraphOutput
from perennial.images import Pixels
from service.batching import Batching
from tests.service.conftest import COLOURS, SIDE, World, graph_bytes, picture, serving


@dataclass
class Counted:
    """A graph that remembers how many images it was given at once, and can fail or wait."""

    graph: Graph
    sizes: list[int] = field(default_factory=list)
    fails: bool = False
    before: Callable[[], object] = lambda: None

    def run(self, pixels: Pixels) -> GraphOutput:
        self.sizes.append(len(pixels))
        self.before()
        if self.fails:
            raise RuntimeError("the device is gone")
        return self.graph.run(pixels)


@pytest.fixture(scope="module")
def graph() -> Graph:
    pytest.importorskip("onnxruntime")
    return Graph(graph_bytes(), threads=1, runtime=ONNXRUNTIME)


def coloured(index: int) -> Pixels:
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[..., index % 3] = 100 + index
    return pixels


def run(graphs: list[Any], *, most: int, seconds: float = 0.01) -> tuple[list[Any], list[int]]:
    """One image for each of the graphs, all at once: what each got, and the sizes that were said."""
    batching = Batching(most=most, seconds=seconds)
    got: list[Any] = [None] * len(graphs)
    said: list[int] = []
    left = threading.Semaphore(0)

    def keep(index: int) -> Callable[[GraphOutput | Exception, int], None]:
        def done(output: GraphOutput | Exception, batch: int) -> None:
            got[index] = output
            said.append(batch)
            left.release()

        return done

    for index, graph in enumerate(graphs):
        batching.add(graph, coloured(index), keep(index))
    for _ in graphs:
        assert left.acquire(timeout=10)
    return got, said


def test_images_share_inferences_and_each_gets_its_own_row(graph: Graph) -> None:
    counted = Counted(graph)
    outputs, said = run([counted] * 20, most=8, seconds=0.5)  # so long that this thread has added all by then
    assert sum(counted.sizes) == 20
    assert max(counted.sizes) == 8
    assert len(counted.sizes) <= 4
    assert [size for size in said if size] == counted.sizes
    for index, output in enumerate(outputs):
        alone = graph.run(coloured(index)[np.newaxis])
        assert np.allclose(output.probabilities, alone.probabilities, atol=1e-6)
        assert np.allclose(output.properties, alone.properties, atol=1e-6)


def test_one_image_waits_no_longer_than_the_window(graph: Graph) -> None:
    counted = Counted(graph)
    (output,), _ = run([counted], most=8, seconds=0.01)
    assert counted.sizes == [1]
    assert output.probabilities.shape == (1, 3)


def test_images_that_come_while_one_is_computed_are_the_next_batch(graph: Graph) -> None:
    come = threading.Event()
    counted = Counted(graph, before=lambda: come.wait(10))
    threading.Timer(0.3, come.set).start()
    run([counted] * 9, most=4, seconds=0)
    assert counted.sizes[0] <= 4
    assert counted.sizes[1] == 4


def test_a_device_that_fails_answers_everybody(graph: Graph) -> None:
    outcomes, _ = run([Counted(graph, fails=True)] * 10, most=4)
    assert [type(outcome) for outcome in outcomes] == [RuntimeError] * 10


def test_a_batch_never_mixes_models(graph: Graph) -> None:
    one, other = Counted(graph), Counted(graph)
    outcomes, _ = run([(one, other)[index % 4 > 1] for index in range(16)], most=16)
    assert all(isinstance(outcome, GraphOutput) for outcome in outcomes)
    assert (sum(one.sizes), sum(other.sizes)) == (8, 8)


def test_a_server_that_gathers_answers_the_same(world: World) -> None:
    world.publish_live()
    extra = {"PERENNIAL_SERVE__BATCHING": "always", "PERENNIAL_SERVE__RUNTIME": "onnxruntime"}
    images = [picture(COLOURS[index % 3], seed=index) for index in range(60)]
    with serving(world, extra=extra) as server:
        with ThreadPoolExecutor(12) as clients:
            answers = list(clients.map(server.predict, images))
        bad = server.post("/v1/predict", images[0][:-200])
        text = server.http.get("/metrics").text
    assert [answer["label"] for answer in answers] == [COLOURS[index % 3] for index in range(60)]
    assert bad.status_code == 400
    assert "perennial_batch_images_sum 60.0" in text
    assert world.rows() == 60
