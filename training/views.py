"""What a network sees while it is fine-tuned: random views of the images, as they come out of its frozen front, in
batches that all processes of a training share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from perennial.images import Pixels
from perennial.progress import IMAGES, Progress, Step
from perennial.storage import sha256
from training import processes
from training.augment import random_views, whole_views
from training.backbones import Backbone
from training.front import Front
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


class Shelf:
    """Where views lie that several trainings share: those on images of one `pool`, which has every image that any of
    them learns from. Each view is made when it is first asked for, of all of the pool. Without a pool, a training keeps
    those of its own images there."""

    def __init__(self, folder: Path, pool: Images | None = None) -> None:
        self.folder, self.pool = folder, pool
        self.kept: dict[str, list[Tensor]] = {}

    def places(self, train: Images) -> Indexes:
        """Where in the pool each of these images is."""
        if self.pool is None:
            return np.arange(len(train))
        assert self.pool.at is not None
        assert train.at is not None
        return np.searchsorted(self.pool.at, train.at)


class Views:
    """Random views of the training images as they come out of the front: kept, where something is frozen and they fit,
    else computed each time.

    Where several processes of a machine train together, each computes its share of what is kept, in files of all.
    """

    def __init__(
        self,
        front: Front,
        backbone: Backbone,
        recipe: Recipe,
        train: Images,
        fabric: Any,
        shelf: Shelf,
        seed: int,
        progress: Progress,
        stage: str,
    ) -> None:
        self._front, self._recipe, self._train, self._fabric = front, recipe, train, fabric
        self._kept: list[Tensor] = []
        if not len(train) or front.empty:
            return
        self._pool, self._at = shelf.pool or train, shelf.places(train)
        example = self._make(self._pool, np.zeros(1, np.int64), torch.Generator())[0]
        count = min(MOST_VIEWS, recipe.epochs, _MOST_VIEW_BYTES // (example.nbytes * len(self._pool)))
        if count < 2:
            return
        made_of = (backbone.name, backbone.weights_sha256, recipe.stages, recipe.image_size, recipe.augmentation, seed)
        name = f"{sha256(repr(made_of).encode())[:16]}-{'own' if shelf.pool is None else 'shared'}"
        self._kept = shelf.kept.setdefault(name, [])
        first, each = len(self._kept), len(self._pool)

        def done(images: int) -> None:
            progress(Step(f"{stage}: views", images, (count - first) * each, IMAGES))

        for view in range(first, count):
            path, shape = shelf.folder / f"{name}-{view}", (each, *example.shape)
            empty = torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=example.dtype)
            self._fill(empty.view(shape), seed * MOST_VIEWS + view, done, (view - first) * each)
            self._kept.append(empty.view(shape))
        if first < count:
            processes.wait_for_all()
        self._kept = self._kept[:count]

    def of(self, rows: NDArray[np.int64], random: torch.Generator, mine: slice) -> Tensor:
        """One view of each of these rows that are `mine`; what is random is drawn for all of them."""
        if not self._kept:
            return self._make(self._train, rows, random, mine)
        which = torch.randint(len(self._kept), (len(rows),), generator=random)[mine].tolist()
        return torch.stack([self._kept[view][at] for view, at in zip(which, self._at[rows[mine]], strict=True)])

    def _fill(self, view: Tensor, seed: int, done: Callable[[int], None], before: int) -> None:
        """One view of every image of the pool, a block at a time: the blocks are the same whoever asks."""
        here, pool, random = processes.place(), self._pool, torch.Generator().manual_seed(seed)
        for turn, start in enumerate(range(0, len(pool), _AT_ONCE)):
            rows = np.arange(start, min(start + _AT_ONCE, len(pool)))
            if self._fabric.world_size == 1 or turn % here.local_world == here.local_rank:
                view[start : start + len(rows)] = self._make(pool, rows, random).cpu()
            else:  # another process makes it; what is random must go on as if it had been made here
                blank = torch.zeros(len(rows), 1, 1, 3, dtype=torch.uint8)
                random_views(blank, 1, random, self._recipe.augmentation)
            done(before + start + len(rows))

    def _make(
        self, images: Images, rows: NDArray[np.int64], random: torch.Generator, mine: slice = slice(None)
    ) -> Tensor:
        views = random_views(images.seen(rows), self._recipe.image_size, random, self._recipe.augmentation)
        return self._front(views[mine])


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


def whole_fronts(front: Front, backbone: Backbone, images: Images) -> Iterator[Tensor]:
    """The images out of the front, as they will be served, in batches."""
    size, kept = backbone.rule.crop, backbone.rule.crop / backbone.rule.resize
    for start in range(0, len(images), _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, len(images)))
        yield front(whole_views(images.seen(rows), size, kept)).cpu()


def _share(size: int, fabric: Any) -> tuple[slice, float]:
    """Which rows of a batch this process takes, and the scale of its losses' sum: gradients are then averaged over the
    processes. Of a batch that is smaller than their number each takes all of it, for the same average."""
    world = fabric.world_size
    if size < world:
        return slice(None), 1.0 / size
    return slice(fabric.global_rank, None, world), world / size
