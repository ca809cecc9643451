"""Random views of images, a batch at a time: crops, mirror images, and changes of light."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

_ASPECT = math.log(4 / 3)
_BRIGHTNESS = 64.0  # of 255, at a light of 1


@dataclass(frozen=True, slots=True)
class Augmentation:
    """`smallest` is the least share of the image's area that a crop keeps, `mirror` whether half of them are mirrored,
    `light` how far contrast and brightness go (0: not at all)."""

    smallest: float = 0.5
    mirror: bool = True
    light: float = 0.2


DEFAULT: Final = Augmentation()


def random_views(pixels: Tensor, size: int, random: torch.Generator, how: Augmentation) -> Tensor:
    """One view of each image: a crop of random area, shape (3:4 to 4:3) and place, resized bilinearly.

    Args:
        pixels: uint8 [N, S, S, 3].

    Returns:
        float32 [N, 3, size, size] in 0..255.
    """
    count = len(pixels)
    images = pixels.permute(0, 3, 1, 2).float()

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=random)

    side = uniform(how.smallest, 1.0).sqrt()
    stretch = uniform(-_ASPECT, _ASPECT).exp().sqrt()
    width, height = (side * stretch).clamp(max=1.0), (side / stretch).clamp(max=1.0)
    grid = torch.zeros(count, 2, 3)
    grid[:, 0, 0], grid[:, 1, 1] = width, height
    grid[:, 0, 2], grid[:, 1, 2] = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    mirrored = uniform(0, 1) < 0.5  # drawn in any case: another setting must not change the crops
    if how.mirror:
        grid[mirrored, 0, 0] *= -1
    views = F.grid_sample(
        images, F.affine_grid(grid, [count, 3, size, size], align_corners=False), padding_mode="reflection",
        align_corners=False,
    )  # fmt: skip
    contrast = 1 + how.light * uniform(-1, 1).view(-1, 1, 1, 1)
    brightness = how.light * _BRIGHTNESS * uniform(-1, 1).view(-1, 1, 1, 1)
    if how.light:
        mean = views.mean(dim=(1, 2, 3), keepdim=True)
        views = ((views - mean) * contrast + mean + brightness).clamp(0.0, 255.0)
    return views


def whole_views(pixels: Tensor, size: int, kept: float) -> Tensor:
    """Every image as it will be served: the central `kept` of its sides, resized where that is not `size` already.

    Args:
        pixels: uint8 [N, S, S, 3].

    Returns:
        float32 [N, 3, size, size] in 0..255.
    """
    images = pixels.permute(0, 3, 1, 2).float()
    side = round(images.shape[-1] * kept)
    margin = (images.shape[-1] - side) // 2
    images = images[..., margin : margin + side, margin : margin + side]
    if side == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
