"""What an answer of a model costs: parameters and multiply-adds an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from training.backbones import Backbone


@dataclass(frozen=True, slots=True)
class Price:
    """Of one image."""

    parameters: int
    multiply_adds: int


def of_network(backbone: Backbone, classes: int) -> Price:
    """The backbone with a linear head."""
    size = backbone.rule.crop
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.network(torch.zeros(1, 3, size, size))
    own = sum(value.numel() for value in backbone.network.parameters())
    head = backbone.width * classes
    return Price(own + head + classes, counter.get_total_flops() // 2 + head)


def of_linear(width: int, classes: int) -> Price:
    """A linear model on `width` numbers."""
    return Price((width + 1) * classes, width * classes)


def plus_neighbours(price: Price, rows: int, width: int, classes: int) -> Price:
    """The same network with `rows` kept examples to compare with in place of its head."""
    head = width * classes
    return Price(price.parameters - head - classes + rows * width, price.multiply_adds - head + rows * width)
