"""Colour histograms and tiny pixels: what a classifier gets by without any network.

It is the simple baseline of the ladder. Where a linear model on these numbers does as well as one on a pretrained
network, the network is not needed.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perennial.images import Pixels
from training.backbones import Backbone

Floats = NDArray[np.float32]

#: To be raised when the same pixels come to give other numbers.
EDITION: Final = 1

_CHANNEL_BINS: Final = 8
_JOINT_BINS: Final = 4
_CELLS: Final = 8  # a side
_SAMPLED: Final = 112  # pixels a side that are looked at, about
_LUMA: Final = (0.299, 0.587, 0.114)  # ITU-R BT.601
_LEAST: Final = (1 / 255) ** 2  # a variance; what is below is less than a step of the pixels

_PLACES: Final = np.array([_CHANNEL_BINS**2, _CHANNEL_BINS, 1], np.intp)
_WEIGHTS: Final = np.array(_LUMA, np.float32) / np.float32(255.0)

#: S, the length of the vector.
WIDTH: Final = 3 * _CHANNEL_BINS + _JOINT_BINS**3 + 2 * _CELLS**2


def simple_features(pixels: Pixels) -> Floats:
    """Square images uint8 [N, side, side, 3] -> float32 [N, S].

    A row is the shares of the pixels in 8 bins of each channel and in 4 x 4 x 4 bins of colour, the mean luma in 8 x 8
    cells (tiny pixels), and its standard deviation there, which tells texture; all in 0..1. Of the shares and the
    deviations it is the square roots: a linear model does more with them (Hellinger's distance; measured).
    """
    found = np.empty((len(pixels), WIDTH), np.float32)
    for at, image in enumerate(pixels):
        found[at] = _of_one(image)
    return found


class SimpleFeatures(nn.Module):
    """The same numbers within 1e-4 as a network that can be exported.

    `forward`: uint8 [N, side, side, 3] -> float32 [N, S].
    """

    cells: Tensor
    luma: Tensor

    def __init__(self, side: int) -> None:
        super().__init__()
        self.step = _step(side)
        self.register_buffer("cells", torch.from_numpy(_averaging(side).copy()), persistent=False)
        self.register_buffer("luma", torch.tensor(_LUMA) / 255.0, persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        values = pixels[:, :: self.step, :: self.step].float()
        colours = values.flatten(1, 2).transpose(1, 2)  # [N, 3, P]
        reached = _reached(colours)  # [N, 3, 9, P]
        shares = reached.mean(dim=3)
        channels = shares[:, :, :-1] - shares[:, :, 1:]  # [N, 3, 8]
        coarse = reached[:, :, :: _CHANNEL_BINS // _JOINT_BINS]
        red, green, blue = (coarse[:, :, :-1] - coarse[:, :, 1:]).unbind(dim=1)  # each [N, 4, P]
        pairs = (red.unsqueeze(2) * green.unsqueeze(1)).flatten(1, 2)  # [N, 16, P]
        joint = (pairs @ blue.transpose(1, 2)) / colours.shape[2]
        luma = values @ self.luma - 0.5  # about 0, where less is lost by taking a variance from squares
        means = self.cells @ luma @ self.cells.T
        squares = self.cells @ luma.square() @ self.cells.T
        deviations = (squares - means.square()).clamp(min=_LEAST).sqrt()
        found = torch.cat([channels.flatten(1), joint.flatten(1), deviations.flatten(1)], dim=1)
        return torch.cat([found.sqrt(), means.flatten(1) + 0.5], dim=1)


def in_place_of(backbone: Backbone) -> Backbone:
    """The same images in, simple features out: a model on these has no network. It keeps the network's name and
    weights, for that is what a retrain starts from."""
    network = _OnPlanes(SimpleFeatures(backbone.rule.crop))
    return replace(backbone, network=network, width=WIDTH, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))


class _OnPlanes(nn.Module):
    """Takes images as networks do: float32 [N, 3, side, side], here in 0..255."""

    def __init__(self, simple: SimpleFeatures) -> None:
        super().__init__()
        self.simple = simple

    def forward(self, images: Tensor) -> Tensor:
        # Rounded, for a colour must not fall below its bin by the last bit of a division.
        found: Tensor = self.simple(images.permute(0, 2, 3, 1).round())
        return found


def _of_one(image: Pixels) -> Floats:
    step = _step(len(image))
    sampled = np.ascontiguousarray(image[::step, ::step])
    bins = (sampled >> 5).astype(np.intp).reshape(-1, 3)
    cube = np.bincount(bins @ _PLACES, minlength=_CHANNEL_BINS**3).reshape([_CHANNEL_BINS] * 3) / len(bins)
    pairs = cube.reshape([_JOINT_BINS, _CHANNEL_BINS // _JOINT_BINS] * 3).sum(axis=(1, 3, 5))
    luma = (sampled.reshape(-1, 3).astype(np.float32) @ _WEIGHTS - np.float32(0.5)).reshape(sampled.shape[:2])
    cells = _averaging(len(image))
    means = cells @ luma @ cells.T
    variances = cells @ np.square(luma) @ cells.T - np.square(means)
    deviations = np.sqrt(np.maximum(variances, np.float32(_LEAST)))
    channels = [cube.sum(axis=axes) for axes in ((1, 2), (0, 2), (0, 1))]
    shares = np.concatenate([*channels, pairs.ravel(), deviations.ravel()], dtype=np.float32)
    return np.concatenate([np.sqrt(shares), means.ravel() + np.float32(0.5)])


def _reached(colours: Tensor) -> Tensor:
    """[N, 3, P] in 0..255 -> [N, 3, 9, P]: 1 where the lower edge of a bin is reached, the last beyond all; by
    comparisons, which every runtime has."""
    lower = torch.arange(_CHANNEL_BINS + 1, dtype=torch.float32, device=colours.device) * (256.0 / _CHANNEL_BINS)
    return (colours.unsqueeze(2) >= lower[:, None]).float()


def _step(side: int) -> int:
    """Of a large image every other pixel, or fewer, tells as much about its colours."""
    return max(1, side // _SAMPLED)


@cache
def _averaging(side: int) -> Floats:
    """[cells, P]: a row averages one cell's share of the P sampled pixels of a line, which it need not divide."""
    pixels = len(range(0, side, _step(side)))
    edges = np.linspace(0, pixels, _CELLS + 1)
    at = np.arange(pixels)
    overlap = np.minimum(edges[1:, None], at + 1) - np.maximum(edges[:-1, None], at)
    found: Floats = (np.maximum(overlap, 0) * (_CELLS / pixels)).astype(np.float32)
    return found
