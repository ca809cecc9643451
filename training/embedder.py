"""The frozen backbone as a function: pixels in, features out, in the arithmetic that also serves.

OpenVINO in float32 takes a third of eager torch's time. What it cannot convert, or computes otherwise than torch, is
left to torch: slower, not different.
"""

from __future__ import annotations

import logging
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perennial.images import Pixels
from training.backbones import Backbone, normalised
from training.compiled_module import TOLERANCE, CompiledModule, difference

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]

OPENVINO: Final = "openvino-float32"
TORCH: Final = "torch-float32"

_FILLED: Final = 16  # images


class Embedder(Protocol):
    """uint8 [N, crop, crop, 3] -> float32 [N, D]. Threads may call it at once; a row depends on its image only."""

    @property
    def arithmetic(self) -> str: ...
    def __call__(self, pixels: Pixels) -> Floats: ...


def compiled(backbone: Backbone, images: Pixels, *, threads: int) -> Embedder:
    """The fastest embedder that computes this backbone's features.

    Args:
        images: uint8 [N, crop, crop, 3]; a few real ones, on which OpenVINO is compared with torch.
        threads: how many threads will call it at once, each on one core.
    """
    plain = TorchEmbedder(backbone)
    try:
        fast = OpenVinoEmbedder(backbone, threads=threads)
        worst = difference(plain.forward(images), fast(images))
    except Exception as error:  # noqa: BLE001 - tracing, export and compilation each raise their own kinds
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        logger.info("%s is embedded by torch, which is slower: OpenVINO cannot take it (%s)", backbone.name, why)
        return plain
    if not worst <= TOLERANCE:
        logger.info("%s is embedded by torch, which is slower: OpenVINO is off by %.2g", backbone.name, worst)
        return plain
    return fast


class OpenVinoEmbedder:
    """Compiled for one image, as the graph that serves is: a row cannot depend on what it came with."""

    arithmetic: Final = OPENVINO

    def __init__(self, backbone: Backbone, *, threads: int) -> None:
        crop = backbone.rule.crop
        blank = torch.zeros(1, crop, crop, 3, dtype=torch.uint8)
        self._compiled = CompiledModule(_Headless(backbone).eval(), blank, threads=threads)

    def __call__(self, pixels: Pixels) -> Floats:
        return self._compiled(pixels)


class TorchEmbedder:
    """Eager torch. It wants `torch.set_num_threads(1)` where threads call it at once."""

    arithmetic: Final = TORCH

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def __call__(self, pixels: Pixels) -> Floats:
        parts = [self._batch(pixels[start : start + _FILLED]) for start in range(0, len(pixels), _FILLED)]
        return np.concatenate(parts) if parts else np.empty((0, self._backbone.width), np.float32)

    def _batch(self, pixels: Pixels) -> Floats:
        # A short batch is filled up: another batch size can take another kernel, and the last bits of an embedding
        # must not depend on which images happened to be cached.
        filled = np.zeros((_FILLED, *pixels.shape[1:]), np.uint8)
        filled[: len(pixels)] = pixels
        return self.forward(filled)[: len(pixels)].copy()

    def forward(self, pixels: Pixels) -> Floats:
        """As it is, in one batch."""
        with torch.inference_mode():
            features: Floats = self._backbone.network(normalised(torch.from_numpy(pixels), self._backbone)).numpy()
        return features


class _Headless(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.network = backbone.network
        self._backbone = backbone

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network(normalised(pixels, self._backbone))
        return features
