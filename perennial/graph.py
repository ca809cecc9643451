"""Runs a bundle's graph. Training scores its reference with it, the gate judges with it, the service serves with it.

One graph, uint8 pixels in, the three outputs out, on one of two runtimes: OpenVINO on the processor, ONNX Runtime on
the processor or on a GPU. Thread-safe: each thread that calls infers on its own.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from perennial.errors import InvalidSettings
from perennial.images import Pixels

FLOAT32: Final = "float32"
BFLOAT16: Final = "bfloat16"
INT8: Final = "int8"
OPENVINO: Final = "openvino"
ONNXRUNTIME: Final = "onnxruntime"
#: What a graph runs on, as `Graph.device` says.
CPU: Final = "cpu"
CUDA: Final = "cuda"
INPUT: Final = "pixels"
OUTPUTS: Final = ("probabilities", "embedding", "properties")
#: The order of the columns of the output `properties`. Sharpness is a logarithm and the opponent colours are in -1..1;
#: the others are in 0..1.
PROPERTIES: Final = (
    "brightness", "contrast", "sharpness", "smoothness", "saturation", "red", "green", "blue", "red_green",
    "yellow_blue",
)  # fmt: skip

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class GraphOutput:
    """`probabilities` [N, K], `embedding` [N, E], `properties` [N, P]; float32, one row an image."""

    probabilities: Floats
    embedding: Floats
    properties: Floats


class Runtime(Protocol):
    """A graph that one runtime has compiled. `device` is `cpu` or `cuda`; `side` is the height and width of the images
    it takes; `classes` is K."""

    @property
    def device(self) -> str: ...
    @property
    def side(self) -> tuple[int, int]: ...
    @property
    def classes(self) -> int: ...

    def run(self, pixels: Pixels) -> GraphOutput: ...


class Graph:
    """A compiled graph.

    Args:
        model: the path of `graph.onnx` (or of a quantised `.xml`), or its bytes.
        threads: how many threads will call `run` at once; each infers on one core. 0 means every core.
        precision: what to compute in. `float32` and `bfloat16` take the same file; an `int8` graph is a file of its
            own, in which the precision of each operation is fixed.
        runtime: `openvino` or `onnxruntime`. ONNX Runtime computes in float32 only, on the GPU where it sees one.

    Raises:
        InvalidBundle: the file is not such a graph.
        InvalidSettings: this machine lacks the runtime, or does not compute natively in that precision.
    """

    def __init__(
        self, model: Path | bytes, *, threads: int = 0, precision: str = FLOAT32, runtime: str = OPENVINO
    ) -> None:
        able = available_precisions(runtime)
        if precision not in able:
            raise InvalidSettings(
                f"{runtime} does not compute natively in {precision} on this machine (it does in: {', '.join(able)}); "
                "set serve.precision to auto"
            )
        self.precision: Final = precision
        self.runtime: Final = runtime
        threads = threads or os.cpu_count() or 1
        self._compiled: Runtime
        if runtime == OPENVINO:
            from perennial.openvino_graph import OpenVinoGraph

            self._compiled = OpenVinoGraph(model, threads=threads, precision=precision)
        else:
            from perennial.onnxruntime_graph import OnnxRuntimeGraph

            self._compiled = OnnxRuntimeGraph(model, cuda=gpus() > 0)
        self.device: Final = self._compiled.device
        self.height, self.width = self._compiled.side
        self.classes: Final = self._compiled.classes

    def run(self, pixels: Pixels) -> GraphOutput:
        """Infer. The arrays returned are the caller's own.

        Args:
            pixels: uint8 [N, H, W, 3], RGB, resized and cropped by the bundle's rule.

        Raises:
            ValueError: pixels of another shape or type.
        """
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (self.height, self.width, 3):
            raise ValueError(
                f"the graph takes uint8 [N, {self.height}, {self.width}, 3], not {pixels.dtype} {list(pixels.shape)}"
            )
        return self._compiled.run(pixels)


def available_precisions(runtime: str) -> tuple[str, ...]:
    """The precisions that this machine computes in natively, on `openvino` or `onnxruntime`.

    Raises:
        InvalidSettings: the runtime is not installed, or there is none of that name.
    """
    if runtime == OPENVINO:
        from perennial.openvino_graph import native_precisions

        return native_precisions()
    if runtime != ONNXRUNTIME:
        raise InvalidSettings(f"there is no runtime {runtime!r}; choose {OPENVINO} or {ONNXRUNTIME}")
    if not _onnxruntime_installed():
        raise InvalidSettings(
            "ONNX Runtime is not installed: pip install 'perennial[onnxruntime]' (or 'perennial[gpu]' for CUDA), "
            f"or set serve.runtime to {OPENVINO}"
        )
    return (FLOAT32,)


def fastest_runtime() -> str:
    """ONNX Runtime where it is installed with CUDA and there is a GPU, else OpenVINO."""
    if gpus() == 0 or not _onnxruntime_installed():
        return OPENVINO
    from perennial.onnxruntime_graph import has_cuda

    return ONNXRUNTIME if has_cuda() else OPENVINO


def gpus() -> int:
    """NVIDIA GPUs that this process may use, as the driver counts them."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:  # no driver, no GPU
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _onnxruntime_installed() -> bool:
    return importlib.util.find_spec("onnxruntime") is not None
