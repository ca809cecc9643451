"""What a network sees while it is fine-tuned: random views of the images, as they come out of its frozen front, in
batches that all processes of a training share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from perennial.images import Pixels
from perennial.progress import IMAGES, Progress, Step
from training import processes
from training.augment import random_views, whole_views
from training.backbones import Backbone
from training.recipes import Recipe
from training.selection import Indexes

BATCH: Final = 32
MOST_VIEWS: Final = 8
_AT_ONCE: Final = 64  # images that go through the front together
_MOST_VIEW_BYTES: Final = 2**30  # of memory-mapped activations


@dataclass(frozen=True, slots=True)
class Images:
    """`pixels` uint8 [P, S, S, 3] (perhaps memory-mapped), `labels` [N], `weights` [N] by which a row is drawn. `at`
    [N] says which of the pixels each row has; without it they are in order, and P is N."""

    pixels: Pixels
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    at: Indexes | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def seen(self, rows: NDArray[np.int64]) -> Tensor:
        """uint8 [R, S, S, 3]."""
        return torch.from_numpy(np.ascontiguousarray(self.pixels[rows if self.at is None else self.at[rows]]))

    def none(self) -> Images:
        """Images of the same kind, but none of them."""
        return Images(self.pixels[:0], self.labels[:0], self.weights[:0])


@dataclass(frozen=True, slots=True)
class Batch:
    """This process's share of a batch: `images`, their `targets` [B, K], what the sum of their losses is multiplied by,
    how many images the batch has in all, and whether it is `shared` or every process has all of it."""

    images: Tensor
    targets: Tensor
    scale: float
    size: int
    shared: bool


class Views:
    """Random views of the training images as they come out of the front: kept, where something is frozen and they fit,
    else computed each time.

    Where several processes of a machine train together, each computes its share of what is kept, in one file.
    """

    def __init__(
        self,
        front: nn.Module,
        backbone: Backbone,
        recipe: Recipe,
        train: Images,
        fabric: Any,
        path: Path,
        seed: int,
        progress: Progress,
        stage: str,
    ) -> None:
        self._front, self._backbone, self._recipe, self._train, self._fabric = front, backbone, recipe, train, fabric
        self.count = 0
        if not len(train) or not any(True for _ in front.parameters()):
            return
        random = torch.Generator().manual_seed(seed)
        example = self._make(np.zeros(1, np.int64), random)[0]
        size = example.nbytes * len(train)
        self.count = min(MOST_VIEWS, recipe.epochs, _MOST_VIEW_BYTES // size)
        if self.count < 2:
            self.count = 0
            return
        shape = (self.count, len(train), *example.shape)
        self._kept = torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=example.dtype).view(shape)
        here = processes.place()
        blocks = [(view, start) for view in range(self.count) for start in range(0, len(train), _AT_ONCE)]
        for turn, (view, start) in enumerate(blocks):
            rows = np.arange(start, min(start + _AT_ONCE, len(train)))
            if fabric.world_size == 1 or turn % here.local_world == here.local_rank:
                self._kept[view, start : start + len(rows)] = self._make(rows, random).cpu()
            else:  # another process makes it; what is random must go on as if it had been made here
                random_views(torch.zeros(len(rows), 1, 1, 3, dtype=torch.uint8), 1, random, recipe.augmentation)
            done = view * len(train) + start + len(rows)
            progress(Step(f"{stage}: views", done, self.count * len(train), IMAGES))
        processes.wait_for_all()

    def of(self, rows: NDArray[np.int64], random: torch.Generator, mine: slice) -> Tensor:
        """One view of each of these rows that are `mine`; what is random is drawn for all of them."""
        if not self.count:
            return self._make(rows, random, mine)
        which = torch.randint(self.count, (len(rows),), generator=random)
        return self._kept[which[mine], torch.from_numpy(rows[mine])]

    def _make(self, rows: NDArray[np.int64], random: torch.Generator, mine: slice = slice(None)) -> Tensor:
        recipe = self._recipe
        views = random_views(self._train.seen(rows), recipe.image_size, random, recipe.augmentation)
        return _through(self._front, self._backbone, views[mine], self._fabric)


def batches(
    views: Views, train: Images, recipe: Recipe, classes: int, seed: int, epoch: int, fabric: Any
) -> Iterator[Batch]:
    """One epoch."""
    random = torch.Generator().manual_seed(seed * 1_000_003 + epoch + 1)
    if np.ptp(train.weights):
        order = torch.multinomial(torch.from_numpy(train.weights), len(train), replacement=True, generator=random)
    else:
        order = torch.randperm(len(train), generator=random)
    for start in range(0, len(train), BATCH):
        rows = order[start : start + BATCH].numpy()
        mine, scale = _share(len(rows), fabric)
        targets = F.one_hot(torch.from_numpy(train.labels[rows]), classes).float()
        if recipe.mixup:
            images = views.of(rows, random, slice(None))
            share = float(torch._sample_dirichlet(torch.full((2,), recipe.mixup), random)[0])
            other = torch.randperm(len(rows), generator=random)
            images, targets = images.lerp(images[other], 1 - share)[mine], targets.lerp(targets[other], 1 - share)
        else:
            images = views.of(rows, random, mine)
        layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
        yield Batch(
            fabric.to_device(images.contiguous(memory_format=layout)),
            fabric.to_device(targets[mine].contiguous()),
            scale,
            len(rows),
            len(rows) >= fabric.world_size,
        )


def whole_fronts(front: nn.Module, backbone: Backbone, images: Images, fabric: Any) -> Iterator[Tensor]:
    """The images out of the front, as they will be served, in batches."""
    size, kept = backbone.rule.crop, backbone.rule.crop / backbone.rule.resize
    for start in range(0, len(images), _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, len(images)))
        yield _through(front, backbone, whole_views(images.seen(rows), size, kept), fabric).cpu()


def _share(size: int, fabric: Any) -> tuple[slice, float]:
    """Which rows of a batch this process takes, and the scale of its losses' sum: gradients are then averaged over the
    processes. Of a batch that is smaller than their number each takes all of it, for the same average."""
    world = fabric.world_size
    if size < world:
        return slice(None), 1.0 / size
    return slice(fabric.global_rank, None, world), world / size


def _through(front: nn.Module, backbone: Backbone, views: Tensor, fabric: Any) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255.0 for values in (backbone.mean, backbone.std))
    images: Tensor = fabric.to_device(((views - mean) / std).contiguous(memory_format=torch.channels_last))
    if not any(True for _ in front.parameters()):
        return images
    with torch.no_grad(), fabric.autocast():
        seen: Tensor = front(images)
    return seen
