"""A torch module as OpenVINO computes it: in float32, one example at a time, on several threads at once."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perennial.openvino_graph import core
from training.onnx_export import plain_attention, quiet

#: How far OpenVINO may be from torch, relative where values exceed 1.
TOLERANCE: Final = 1e-3
_OPSET: Final = 20


class CompiledModule:
    """[N, *example] -> float32 [N, *output]. A row depends on its own example only.

    Args:
        example: [1, ...], of the type and the size of all that will come.
        threads: how many threads will call it at once, each on one core.
    """

    def __init__(self, module: nn.Module, example: Tensor, *, threads: int) -> None:
        options = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": threads, "INFERENCE_NUM_THREADS": threads}
        with tempfile.TemporaryDirectory(prefix="perennial-") as folder:
            path = Path(folder, "module.onnx")
            with quiet(), plain_attention(), torch.inference_mode():
                torch.onnx.export(
                    module,
                    (example,),
                    path,
                    input_names=["input"],
                    output_names=["output"],
                    opset_version=_OPSET,
                    dynamo=False,  # the other exporter takes ten times as long, for a few networks more
                )
            self._compiled = core().compile_model(path, "CPU", options)
        self._shape = tuple(self._compiled.output(0).shape)[1:]
        self._thread = threading.local()
        # The first inference of a process must not be made by two threads at once: see `perennial.openvino_graph`.
        self(example.numpy())

    def __call__(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        request = getattr(self._thread, "request", None)
        if request is None:
            request = self._thread.request = self._compiled.create_infer_request()
        outputs = np.empty((len(inputs), *self._shape), np.float32)
        for at in range(len(inputs)):
            outputs[at] = request.infer([inputs[at : at + 1]], share_outputs=True)[0][0]
        return outputs


def difference(expected: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """The largest, relative where values exceed 1. What is not a number, or has another shape, is infinitely far."""
    if expected.shape != got.shape or not (np.isfinite(expected).all() and np.isfinite(got).all()):
        return float("inf")
    return float((np.abs(expected - got) / np.maximum(1.0, np.abs(expected))).max(initial=0.0))
