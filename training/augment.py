"""Random views of images, a batch at a time: crops, mirror images, changes of light, and of tone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

_ASPECT = math.log(4 / 3)
_BRIGHTNESS = 64.0  # of 255, at a light of 1
_HALF = 128.0
_POSTER_STEP = 64.0  # leaves five tones a channel


@dataclass(frozen=True, slots=True)
class Augmentation:
    """`smallest` is the least share of the image's area that a crop keeps, `mirror` whether half of them are mirrored,
    `light` how far contrast and brightness go (0: not at all), `gray` the share of views that lose their colours,
    `tone` the share whose tones are changed strongly: solarised, posterised, inverted or stretched, each as often (of
    TrivialAugment's operations, Müller and Hutter, ICCV 2021, those that leave shapes alone). What is left to learn
    from is the shape."""

    smallest: float = 0.5
    mirror: bool = True
    light: float = 0.2
    gray: float = 0.3
    tone: float = 0.4

    def plain_tones(self) -> Augmentation:
        """The same, with colours and tones left as they are."""
        return replace(self, gray=0.0, tone=0.0)


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
    gray, tone, which = uniform(0, 1) < how.gray, uniform(0, 1) < how.tone, uniform(0, 4).long()
    if gray.any():
        views[gray] = views[gray].mean(dim=1, keepdim=True)
    for operation, change in enumerate((_solarised, _posterised, _inverted, _stretched)):
        chosen = tone & (which == operation)
        if chosen.any():
            views[chosen] = change(views[chosen])
    return views


def toned_views(pixels: Tensor) -> Tensor:
    """Every image in gray and with another tone, the four in turns: as far from the original as `random_views` goes.

    Args:
        pixels: uint8 [N, S, S, 3].

    Returns:
        uint8 [N, S, S, 3].
    """
    images = pixels.permute(0, 3, 1, 2).float().mean(dim=1, keepdim=True).repeat(1, 3, 1, 1)
    for operation, change in enumerate((_solarised, _posterised, _inverted, _stretched)):
        images[operation::4] = change(images[operation::4])
    return images.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _solarised(views: Tensor) -> Tensor:
    return torch.where(views > _HALF, 255.0 - views, views)


def _posterised(views: Tensor) -> Tensor:
    return ((views / _POSTER_STEP).round() * _POSTER_STEP).clamp(max=255.0)


def _inverted(views: Tensor) -> Tensor:
    return 255.0 - views


def _stretched(views: Tensor) -> Tensor:
    """From the darkest to the brightest value of each."""
    low, high = views.amin(dim=(1, 2, 3), keepdim=True), views.amax(dim=(1, 2, 3), keepdim=True)
    return (views - low) / (high - low + 1.0) * 255.0


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
