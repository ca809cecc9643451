"""The graph on OpenVINO: on the processor, one image at a time, one core a thread."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from perennial.errors import InvalidBundle
from perennial.graph import BFLOAT16, FLOAT32, INPUT, INT8, OUTPUTS, Floats, GraphOutput
from perennial.images import Pixels

#: OpenVINO's name for what the operations compute in; those of an int8 graph that stay real stay float32.
_HINTS: Final = {FLOAT32: "f32", BFLOAT16: "bf16", INT8: "f32"}
#: What OpenVINO calls a precision that the processor has instructions for.
_CAPABILITIES: Final = {FLOAT32: "FP32", BFLOAT16: "BF16", INT8: "INT8"}

_first_call = threading.Lock()


@cache
def core() -> Any:
    """The one OpenVINO of this process, never let go: on processors with AVX-512 it gives the thread that makes it a
    stack for signals, and takes it away again with its last graph, in whatever thread that is; the next signal would
    then end the process."""
    import openvino

    return openvino.Core()


@cache
def native_precisions() -> tuple[str, ...]:
    """What this processor has instructions for; other precisions OpenVINO would emulate or quietly ignore."""
    able = set(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return tuple(precision for precision, capability in _CAPABILITIES.items() if capability in able)


@dataclass(slots=True)
class _Seat:
    """One thread's infer request, which reads from `pixels` and writes into `outputs`."""

    request: Any
    pixels: Pixels
    outputs: tuple[Floats, ...]


class OpenVinoGraph:
    """Compiled for a batch of one.

    A batch size known in advance spares OpenVINO to plan each inference anew (a quarter of the time of a small
    network), and an image's outputs cannot depend on the images it came with: the reference that is scored in training
    and the prediction that is served are the same computation.

    Raises:
        InvalidBundle: the file is not such a graph.
    """

    device: Final = "cpu"

    def __init__(self, model: Path | bytes, *, threads: int, precision: str) -> None:
        import openvino

        runtime = core()
        try:
            network = runtime.read_model(model)
            shape = network.input(INPUT).partial_shape
            shape[0] = 1
            network.reshape({INPUT: shape})
            self._compiled = runtime.compile_model(
                network,
                "CPU",
                {
                    # OpenVINO's own choice would differ between processors
                    "INFERENCE_PRECISION_HINT": _HINTS[precision],
                    "NUM_STREAMS": threads,
                    "INFERENCE_NUM_THREADS": threads,
                },
            )
            _, height, width, _ = self._compiled.input(INPUT).shape
            self._outputs = [self._compiled.output(name) for name in OUTPUTS]
            self._widths = [int(output.shape[1]) for output in self._outputs]
        except (RuntimeError, ValueError, IndexError) as error:
            raise InvalidBundle(f"the graph cannot be loaded: {str(error).strip().splitlines()[-1]}") from error
        self.side: Final = (int(height), int(width))
        self.classes: Final = self._widths[0]
        self._thread = threading.local()
        # OpenVINO's Python binding fills a table at the first inference of a process (in Type.to_dtype), and hangs for
        # good if two threads make that one at once. So the first is made here, by one thread.
        with _first_call:
            openvino.Type.u8.to_dtype()

    def run(self, pixels: Pixels) -> GraphOutput:
        seat: _Seat | None = getattr(self._thread, "seat", None)
        if seat is None:
            seat = self._thread.seat = self._take_seat()
        rows = tuple(np.empty((len(pixels), width), np.float32) for width in self._widths)
        for index, image in enumerate(pixels):
            seat.pixels[0] = image
            # Without the GIL. Of a tiny graph's time, this takes a third of what start_async and wait do.
            seat.request.infer(share_outputs=True)
            for row, output in zip(rows, seat.outputs, strict=True):
                row[index] = output[0]
        return GraphOutput(*rows)

    def _take_seat(self) -> _Seat:
        import openvino

        request = self._compiled.create_infer_request()
        # Arrays that are bound once: to hand over and fetch tensors anew costs more than to copy a small image.
        pixels = np.empty((1, *self.side, 3), np.uint8)
        request.set_input_tensor(openvino.Tensor(pixels, shared_memory=True))
        outputs = tuple(np.empty((1, width), np.float32) for width in self._widths)
        for port, output in zip(self._outputs, outputs, strict=True):
            request.set_tensor(port, openvino.Tensor(output, shared_memory=True))
        return _Seat(request, pixels, outputs)
