"""The graph on both runtimes: a small convolutional network of random weights, real inference."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from perennial import graph as graphs
from perennial.errors import InvalidBundle, InvalidSettings
from perennial.graph import BFLOAT16, FLOAT32, ONNXRUNTIME, OPENVINO, Graph, available_precisions, fastest_runtime
from perennial.images import Pixels

SIDE = 24
RUNTIMES = (OPENVINO, ONNXRUNTIME)


def network_bytes() -> bytes:
    """uint8 [n, 24, 24, 3] -> a convolution, pooled; softmax of 4, an embedding of 5, channel means as 7 properties."""
    random = np.random.default_rng(0)

    def constant(name: str, values: Any, kind: type = np.float32) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(values, dtype=kind), name)

    nodes = [
        helper.make_node("Cast", ["pixels"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["real", "white"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "filters"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("ReduceMean", ["active", "places"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "head"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("MatMul", ["pooled", "pca"], ["embedding"]),
        helper.make_node("ReduceMean", ["planes", "places"], ["means"], keepdims=0),
        helper.make_node("Gather", ["means", "channels"], ["properties"], axis=1),
    ]
    body = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 5]),
            helper.make_tensor_value_info("properties", TensorProto.FLOAT, ["n", 7]),
        ],
        [
            constant("white", 255.0),
            constant("places", [2, 3], np.int64),
            constant("filters", random.normal(size=(16, 3, 3, 3))),
            constant("head", random.normal(size=(16, 4))),
            constant("pca", random.normal(size=(16, 5))),
            constant("channels", [0, 1, 2, 0, 1, 2, 0], np.int64),
        ],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def network() -> bytes:
    return network_bytes()


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (9, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_row_comes_back_for_each_image(network: bytes, pixels: Pixels, runtime: str) -> None:
    graph = Graph(network, threads=1, runtime=runtime)
    output = graph.run(pixels)
    assert (output.probabilities.shape, output.embedding.shape, output.properties.shape) == ((9, 4), (9, 5), (9, 7))
    assert {array.dtype for array in (output.probabilities, output.embedding)} == {np.dtype(np.float32)}
    assert np.allclose(output.probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.allclose(output.properties[:, :3], pixels.mean(axis=(1, 2)) / 255, atol=1e-5)
    assert (graph.classes, graph.height, graph.width, graph.device) == (4, SIDE, SIDE, "cpu")
    assert (graph.precision, graph.runtime) == (FLOAT32, runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_run_returns_is_the_callers_own(network: bytes, pixels: Pixels, runtime: str) -> None:
    graph = Graph(network, threads=1, runtime=runtime)
    first = graph.run(pixels[:1])
    kept = first.probabilities.copy(), first.embedding.copy(), first.properties.copy()
    graph.run(pixels[1:2])
    for before, now in zip(kept, (first.probabilities, first.embedding, first.properties), strict=True):
        assert np.array_equal(before, now)
    first.probabilities[:] = -1
    assert np.array_equal(graph.run(pixels[:1]).probabilities, kept[0])


def test_an_image_gets_the_same_bits_alone_and_among_others(network: bytes, pixels: Pixels) -> None:
    for precision in available_precisions(OPENVINO):
        graph = Graph(network, threads=1, precision=precision)
        together = graph.run(pixels)
        for at in range(len(pixels)):
            alone = graph.run(pixels[at : at + 1])
            assert np.array_equal(alone.probabilities[0], together.probabilities[at])
            assert np.array_equal(alone.embedding[0], together.embedding[at])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_threads_do_not_see_each_others_images(network: bytes, pixels: Pixels, runtime: str) -> None:
    graph = Graph(network, threads=2, runtime=runtime)
    expected = [graph.run(image[np.newaxis]).embedding[0] for image in pixels]
    turns = list(range(len(pixels))) * 40
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda at: graph.run(pixels[at : at + 1]).embedding[0], turns))
    assert all(np.array_equal(embedding, expected[at]) for at, embedding in zip(turns, found, strict=True))


def test_both_runtimes_give_the_same_numbers(network: bytes, pixels: Pixels) -> None:
    here, there = (Graph(network, threads=1, runtime=runtime).run(pixels) for runtime in RUNTIMES)
    assert np.allclose(here.probabilities, there.probabilities, atol=1e-5)
    assert np.allclose(here.embedding, there.embedding, atol=1e-4)
    assert np.allclose(here.properties, there.properties, atol=1e-5)


def test_bfloat16_moves_the_outputs_and_leaves_the_properties(network: bytes, pixels: Pixels) -> None:
    if BFLOAT16 not in available_precisions(OPENVINO):
        pytest.skip("this processor has no bfloat16")
    exact = Graph(network, threads=1).run(pixels)
    short = Graph(network, threads=1, precision=BFLOAT16).run(pixels)
    assert not np.array_equal(exact.embedding, short.embedding)
    assert np.allclose(exact.probabilities, short.probabilities, atol=0.05)
    assert np.allclose(exact.properties, short.properties, atol=1e-6)


@pytest.mark.parametrize("wrong", [(1, SIDE, SIDE + 1, 3), (1, SIDE, SIDE, 1), (SIDE, SIDE, 3)])
def test_pixels_of_another_shape_are_refused(network: bytes, wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"takes uint8 \[N, 24, 24, 3\]"):
        Graph(network, threads=1).run(np.zeros(wrong, np.uint8))


def test_pixels_that_are_not_bytes_are_refused(network: bytes) -> None:
    with pytest.raises(ValueError, match="not float32"):
        Graph(network, threads=1).run(np.zeros((1, SIDE, SIDE, 3), np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_that_is_no_graph_is_an_invalid_bundle(runtime: str) -> None:
    with pytest.raises(InvalidBundle, match="cannot be loaded"):
        Graph(b"no graph at all", threads=1, runtime=runtime)


def test_a_precision_that_the_runtime_lacks_is_refused_with_what_it_has(network: bytes) -> None:
    with pytest.raises(InvalidSettings, match=r"onnxruntime does not compute natively in bfloat16.*float32"):
        Graph(network, threads=1, precision=BFLOAT16, runtime=ONNXRUNTIME)


def test_a_missing_onnx_runtime_says_how_to_get_it(network: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(graphs.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    with pytest.raises(InvalidSettings, match=r"pip install 'perennial\[onnxruntime\]'"):
        Graph(network, threads=1, runtime=ONNXRUNTIME)


def test_an_unknown_runtime_is_refused(network: bytes) -> None:
    with pytest.raises(InvalidSettings, match="choose openvino or onnxruntime"):
        Graph(network, threads=1, runtime="tvm")


def test_without_a_gpu_the_fastest_runtime_is_openvino() -> None:
    if graphs.gpus():
        pytest.skip("this machine has a GPU")
    assert fastest_runtime() == OPENVINO


@pytest.mark.gpu
def test_on_a_gpu_cuda_gives_the_same_numbers_for_any_batch(network: bytes, pixels: Pixels) -> None:
    if not graphs.gpus() or fastest_runtime() != ONNXRUNTIME:
        pytest.skip("no GPU, or an ONNX Runtime without CUDA")
    graph = Graph(network, threads=1, runtime=ONNXRUNTIME)
    assert graph.device == "cuda"
    expected = Graph(network, threads=1).run(pixels)
    for size in (1, 3, 9):
        output = graph.run(pixels[:size])
        assert np.allclose(output.probabilities, expected.probabilities[:size], atol=1e-4)
        assert np.allclose(output.embedding, expected.embedding[:size], atol=1e-3)


def test_a_signal_after_a_graph_was_let_go_in_another_thread_ends_nothing(tmp_path: Path) -> None:
    # OpenVINO gives the thread that starts it a stack for signals; were it to end with its last graph, the next signal
    # would find that stack unmapped.
    (tmp_path / "graph.onnx").write_bytes(network_bytes())
    program = (
        "import os, signal, sys, threading; from pathlib import Path; from perennial.graph import Graph\n"
        "held = [Graph(Path(sys.argv[1]), threads=1)]\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('handled', flush=True))\n"
        "letting_go = threading.Thread(target=held.clear); letting_go.start(); letting_go.join()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('alive')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "graph.onnx")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, ["handled", "alive"]), done.stderr
