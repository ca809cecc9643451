"""Heavy random distortion of signed fields into colour images, a whole batch at a time in torch.

Both families of generated images arrive as *fields*: ``[N, 1, S, S]``, positive where there is ink, zero on the
outline, about one unit a pixel. A field, unlike a bitmap, lets a stroke grow thicker or thinner by adding a number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Distortion:
    """How far an image may be bent; lengths are fractions of the image's side."""

    rotation: float = 15.0  # standard deviation, degrees; kept small, for a turned 6 is a 9
    shear: float = 0.25  # standard deviation
    smallest: float = 0.6  # the glyph's size, against its size in the atlas
    largest: float = 1.3
    stretch: float = 0.25  # standard deviation of the log of width over height
    translation: float = 0.08  # standard deviation
    bend: float = 0.09  # elastic displacement at its strongest
    thicken: float = 3.0  # the most that is added to the field: atlas pixels
    coarsest: int = 7  # the smallest side an image is resampled to and back
    coarse_share: float = 0.7  # the share of images that are so resampled
    colour_share: float = 0.4  # the rest are grey

    def eased(self, strength: float) -> Distortion:
        """The same with a ``strength`` in 0..1 of the bending, resizing, thickening and coarse resampling."""
        return replace(
            self,
            rotation=self.rotation * strength,
            shear=self.shear * strength,
            smallest=1 + (self.smallest - 1) * strength,
            largest=1 + (self.largest - 1) * strength,
            stretch=self.stretch * strength,
            translation=self.translation * strength,
            bend=self.bend * strength,
            thicken=self.thicken * strength,
            coarse_share=self.coarse_share * strength,
        )


def distort(fields: Tensor, size: int, random: torch.Generator, how: Distortion | None = None) -> Tensor:
    """Draw fields ``[N, 1, S, S]`` as distorted images ``[N, 3, size, size]``, float32 in 0..1.

    Affine and elastic warp (Simard et al., 2003), strokes thinned or thickened unevenly, coarse resampling, ink and
    paper of random shades and hues with a gradient, blur and noise. Every number comes from ``random``.
    """
    how = how or Distortion()
    warped = F.grid_sample(fields, _grid(len(fields), size, random, how), padding_mode="border", align_corners=False)
    ink = _ink(warped, fields, random, how)
    return _expose(_coarsen(ink, random, how), random, how)


def _uniform(n: int, low: float, high: float, random: torch.Generator) -> Tensor:
    return torch.rand(n, 1, 1, 1, generator=random) * (high - low) + low


def _smooth_noise(n: int, channels: int, knots: int, size: int, random: torch.Generator) -> Tensor:
    coarse = torch.randn(n, channels, knots, knots, generator=random)
    return F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)


def _grid(n: int, size: int, random: torch.Generator, how: Distortion) -> Tensor:
    """Sampling positions ``[N, size, size, 2]`` in -1..1: an inverse affine map plus an elastic displacement."""
    draw = torch.randn(n, 6, generator=random)
    angle = draw[:, 0] * math.radians(how.rotation)
    shear = draw[:, 1] * how.shear
    scale = torch.rand(n, generator=random) * (how.largest - how.smallest) + how.smallest
    stretch = torch.exp(draw[:, 2] * how.stretch / 2)
    cos, sin = torch.cos(angle), torch.sin(angle)
    forward = torch.stack([cos, -sin, sin, cos], 1).view(n, 2, 2) @ torch.stack(
        [scale * stretch, shear * scale, torch.zeros(n), scale / stretch], 1
    ).view(n, 2, 2)
    inverse = torch.linalg.inv(forward)
    shift = draw[:, 3:5, None] * 2 * how.translation
    theta = torch.cat([inverse, -inverse @ shift], 2)
    grid = F.affine_grid(theta, [n, 1, size, size], align_corners=False)
    strength = _uniform(n, 0.0, how.bend, random)
    bend = _smooth_noise(n, 2, 4, size, random) + 0.3 * _smooth_noise(n, 2, 7, size, random)
    return grid + (bend * strength).permute(0, 2, 3, 1)


def _ink(warped: Tensor, fields: Tensor, random: torch.Generator, how: Distortion) -> Tensor:
    """Ink coverage in 0..1; pressure varies along the stroke, and a thin stroke is never thinned away."""
    n, size = len(warped), warped.shape[-1]
    half_stroke = fields.amax((2, 3), keepdim=True)
    thinnest = -0.6 * half_stroke
    offset = thinnest + (how.thicken - thinnest) * torch.rand(n, 1, 1, 1, generator=random)
    pressure = _smooth_noise(n, 1, 4, size, random) * _uniform(n, 0.0, 0.8, random)
    soft = torch.exp(_uniform(n, math.log(0.4), math.log(2.0), random))
    return torch.sigmoid((warped + offset + pressure) / soft * 2)


def _coarsen(ink: Tensor, random: torch.Generator, how: Distortion) -> Tensor:
    """Average a share of the images down to a few pixels a side and interpolate them back, in a few groups."""
    n, size = len(ink), ink.shape[-1]
    groups = min(6, n)
    sides = []
    for _ in range(groups):
        # Uniform in the logarithm: an 8-pixel image is as likely as a 16- or a 32-pixel one.
        share = float(torch.rand(1, generator=random))
        sides.append(round(how.coarsest * (size / how.coarsest) ** share))
    keep = round(n * (1 - how.coarse_share))
    parts = [ink[:keep]]
    for side, part in zip(sides, ink[keep:].chunk(groups), strict=False):
        small = F.interpolate(part, size=(side, side), mode="area")
        parts.append(F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False))
    return torch.cat(parts)


def _expose(ink: Tensor, random: torch.Generator, how: Distortion) -> Tensor:
    """Give ink and paper a colour, light the paper unevenly, blur half, add noise."""
    n, size = len(ink), ink.shape[-1]
    gamma = torch.exp(torch.randn(n, 1, 1, 1, generator=random) * 0.25)
    ink = ink.clamp(1e-4, 1).pow(gamma)
    light, dark = _uniform(n, 0.5, 1.0, random), _uniform(n, 0.0, 0.4, random)
    hue = torch.randn(n, 2, 3, 1, 1, generator=random) * 0.15
    hue = hue * (torch.rand(n, 1, 1, 1, 1, generator=random) < how.colour_share)
    flip = torch.rand(n, 1, 1, 1, generator=random) < 0.5
    paper = torch.where(flip, dark, light) + hue[:, 0]
    shade = torch.where(flip, light, dark) + hue[:, 1]
    uneven = _smooth_noise(n, 1, 3, size, random) * _uniform(n, 0.0, 0.12, random)
    # Half of the images keep a flat paper, as a scan does.
    uneven = uneven * (torch.rand(n, 1, 1, 1, generator=random) < 0.5)
    image = paper + (shade - paper) * ink + uneven
    noisy = torch.rand(n, 1, 1, 1, generator=random) < 0.5
    noise = torch.randn(n, 1, size, size, generator=random) * _uniform(n, 0.0, 0.1, random)
    return (image + noise * noisy).clamp(0, 1)
