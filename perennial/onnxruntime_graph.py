"""The graph on ONNX Runtime, in float32: on an NVIDIA GPU, or on processors that OpenVINO does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from perennial.errors import InvalidBundle, InvalidSettings
from perennial.graph import INPUT, OUTPUTS, Floats, GraphOutput
from perennial.images import Pixels

_CUDA: Final = "CUDAExecutionProvider"
_CPU: Final = "CPUExecutionProvider"
_ERRORS_ONLY: Final = 3
_CUDA_OPTIONS: Final = {
    "use_tf32": "0",  # float32 is to mean float32: TF32 keeps 10 bits of each number
    "cudnn_conv_algo_search": "HEURISTIC",  # the default times every algorithm again for each new batch size
}


def has_cuda() -> bool:
    """Is the ONNX Runtime that is installed one with CUDA?"""
    import onnxruntime

    return _CUDA in onnxruntime.get_available_providers()


class OnnxRuntimeGraph:
    """Compiled for any batch. On the processor each calling thread infers on its own core.

    Args:
        cuda: run on the GPU, if this ONNX Runtime has CUDA.

    Raises:
        InvalidBundle: the file is not such a graph.
        InvalidSettings: CUDA is installed and cannot be started.
    """

    def __init__(self, model: Path | bytes, *, cuda: bool) -> None:
        import onnxruntime

        cuda = cuda and has_cuda()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _ERRORS_ONLY
        providers: list[Any] = [(_CUDA, _CUDA_OPTIONS), _CPU] if cuda else [_CPU]
        try:
            self._session = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=providers
            )
            shapes = {port.name: port.shape for port in (*self._session.get_inputs(), *self._session.get_outputs())}
            _, height, width, _ = shapes[INPUT]
            self.side: Final = (int(height), int(width))
            self.classes: Final = int(shapes[OUTPUTS[0]][1])
        except Exception as error:  # ONNX Runtime has an exception class for each status, with no base of their own
            raise InvalidBundle(f"the graph cannot be loaded: {str(error).strip().splitlines()[-1]}") from error
        self.device: Final = "cuda" if cuda else "cpu"
        if cuda and self._session.get_providers()[0] != _CUDA:
            # ONNX Runtime would go on quietly on the processor, many times slower.
            raise InvalidSettings(
                "ONNX Runtime sees a GPU and cannot start CUDA on it; install the CUDA and cuDNN that this "
                "onnxruntime-gpu was built for, or set serve.runtime to openvino"
            )

    def run(self, pixels: Pixels) -> GraphOutput:
        outputs: list[Floats] = self._session.run(OUTPUTS, {INPUT: np.ascontiguousarray(pixels)})
        return GraphOutput(*outputs)
