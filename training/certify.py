"""Certified precision: how a model answers in less than float32, and whether that is close enough to be served.

bfloat16 and int8 move the outputs a little, so a precision is served only if the reference rows, scored under it,
are labelled as in float32 within a stated budget. Those rows go into the bundle: the monitor compares predictions with
the reference of their own precision, or the change of arithmetic would be taken for drift.

Brightness, contrast and the other image properties are float32 under every precision: under its bfloat16 hint OpenVINO
shortens only what follows the first convolution or matrix product, of which they have none, and the quantisation is
told to leave their operations alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np

from perennial.bundle import GRAPH_INT8, Certificate
from perennial.errors import InvalidSettings
from perennial.graph import BFLOAT16, FLOAT32, INPUT, INT8, OUTPUTS, Graph, GraphOutput, available_precisions
from perennial.images import ImageLimits, InputRule, Pixels
from perennial.progress import Progress, Step, silent
from training import features
from training.datasets import Row
from training.evaluate import accuracy_interval

#: The budget: the least share of labels as in float32, and the most accuracy that may be lost against it.
LEAST_AGREEMENT: Final = 0.99
MOST_LOSS: Final = 0.005

#: NNCF's own default; its statistics hardly change with more.
CALIBRATION_IMAGES: Final = 300
_TIMED_RUNS: Final = 5  # at least
_UNDISTURBED: Final = 0.1


def require_int8() -> None:
    """Raises InvalidSettings where NNCF is not installed: better heard before an hour of work than after it."""
    if importlib.util.find_spec("nncf") is None:
        raise InvalidSettings(
            "train.int8 quantises with NNCF, which is not installed: pip install 'perennial[int8]', or set train.int8 "
            "to false"
        )


def graphs(
    folder: Path,
    graph: Path,
    train: Sequence[Row],
    rule: InputRule,
    *,
    int8: bool,
    threads: int,
    limits: ImageLimits,
    progress: Progress = silent,
) -> dict[str, Graph]:
    """The exported graph in each precision that this processor has: float32 first.

    Args:
        folder: where the int8 graph is written, if `int8` asks for one.
        train: training rows, of which up to 300 calibrate it.

    Raises:
        InvalidBundle: one cannot be compiled.
    """
    able = available_precisions("openvino")
    of_this_file = [precision for precision in (FLOAT32, BFLOAT16) if precision in able]
    with ThreadPoolExecutor(len(of_this_file)) as pool:  # a compilation takes one core
        compiled = pool.map(lambda precision: Graph(graph, threads=threads, precision=precision), of_this_file)
        found: dict[str, Graph] = dict(zip(of_this_file, compiled, strict=True))
    if int8 and INT8 in able:
        progress(Step("quantising to int8", 0, 1))
        quantised = folder / GRAPH_INT8
        quantise(graph, _calibration(train, rule, limits), quantised)
        found[INT8] = Graph(quantised, threads=threads, precision=INT8)
        progress(Step("quantising to int8", 1, 1))
    return found


def certificates(
    outputs: Mapping[str, GraphOutput],
    speeds: Mapping[str, float],
    true: Sequence[int],
    held_out: Sequence[bool],
) -> dict[str, Certificate]:
    """A certificate for each precision.

    Args:
        outputs: what each precision's graph said about the same N images; `float32` is among them.
        speeds: images per second, as `measure_speeds` gives them.
        true: [N] the index of each image's label.
        held_out: [N] False for images that took part in training: they count for agreement, not for accuracy.
    """
    kept = np.asarray(held_out, dtype=bool)
    labels = np.asarray(true)
    plain = outputs[FLOAT32].probabilities.argmax(axis=1)
    accuracy = int((plain == labels)[kept].sum())
    found = {}
    for precision, output in outputs.items():
        answers = output.probabilities.argmax(axis=1)
        right = int((answers == labels)[kept].sum())
        agreed = int((answers == plain).sum())
        loss = (accuracy - right) / max(1, int(kept.sum()))
        finite = all(np.isfinite(getattr(output, name)).all() for name in OUTPUTS)
        why = _refusal(agreed / len(plain), loss, finite)
        found[precision] = Certificate(
            certified=why == "",
            why=why,
            rows=len(plain),
            agreement=accuracy_interval(agreed, len(plain)),
            accuracy=accuracy_interval(right, int(kept.sum())),
            accuracy_loss=loss,
            least_agreement=LEAST_AGREEMENT,
            most_accuracy_loss=MOST_LOSS,
            images_per_second=round(speeds[precision], 1),
        )
    return found


def measure_speeds(graphs: Mapping[str, Graph], seconds_each: float = 0.1) -> dict[str, float]:
    """Images per second of each graph: one thread, one image at a time. The graphs take turns, and the fastest tenth of
    the runs counts: on a machine that also serves, medians order the precisions by chance."""
    random = np.random.default_rng(0)
    pixels = {
        name: random.integers(0, 256, (1, graph.height, graph.width, 3), np.uint8) for name, graph in graphs.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in graphs}
    for name, graph in graphs.items():
        graph.run(pixels[name])  # the first run of a thread allocates
    until = time.perf_counter() + seconds_each * len(graphs)
    while time.perf_counter() < until or any(len(each) < _TIMED_RUNS for each in seconds.values()):
        for name, graph in graphs.items():
            began = time.perf_counter()
            graph.run(pixels[name])
            seconds[name].append(time.perf_counter() - began)
    return {name: 1.0 / float(np.quantile(each, _UNDISTURBED)) for name, each in seconds.items()}


def quantise(graph: Path, pixels: Pixels, path: Path) -> None:
    """Write the graph with 8-bit integer weights and activations (static post-training quantisation, NNCF).

    Args:
        pixels: uint8 [N, H, W, 3]; training images, from which the ranges of the activations are taken.
        path: an OpenVINO `.xml`; its weights are written beside it as `.bin`.
    """
    import openvino

    with _silent():
        import nncf

        network = openvino.Core().read_model(graph)
        shape = network.input(INPUT).partial_shape
        shape[0] = 1
        network.reshape({INPUT: shape})
        quantised = nncf.quantize(
            network,
            nncf.Dataset([image[np.newaxis] for image in pixels]),
            subset_size=len(pixels),
            ignored_scope=nncf.IgnoredScope(names=_of_properties_alone(network)),
        )
        openvino.save_model(quantised, path, compress_to_fp16=False)


def _refusal(agreement: float, loss: float, finite: bool) -> str:
    if not finite:
        return "some outputs are not numbers"
    if agreement < LEAST_AGREEMENT:
        return f"{agreement:.1%} of the labels are float32's; {LEAST_AGREEMENT:.0%} is the least"
    if loss > MOST_LOSS:
        return f"accuracy is {loss:.1%} lower than in float32; {MOST_LOSS:.1%} is the most"
    return ""


def _calibration(train: Sequence[Row], rule: InputRule, limits: ImageLimits) -> Pixels:
    # Rows come class by class: even steps take of every class.
    at = np.unique(np.linspace(0, len(train) - 1, CALIBRATION_IMAGES).astype(int))
    return features.decode([train[index] for index in at], rule, limits)[1]


def _of_properties_alone(network: Any) -> list[str]:
    """Operations that only the output `properties` needs: in 8 bits they would lose their meaning."""
    of = {name: _ancestors(network.output(name).get_node()) for name in OUTPUTS}
    alone = of["properties"].keys() - of["probabilities"].keys() - of["embedding"].keys()
    return sorted(name for name in alone if of["properties"][name] not in ("Constant", "Result"))


def _ancestors(node: Any) -> dict[str, str]:
    """The names of an operation and all that it is computed from, with their types."""
    found: dict[str, str] = {}
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() not in found:
            found[node.get_friendly_name()] = node.get_type_name()
            waiting += [port.get_source_output().get_node() for port in node.inputs()]
    return found


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """NNCF draws progress bars and logs on stdout, which `--json` keeps for one document."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
