"""Depthwise convolutions with a stride, trained fast in bfloat16.

oneDNN has no fast gradient for them on processors: that of 192 channels at 28 x 28 pixels took 44 ms for 32 images,
where float32 with its two conversions takes 5. Of a mobile network's arithmetic they are a hundredth; of a training
step they were half.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class _InFloat32(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float()).to(input.dtype)


@contextmanager
def strides_in_float32(network: nn.Module) -> Iterator[None]:
    """Meanwhile the depthwise convolutions with a stride compute in float32, whatever autocast says. Weights and their
    names stay as they are."""
    changed = [
        layer
        for layer in network.modules()
        if type(layer) is nn.Conv2d and layer.groups == layer.in_channels > 1 and max(layer.stride) > 1
    ]
    for layer in changed:
        layer.__class__ = _InFloat32
    try:
        yield
    finally:
        for layer in changed:
            layer.__class__ = nn.Conv2d
