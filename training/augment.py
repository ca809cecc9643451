"""Random views of images, a batch at a time: crops, mirror images, changes of light, of tone and of texture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

_Change = Callable[[Tensor], Tensor]

_ASPECT = math.log(4 / 3)
_BRIGHTNESS = 64.0  # of 255, at a light of 1
_HALF = 128.0
_POSTER_STEP = 64.0  # leaves five tones a channel
_FILTERS: Final = (1, 3, 5, 7)  # pixels a side
_MIDDLE, _SPREAD = 115.0, 57.0  # of ImageNet's pixels: a filter's weights are random about zero, so theirs must be too


@dataclass(frozen=True, slots=True)
class Augmentation:
    """`smallest` is the least share of the image's area that a crop keeps, `mirror` whether half of them are mirrored,
    `light` how far contrast and brightness go (0: not at all), `gray` the share of views that lose their colours,
    `tone` the share whose tones are changed strongly: solarised, posterised, inverted or stretched, each as often (of
    TrivialAugment's operations, Müller and Hutter, ICCV 2021, those that leave shapes alone), `texture` the share that
    is mixed with what a random filter of 1 to 7 pixels makes of it (RandConv: Xu et al., ICLR 2021). What is left to
    learn from is the shape."""

    smallest: float = 0.5
    mirror: bool = True
    light: float = 0.2
    gray: float = 0.0
    tone: float = 0.0
    texture: float = 0.0

    def plain_tones(self) -> Augmentation:
        """The same, with colours, tones and textures left as they are."""
        return replace(self, gray=0.0, tone=0.0, texture=0.0)


#: What networks are fine-tuned on.
DEFAULT: Final = Augmentation(gray=0.3, tone=0.4, texture=0.3)


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
    filtered = uniform(0, 1) < how.texture
    if filtered.any():
        views[filtered] = _filtered(views[filtered], random)
    return views


def toned_views(pixels: Tensor) -> Tensor:
    """Every image without its colours and with another tone or texture, the five in turns: as far from the original
    as `random_views` goes.

    Args:
        pixels: uint8 [N, S, S, 3].

    Returns:
        uint8 [N, S, S, 3].
    """
    images = pixels.permute(0, 3, 1, 2).float().mean(dim=1, keepdim=True).repeat(1, 3, 1, 1)
    random = torch.Generator().manual_seed(0)
    filtered = partial(_filtered, random=random)
    changes: tuple[_Change, ...] = (_solarised, _posterised, _inverted, _stretched, filtered)
    for operation, change in enumerate(changes):
        some = images[operation :: len(changes)]
        images[operation :: len(changes)] = change(some) if len(some) else some
    return images.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _solarised(views: Tensor) -> Tensor:
    return torch.where(views > _HALF, 255.0 - views, views)


def _posterised(views: Tensor) -> Tensor:
    return ((views / _POSTER_STEP).round() * _POSTER_STEP).clamp(max=255.0)


def _inverted(views: Tensor) -> Tensor:
    return 255.0 - views


def _filtered(views: Tensor, random: torch.Generator) -> Tensor:
    """Each mixed with itself behind a random filter of its own."""
    count, _, height, width = views.shape
    sizes = torch.randint(len(_FILTERS), (count,), generator=random)
    shares = torch.empty(count, 1, 1, 1).uniform_(0, 1, generator=random)
    seen = (views - _MIDDLE) / _SPREAD
    changed = torch.empty_like(seen)
    for at, side in enumerate(_FILTERS):
        mine = sizes == at
        many = int(mine.sum())
        if many:
            filters = torch.randn(many * 3, 3, side, side, generator=random) / math.sqrt(3 * side * side)
            flat = seen[mine].reshape(1, many * 3, height, width)
            changed[mine] = F.conv2d(flat, filters, padding=side // 2, groups=many).view(many, 3, height, width)
    return (changed.lerp(seen, shares) * _SPREAD + _MIDDLE).clamp(0.0, 255.0)


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
