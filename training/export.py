"""The trained model as one graph: uint8 pixels in; probabilities, embedding and image properties out.

Normalisation, temperature, PCA and the properties are inside, so training, service and monitor share one arithmetic.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy.linalg import eigh
from sklearn.decomposition import PCA
from torch import Tensor, nn

from perennial.errors import InvalidBundle, InvalidParameter
from perennial.graph import INPUT, OUTPUTS, PROPERTIES, Graph
from perennial.images import Pixels
from training.backbones import Backbone
from training.compiled_module import TOLERANCE, difference
from training.features import Floats
from training.onnx_export import plain_attention, quiet
from training.probe import Probe
from training.resident import LARGE, blocks

logger = logging.getLogger(__name__)

Doubles = NDArray[np.float64]

EMBEDDING: Final = 32
_LEAST_SPREAD: Final = 0.03  # of a direction, against the widest
_LEAST_SHARE: Final = 0.01  # of a direction, against the length of the mean feature vector
_OPSET: Final = 20
_MOST_BYTES: Final = 2**31 - 2**20  # of one protobuf message, less room for the graph itself
_LUMA: Final = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True, slots=True)
class Whitening:
    """Principal components of the training features, scaled to unit variance: (features - centre) @ components.T.
    `components` [E, D], `centre` [D]."""

    components: Floats
    centre: Floats


def fit_whitening(features: Floats) -> Whitening:
    """PCA of the training rows' features [N, D], whitened; E = min(32, D, N - 1).

    Of large features (more than 2^23 numbers) the covariance is summed up block by block, in float64 too: an exact
    decomposition of [D, D] instead of a randomised one of a copy of all rows.
    """
    size = min(EMBEDDING, features.shape[1], len(features) - 1)
    components, variances, centre = _large_pca(features, size) if features.size > LARGE else _pca(features, size)
    spread = np.sqrt(variances)
    # A direction with next to no variance must not be blown up to unit variance: it would be rounding noise. A network
    # that was trained for few classes leaves little in all but a few directions, one that was hardly trained in any.
    least = max(_LEAST_SPREAD * float(spread[0]), _LEAST_SHARE * float(np.linalg.norm(centre)))
    spread = np.maximum(spread, least or 1.0)
    return Whitening((components / spread[:, None]).astype(np.float32), centre.astype(np.float32))


def _pca(features: Floats, size: int) -> tuple[Doubles, Doubles, Doubles]:
    """Components [E, D], the variances [E] along them, the largest first, and the centre [D]."""
    with np.errstate(invalid="ignore"):  # the share of variance explained, where all features are constant
        pca = PCA(size, random_state=0).fit(features.astype(np.float64))
    return pca.components_, pca.explained_variance_, pca.mean_


def _large_pca(features: Floats, size: int) -> tuple[Doubles, Doubles, Doubles]:
    width = features.shape[1]
    centre = sum((rows.sum(axis=0, dtype=np.float64) for _, rows in blocks(features)), np.zeros(width)) / len(features)
    products = np.zeros((width, width))
    for _, rows in blocks(features):
        centred = rows - centre
        products += centred.T @ centred
    variances, directions = eigh(products / (len(features) - 1), subset_by_index=(width - size, width - 1))
    components = directions[:, ::-1].T
    largest = np.abs(components).argmax(axis=1)
    signs = np.sign(components[np.arange(size), largest])  # as scikit-learn settles them
    return components * signs[:, None], np.maximum(variances[::-1], 0.0), centre


def fixed_projection(width: int, head: Floats | None = None) -> Whitening:
    """Directions that are fitted to no image, for models that come without training images: those in which the rows of
    a classifier's weights [K, `width`] differ the most, or any, which keep distances too (Johnson and Lindenstrauss,
    1984). Principal components fitted to the very rows that are the reference would tell any new image from them:
    of 153 photos, others of the same kind were told with AUC .76."""
    if head is None:
        head = np.random.default_rng(0).normal(size=(EMBEDDING + 1, width)).astype(np.float32)
    directions = np.linalg.svd((head - head.mean(axis=0)).astype(np.float64), full_matrices=False)[2][:EMBEDDING]
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(len(directions)), largest])  # which the decomposition leaves open
    return Whitening(np.ascontiguousarray(signs[:, None] * directions, np.float32), np.zeros(width, np.float32))


class ServedModel(nn.Module):
    """What the graph computes. `forward`: uint8 [N, H, W, 3] -> probabilities [N, K], embedding [N, E],
    properties [N, P]."""

    scale: Tensor
    shift: Tensor
    luma: Tensor
    centre: Tensor
    temperature: Tensor

    def __init__(self, backbone: Backbone, head: Probe | nn.Module, temperature: float, whitening: Whitening) -> None:
        super().__init__()
        self.backbone = backbone.network
        self.head = head if isinstance(head, nn.Module) else _linear(head.weight, head.bias)
        self.root = isinstance(head, Probe) and head.root
        # For whoever computes with the weights alone: whether the head wants the features' square roots.
        self.register_buffer("takes_roots", torch.tensor(self.root))
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
        shaped = features.clamp(min=0.0).sqrt() if self.root else features
        probabilities = torch.softmax(self.head(shaped) / self.temperature, dim=1)
        properties = self._properties(pixels.permute(0, 3, 1, 2).float() / 255.0)
        return probabilities, self.pca(features - self.centre), properties

    def _normalised(self, pixels: Tensor) -> Tensor:
        """[N, H, W, 3] in 0..255 -> [N, 3, H, W], by the backbone's mean and deviation. Row by row: on three channels
        at a time OpenVINO's bfloat16 is twenty times slower."""
        height, width = int(pixels.shape[1]), int(pixels.shape[2])  # constants of the graph; only the batch is not
        rows = pixels.reshape(-1, height, width * 3).float()
        rows = rows * self.scale.repeat(width) + self.shift.repeat(width)
        return rows.reshape(-1, height, width, 3).permute(0, 3, 1, 2)

    def _properties(self, images: Tensor) -> Tensor:
        """`perennial.graph.PROPERTIES` of images [N, 3, H, W] in 0..1. Sharpness is log(1 + variance of the
        Laplacian), in 8-bit steps squared. Smoothness is how much of the image has no fine detail, which compression
        takes away while it adds edges: the mean of 1 / (1 + Laplacian squared). The opponent colours are Hasler and
        Suesstrunk's (2003): they see a turn of hue, which hides in the channels behind the brightness."""
        luma = (images * self.luma).sum(dim=1)
        brightness = luma.mean(dim=(1, 2))
        contrast = (luma - brightness[:, None, None]).square().mean(dim=(1, 2)).sqrt()
        middle = luma[:, 1:-1, 1:-1]
        around = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
        laplacian = 255.0 * (around - 4.0 * middle)
        centred = laplacian - laplacian.mean(dim=(1, 2), keepdim=True)
        sharpness = torch.log(1.0 + centred.square().mean(dim=(1, 2)))
        smoothness = (1.0 / (1.0 + laplacian.square())).mean(dim=(1, 2))
        highest, lowest = images.amax(dim=1), images.amin(dim=1)
        saturation = ((highest - lowest) / highest.clamp(min=1.0 / 255.0)).mean(dim=(1, 2))
        red, green, blue = images.mean(dim=(2, 3)).unbind(dim=1)
        columns = {
            "brightness": brightness, "contrast": contrast, "sharpness": sharpness, "smoothness": smoothness,
            "saturation": saturation, "red": red, "green": green, "blue": blue, "red_green": red - green,
            "yellow_blue": (red + green) / 2.0 - blue,
        }  # fmt: skip
        return torch.stack([columns[name] for name in PROPERTIES], dim=1)


def export_graph(model: ServedModel, pixels: Pixels, path: Path) -> float:
    """Write the model as an ONNX graph with a dynamic batch, and prove that it computes the same.

    Args:
        pixels: uint8 [N, H, W, 3]; real images, on which OpenVINO's output is compared with torch's.

    Returns:
        The largest difference between the two, relative where values exceed 1.

    Raises:
        InvalidParameter: this backbone cannot be exported.
        InvalidBundle: the graph's output is not torch's within 1e-3.
    """
    _require_one_file(model)
    pixels = np.concatenate([pixels] * 3) if len(pixels) < 3 else pixels
    example = torch.from_numpy(np.ascontiguousarray(pixels[:2]))
    # Tracing takes a tenth of the time of torch.export and knows fewer networks. Whichever wrote the graph, it is
    # compared with torch before anybody gets to see it: a batch size that tracing took for a constant is found too,
    # for the example has two images and OpenVINO compiles for one.
    try:
        _traced(model, example, path)
        return _verify(model, pixels, path)
    except Exception as error:  # noqa: BLE001 - an exporter raises its own kind at each of its many steps
        logger.info("tracing does not export this backbone (%s); torch.export is tried", _first_line(error))
    _exported(model, example, path)
    return _verify(model, pixels, path)


def _traced(model: ServedModel, example: Tensor, path: Path) -> None:
    """Write the graph with the exporter that follows one forward pass."""
    with quiet(), plain_attention(), torch.inference_mode():
        torch.onnx.export(
            model,
            (example,),
            str(path),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes={name: {0: "n"} for name in (INPUT, *OUTPUTS)},
            opset_version=_OPSET,
            dynamo=False,
        )


def _exported(model: ServedModel, example: Tensor, path: Path) -> None:
    """Write the graph with the exporter that is built on torch.export."""
    try:
        with quiet(), torch.inference_mode():
            program = torch.onnx.export(
                model,
                (example,),
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
                opset_version=_OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            assert program is not None
            program.save(path, external_data=False)
    except Exception as error:  # as above
        raise InvalidParameter(
            f"this backbone cannot be exported as one graph ({_first_line(error)}); choose another"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _require_one_file(model: ServedModel) -> None:
    size = sum(value.nbytes for value in model.state_dict().values())
    if size >= _MOST_BYTES:
        raise InvalidParameter(
            f"this backbone has {size / 1e9:.1f} GB of weights, and one ONNX file holds at most "
            f"{_MOST_BYTES / 1e9:.1f} GB; choose a smaller one"
        )


def save_weights(model: ServedModel, path: Path) -> None:
    """Backbone, head, PCA and temperature as safetensors."""
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path, {"format": "pt"})


def _verify(model: ServedModel, pixels: Pixels, path: Path) -> float:
    graph = Graph(path, threads=1)
    largest = 0.0
    for count in (1, 3, len(pixels)):
        some = np.ascontiguousarray(pixels[:count])
        with torch.inference_mode():
            expected = model(torch.from_numpy(some))
        got = graph.run(some)
        for name, tensor, array in zip(
            OUTPUTS, expected, (got.probabilities, got.embedding, got.properties), strict=True
        ):
            worst = difference(tensor.numpy(), array)
            if not worst <= TOLERANCE:
                raise InvalidBundle(
                    f"the exported graph's {name} differs from the model's by {worst:.2g} on {count} images "
                    f"(at most {TOLERANCE:g} is accepted); nothing was published"
                )
            largest = max(largest, worst)
    return largest


def _linear(weight: Floats, bias: Floats) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": torch.from_numpy(weight.copy()), "bias": torch.from_numpy(bias.copy())})
    return layer
