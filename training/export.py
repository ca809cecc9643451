"""The trained model as one graph: uint8 pixels in; probabilities, embedding and image properties out.

Normalisation, temperature, PCA and the properties are inside, so training, service and monitor share one arithmetic.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.decomposition import PCA
from torch import Tensor, nn

from perennial.errors import InvalidBundle, InvalidParameter
from perennial.graph import INPUT, OUTPUTS, PROPERTIES, Graph
from perennial.images import Pixels
from training.backbones import Backbone
from training.features import Floats
from training.finetune import Probe

EMBEDDING: Final = 32
TOLERANCE: Final = 1e-3
_LUMA: Final = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True, slots=True)
class Whitening:
    """Principal components of the training features, scaled to unit variance: (features - centre) @ components.T.
    `components` [E, D], `centre` [D]."""

    components: Floats
    centre: Floats


def fit_whitening(features: Floats) -> Whitening:
    """PCA of the training rows' features [N, D], whitened; E = min(32, D, N - 1)."""
    size = min(EMBEDDING, features.shape[1], len(features) - 1)
    with np.errstate(invalid="ignore"):  # the share of variance explained, where all features are constant
        pca = PCA(size, random_state=0).fit(features.astype(np.float64))
    spread = np.sqrt(pca.explained_variance_)
    # A direction with next to no variance must not be blown up to unit variance: it would be rounding noise.
    spread = np.maximum(spread, 1e-3 * float(spread[0]) or 1.0)
    return Whitening((pca.components_ / spread[:, None]).astype(np.float32), pca.mean_.astype(np.float32))


class ServedModel(nn.Module):
    """What the graph computes. `forward`: uint8 [N, H, W, 3] -> probabilities [N, K], embedding [N, E],
    properties [N, P]."""

    scale: Tensor
    shift: Tensor
    luma: Tensor
    centre: Tensor
    temperature: Tensor

    def __init__(self, backbone: Backbone, probe: Probe, temperature: float, whitening: Whitening) -> None:
        super().__init__()
        self.backbone = backbone.network
        self.head = _linear(probe.weight, probe.bias)
        self.pca = _linear(whitening.components, np.zeros(len(whitening.components), np.float32))
        self.register_buffer("centre", torch.from_numpy(whitening.centre.copy()))
        self.register_buffer("temperature", torch.tensor(temperature, dtype=torch.float32))
        mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
        self.register_buffer("scale", 1.0 / (255.0 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)
        self.register_buffer("luma", torch.tensor(_LUMA).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.backbone(self._normalised(pixels))
        probabilities = torch.softmax(self.head(features) / self.temperature, dim=1)
        properties = self._properties(pixels.permute(0, 3, 1, 2).float() / 255.0)
        return probabilities, self.pca(features - self.centre), properties

    def _normalised(self, pixels: Tensor) -> Tensor:
        """[N, H, W, 3] in 0..255 -> [N, 3, H, W], by the backbone's mean and deviation. Row by row: on three channels
        at a time OpenVINO's bfloat16 is twenty times slower."""
        _, height, width, _ = pixels.shape
        rows = pixels.reshape(-1, height, width * 3).float()
        rows = rows * self.scale.repeat(width) + self.shift.repeat(width)
        return rows.reshape(-1, height, width, 3).permute(0, 3, 1, 2)

    def _properties(self, images: Tensor) -> Tensor:
        """`perennial.graph.PROPERTIES` of images [N, 3, H, W] in 0..1. Sharpness is log(1 + variance of the
        Laplacian), in 8-bit steps squared."""
        luma = (images * self.luma).sum(dim=1)
        brightness = luma.mean(dim=(1, 2))
        contrast = (luma - brightness[:, None, None]).square().mean(dim=(1, 2)).sqrt()
        middle = luma[:, 1:-1, 1:-1]
        around = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
        laplacian = 255.0 * (around - 4.0 * middle)
        centred = laplacian - laplacian.mean(dim=(1, 2), keepdim=True)
        sharpness = torch.log(1.0 + centred.square().mean(dim=(1, 2)))
        highest, lowest = images.amax(dim=1), images.amin(dim=1)
        saturation = ((highest - lowest) / highest.clamp(min=1.0 / 255.0)).mean(dim=(1, 2))
        channels = images.mean(dim=(2, 3))
        columns = {
            "brightness": brightness, "contrast": contrast, "sharpness": sharpness, "saturation": saturation,
            "red": channels[:, 0], "green": channels[:, 1], "blue": channels[:, 2],
        }  # fmt: skip
        return torch.stack([columns[name] for name in PROPERTIES], dim=1)


def export_graph(model: ServedModel, pixels: Pixels, path: Path) -> None:
    """Write the model as an ONNX graph with a dynamic batch, and prove that it computes the same.

    Args:
        pixels: uint8 [N, H, W, 3]; real images, on which OpenVINO's output is compared with torch's.

    Raises:
        InvalidParameter: this backbone cannot be exported.
        InvalidBundle: the graph's output is not torch's within 1e-3.
    """
    pixels = np.concatenate([pixels] * 3) if len(pixels) < 3 else pixels
    example = torch.from_numpy(np.ascontiguousarray(pixels[:2]))
    try:
        with _quiet(), torch.inference_mode():
            program = torch.onnx.export(
                model,
                (example,),
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            assert program is not None
            program.save(path, external_data=False)
    except Exception as error:  # the exporter raises its own kind at each of its many steps
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidParameter(f"this backbone cannot be exported as one graph ({reason}); choose another") from error
    _verify(model, pixels, path)


def save_weights(model: ServedModel, path: Path) -> None:
    """Backbone, head, PCA and temperature as safetensors."""
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path, {"format": "pt"})


def _verify(model: ServedModel, pixels: Pixels, path: Path) -> None:
    graph = Graph(path, threads=1)
    for count in (1, 3, len(pixels)):
        some = np.ascontiguousarray(pixels[:count])
        with torch.inference_mode():
            expected = model(torch.from_numpy(some))
        got = graph.run(some)
        for name, tensor, array in zip(
            OUTPUTS, expected, (got.probabilities, got.embedding, got.properties), strict=True
        ):
            worst = _difference(tensor.numpy(), array)
            if not worst <= TOLERANCE:
                raise InvalidBundle(
                    f"the exported graph's {name} differs from the model's by {worst:.2g} on {count} images "
                    f"(at most {TOLERANCE:g} is accepted); nothing was published"
                )


def _difference(expected: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """The largest difference, relative where values exceed 1. NaN and a wrong shape are infinitely far."""
    if expected.shape != got.shape or not (np.isfinite(expected).all() and np.isfinite(got).all()):
        return float("inf")
    return float((np.abs(expected - got) / np.maximum(1.0, np.abs(expected))).max())


def _linear(weight: Floats, bias: Floats) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": torch.from_numpy(weight.copy()), "bias": torch.from_numpy(bias.copy())})
    return layer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints to stdout, which `--json` keeps for one document, and logs what it optimises away."""
    loggers: Sequence[logging.Logger] = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
