"""How a network is trained: the numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from training.augment import DEFAULT, Augmentation
from training.backbones import Backbone
from training.rungs import PARTIAL, SCRATCH

_RATE: Final = 1e-3
_SEEN: Final = 16_000  # images that partial and full fine-tuning show the network, in all
_SEEN_FROM_SCRATCH: Final = 40_000
_FIXED_SIZE: Final = ("vit_", "maxvit")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network learns. `stages` is how many of the last ones learn (None: all), `random_start` begins from random
    weights instead of the pretrained ones. Of a stage before the last the learning rate is `decay` times that of the
    stage after it; `average` is the decay of the running average of the weights. With `refit` the head is fitted anew
    at the end, as a probe on what the network makes of the images then."""

    stages: int | None
    epochs: int
    image_size: int
    learning_rate: float = 1e-3
    decay: float = 0.5
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    mixup: float = 0.0
    average: float = 0.98
    warmup: float = 0.1  # the share of all steps over which the learning rate rises
    random_start: bool = False
    refit: bool = True
    augmentation: Augmentation = DEFAULT


def takes_one_size(backbone: Backbone) -> bool:
    """Are its positions made for one size of image?"""
    return backbone.name.startswith(_FIXED_SIZE)


def recipe(name: str, images: int, backbone: Backbone, epochs: int | None = None) -> Recipe:
    """What a rung is trained with. The figures behind the numbers are in docs/training.md."""
    side = backbone.rule.crop
    if name == SCRATCH:
        shown = epochs or _clip(_SEEN_FROM_SCRATCH / images, 20, 60)
        return Recipe(
            None, shown, side, learning_rate=2e-3, decay=1.0, weight_decay=0.05, random_start=True, refit=False
        )
    shown = epochs or _clip(_SEEN / images, 8, 20)
    # Few steps at the full rate take the network away from where it was pretrained and never back.
    rate = _RATE * min(1.0, math.sqrt(shown * images / _SEEN))
    if name == PARTIAL:
        return Recipe(2, shown, side, learning_rate=rate)
    smaller = side if takes_one_size(backbone) else max(32, round(side * 0.785 / 16) * 16)
    return Recipe(None, shown, smaller, learning_rate=rate)


def _clip(value: float, low: int, high: int) -> int:
    return int(min(high, max(low, round(value))))
