"""Runs a bundle's graph. Training scores its reference with it, the gate judges with it, the service serves with it.

OpenVINO on the processor: one graph, uint8 pixels in, the three outputs out. Thread-safe: each thread that calls
has its own infer request.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from perennial.errors import InvalidBundle
from perennial.images import Pixels

FLOAT32: Final = "float32"
INPUT: Final = "pixels"
OUTPUTS: Final = ("probabilities", "embedding", "properties")
#: The order of the columns of the output `properties`; all but contrast's and sharpness' scales are in 0..1.
PROPERTIES: Final = ("brightness", "contrast", "sharpness", "saturation", "red", "green", "blue")

Floats = NDArray[np.float32]

_first_call = threading.Lock()


@dataclass(frozen=True, slots=True)
class GraphOutput:
    """`probabilities` [N, K], `embedding` [N, E], `properties` [N, P]; float32, one row an image."""

    probabilities: Floats
    embedding: Floats
    properties: Floats


class Graph:
    """A compiled graph.

    Args:
        model: the path of `graph.onnx`, or its bytes.
        threads: how many threads will call `run` at once; each infers on one core. 0 means every core.

    Raises:
        InvalidBundle: the file is not such a graph.
    """

    def __init__(self, model: Path | bytes, *, threads: int = 0) -> None:
        import openvino

        threads = threads or os.cpu_count() or 1
        core = openvino.Core()
        try:
            network = core.read_model(model)
            self._compiled = core.compile_model(
                network,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": "f32",  # OpenVINO's own choice would differ between processors
                    "NUM_STREAMS": threads,
                    "INFERENCE_NUM_THREADS": threads,
                },
            )
            self._outputs = [self._compiled.output(name) for name in OUTPUTS]
            _, self.height, self.width, _ = (
                dimension.get_length() if dimension.is_static else -1
                for dimension in self._compiled.input(INPUT).partial_shape
            )
            self.classes = int(self._outputs[0].partial_shape[1].get_length())
        except (RuntimeError, ValueError) as error:
            raise InvalidBundle(f"the graph cannot be loaded: {str(error).strip().splitlines()[-1]}") from error
        self._thread = threading.local()
        # OpenVINO's Python binding fills a table at the first inference of a process (in Type.to_dtype), and hangs for
        # good if two threads make that one at once. So the first is made here, by one thread.
        with _first_call:
            openvino.Type.u8.to_dtype()

    def run(self, pixels: Pixels) -> GraphOutput:
        """Infer.

        Args:
            pixels: uint8 [N, H, W, 3], RGB, resized and cropped by the bundle's rule.
        """
        request: Any = getattr(self._thread, "request", None)
        if request is None:
            request = self._thread.request = self._compiled.create_infer_request()
        result = request.infer({INPUT: np.ascontiguousarray(pixels)}, share_inputs=True)
        probabilities, embedding, properties = (np.array(result[output]) for output in self._outputs)
        return GraphOutput(probabilities, embedding, properties)

    def run_in_batches(self, pixels: Pixels, batch: int = 32) -> GraphOutput:
        """`run` over many images, `batch` at a time, to bound memory."""
        parts = [self.run(pixels[start : start + batch]) for start in range(0, len(pixels), batch)]
        return GraphOutput(
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate([part.embedding for part in parts]),
            np.concatenate([part.properties for part in parts]),
        )
