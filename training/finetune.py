"""Gradient fine-tuning: the last stages of a pretrained network, all of it, or the same network from random weights.

Pretrained networks start from a linear probe (LP-FT; Kumar et al., ICLR 2022): a random head would send noise through
good features. Their BatchNorm keeps its statistics, earlier stages learn more slowly than later ones, and what is kept
is a running average of the weights. What lies before the first stage that learns is run once on a few views of each
image; every epoch after that trains on those, in a fraction of the time.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from perennial.bundle import CurvePoint
from perennial.images import Pixels
from perennial.progress import Progress, Step, silent
from training import stages
from training.augment import DEFAULT, Augmentation, random_views, whole_views
from training.backbones import Backbone
from training.epochs import Checkpoint, Resumed
from training.probe import Probe

_BATCH: Final = 32
_AT_ONCE: Final = 64  # images that go through the front together
MOST_VIEWS: Final = 8
_SETTLING: Final = 16  # batches that BatchNorm's statistics are taken from
_MOST_VIEW_BYTES: Final = 2**30  # of memory-mapped activations


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network learns. `stages` is how many of the last ones learn (None: all), `random_start` begins from random
    weights instead of the pretrained ones. Of a stage before the last the learning rate is `decay` times that of the
    stage after it; `average` is the decay of the running average of the weights."""

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
    augmentation: Augmentation = DEFAULT


@dataclass(frozen=True, slots=True)
class Images:
    """`pixels` uint8 [N, S, S, 3] (perhaps memory-mapped), `labels` [N], `weights` [N] by which a row is drawn."""

    pixels: Pixels
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Finetuned:
    """The network, its head, and how it got there. `logits` [M, K] are of the judged rows."""

    backbone: Backbone
    head: Probe
    logits: NDArray[np.float64]
    curve: tuple[CurvePoint, ...]
    epochs: int
    seconds: float


def finetune(
    backbone: Backbone,
    start: Probe | None,
    train: Images,
    judged: Images,
    recipe: Recipe,
    *,
    classes: int,
    seed: int,
    fabric: Any,
    scratch: Path,
    stage: str,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> Finetuned:
    """Train a copy of `backbone` and a head; `backbone` itself is left as it is.

    The same arguments give the same weights on the same machine, interrupted and resumed or not.

    Args:
        start: the head to start from, fitted on the features as they are (`root` false); None starts from zero.
        judged: rows that are not trained on; after each epoch the curve says how many of them are right.
        fabric: a launched `lightning_fabric.Fabric`: device, precision and processes.
        scratch: a folder for memory-mapped activations, removed by the caller.
        stage: what `progress` calls this.

    Raises:
        InvalidParameter: this network cannot be trained in part.
    """
    began = time.perf_counter()
    backbone = replace(backbone, network=copy.deepcopy(backbone.network))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        front, back, groups = _parts(backbone, recipe)
        head = _head(start, classes, backbone.width)
        network = nn.Sequential(back, head)
        groups.append({"params": list(head.parameters()), "lr": recipe.learning_rate})
        optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
        for group in optimizer.param_groups:
            group["full"] = group["lr"]
        model, optimizer = fabric.setup(network, optimizer)
        learning = [value for group in optimizer.param_groups for value in group["params"]]
        averaged = [value.detach().clone() for value in learning]
        whole = _whole(front, backbone, recipe, judged, fabric)
        resumed = checkpoint.load(model, optimizer, averaged) if checkpoint else Resumed(0, (), 0.0)
        curve, first = list(resumed.curve), resumed.epoch
        kept = train if first < recipe.epochs else _none_of(train)
        views = _Views(front, backbone, recipe, kept, fabric, scratch / "train.views", seed, progress, stage)
        spent = time.perf_counter() - began if not first else resumed.seconds
        steps = math.ceil(len(train) / _BATCH)
        for epoch in range(first, recipe.epochs):
            tick = time.perf_counter()
            model.train(recipe.random_start)
            for step, (images, targets) in enumerate(_batches(views, train, recipe, classes, seed, epoch, fabric)):
                _set_rates(optimizer, (epoch + step / steps) / recipe.epochs, recipe.warmup)
                # Each process has a share of the batch; their gradients are averaged.
                share = fabric.world_size / _size(train, step)
                losses = F.cross_entropy(
                    model(images).float(), targets, reduction="sum", label_smoothing=recipe.label_smoothing
                )
                optimizer.zero_grad(set_to_none=True)
                fabric.backward(losses * share)
                optimizer.step()
                done = epoch * steps + step + 1
                with torch.no_grad():
                    _towards(averaged, learning, 1 - min(recipe.average, (1 + done) / (10 + done)))
                progress(Step(stage, done * _BATCH, recipe.epochs * steps * _BATCH))
            spent += time.perf_counter() - tick

            def answer() -> NDArray[np.float64]:
                if recipe.random_start:
                    _settle(
                        model, itertools.islice(_batches(views, train, recipe, classes, seed, 0, fabric), _SETTLING)
                    )
                return _answers(model, whole, fabric)

            logits = _with(averaged, learning, answer)
            right = float((logits.argmax(axis=1) == judged.labels).mean()) if len(judged) else float("nan")
            curve.append(CurvePoint(epoch=epoch + 1, seconds=round(spent, 3), accuracy=right))
            if checkpoint:
                checkpoint.save(model, optimizer, averaged, Resumed(epoch + 1, tuple(curve), spent))
        with torch.no_grad():
            _copy(learning, averaged)
        if first < recipe.epochs and recipe.random_start:
            _settle(model, itertools.islice(_batches(views, train, recipe, classes, seed, 0, fabric), _SETTLING))
        logits = _answers(model, whole, fabric)
    backbone.network.eval().requires_grad_(False).to("cpu")
    return Finetuned(backbone, _as_probe(head), logits, tuple(curve), recipe.epochs, spent)


# --- the network -----------------------------------------------------------------------------------------


def _parts(backbone: Backbone, recipe: Recipe) -> tuple[nn.Module, nn.Module, list[dict[str, Any]]]:
    """What stays as it is, what learns, and the latter's parameters with their learning rates."""
    parts = stages.stages(backbone)
    count = len(parts) if recipe.stages is None else min(recipe.stages, len(parts))
    front, back = stages.split(backbone, len(parts) - count)
    groups = []
    for place, part in enumerate(reversed(parts[len(parts) - count :])):
        values = [value.requires_grad_(True) for value in part.parameters()]
        if values:
            groups.append({"params": values, "lr": recipe.learning_rate * recipe.decay**place})
    return front.eval(), back.train(recipe.random_start), groups


def _head(start: Probe | None, classes: int, width: int) -> nn.Linear:
    head = nn.Linear(width, classes)
    with torch.no_grad():
        if start is None:
            head.weight.zero_()
            head.bias.zero_()
        else:
            head.weight.copy_(torch.from_numpy(start.weight))
            head.bias.copy_(torch.from_numpy(start.bias))
    return head


def _as_probe(head: nn.Linear) -> Probe:
    weight, bias = head.weight.detach().cpu().numpy().copy(), head.bias.detach().cpu().numpy().copy()
    return Probe(weight, bias, float("nan"), {}, float("nan"))


def _settle(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """BatchNorm's statistics for the weights as they are now: the running ones are of weights that have moved on, and
    with few steps some networks (MobileNetV3 keeps 99 % a step) have hardly begun to have any."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain average of all that is seen
    model.train()
    with torch.no_grad():
        for images, _ in batches:
            model(images)
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum


def _set_rates(optimizer: Any, done: float, warmup: float) -> None:
    """A straight rise, then half a cosine."""
    share = min(1.0, (done + 1e-3) / (warmup + 1e-3))
    if done > warmup:
        share = 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = group["full"] * share


# --- what it sees ----------------------------------------------------------------------------------------


class _Views:
    """Random views of the training images as they come out of the front: kept, where something is frozen and they fit,
    else computed each time."""

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
        for view in range(self.count):
            for start in range(0, len(train), _AT_ONCE):
                rows = np.arange(start, min(start + _AT_ONCE, len(train)))
                self._kept[view, start : start + len(rows)] = self._make(rows, random).cpu()
                progress(Step(f"{stage}: views", view * len(train) + start + len(rows), self.count * len(train)))

    def _make(self, rows: NDArray[np.int64], random: torch.Generator) -> Tensor:
        recipe = self._recipe
        views = random_views(_rows(self._train, rows), recipe.image_size, random, recipe.augmentation)
        return _through(self._front, self._backbone, views, self._fabric)

    def of(self, rows: NDArray[np.int64], random: torch.Generator) -> Tensor:
        """One view of each of these rows."""
        if not self.count:
            return self._make(rows, random)
        which = torch.randint(self.count, (len(rows),), generator=random)
        return self._kept[which, torch.from_numpy(rows)]


def _batches(
    views: _Views, train: Images, recipe: Recipe, classes: int, seed: int, epoch: int, fabric: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: this process's share of each batch, and its targets [B, K]."""
    random = torch.Generator().manual_seed(seed * 1_000_003 + epoch + 1)
    if np.ptp(train.weights):
        order = torch.multinomial(torch.from_numpy(train.weights), len(train), replacement=True, generator=random)
    else:
        order = torch.randperm(len(train), generator=random)
    for start in range(0, len(train), _BATCH):
        rows = order[start : start + _BATCH].numpy()
        images = views.of(rows, random)
        targets = F.one_hot(torch.from_numpy(train.labels[rows]), classes).float()
        if recipe.mixup:
            share = float(torch._sample_dirichlet(torch.full((2,), recipe.mixup), random)[0])
            other = torch.randperm(len(rows), generator=random)
            images, targets = images.lerp(images[other], 1 - share), targets.lerp(targets[other], 1 - share)
        mine = slice(fabric.global_rank, None, fabric.world_size)
        layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
        yield (
            fabric.to_device(images[mine].contiguous(memory_format=layout)),
            fabric.to_device(targets[mine]),
        )


def _size(train: Images, step: int) -> int:
    return min(_BATCH, len(train) - step * _BATCH)


def _none_of(images: Images) -> Images:
    return Images(images.pixels[:0], images.labels[:0], images.weights[:0])


def _rows(images: Images, rows: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.pixels[rows]))


def _through(front: nn.Module, backbone: Backbone, views: Tensor, fabric: Any) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255.0 for values in (backbone.mean, backbone.std))
    images = ((views - mean) / std).contiguous(memory_format=torch.channels_last)
    if not any(True for _ in front.parameters()):
        return images
    with torch.no_grad(), fabric.autocast():
        seen: Tensor = front(images)
    return seen


def _whole(front: nn.Module, backbone: Backbone, recipe: Recipe, judged: Images, fabric: Any) -> list[Tensor]:
    """The judged images out of the front, as they will be served, in batches."""
    size, kept = backbone.rule.crop, backbone.rule.crop / backbone.rule.resize
    return [
        _through(front, backbone, whole_views(_rows(judged, rows), size, kept), fabric) for rows in _runs(len(judged))
    ]


def _runs(count: int) -> Sequence[NDArray[np.int64]]:
    return [np.arange(start, min(start + _AT_ONCE, count)) for start in range(0, count, _AT_ONCE)]


def _answers(model: nn.Module, whole: Sequence[Tensor], fabric: Any) -> NDArray[np.float64]:
    was = model.training
    model.eval()
    with torch.inference_mode():
        parts = [model(fabric.to_device(batch)).float().cpu().numpy() for batch in whole]
    model.train(was)
    return np.concatenate(parts).astype(np.float64) if parts else np.empty((0, 0))


def _with(
    averaged: list[Tensor], learning: list[Tensor], work: Callable[[], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """What `work` gives while the averaged weights are in place."""
    before = [value.detach().clone() for value in learning]
    with torch.no_grad():
        _copy(learning, averaged)
        try:
            return work()
        finally:
            _copy(learning, before)


def _copy(to: list[Tensor], values: list[Tensor]) -> None:
    for each, value in zip(to, values, strict=True):
        each.copy_(value)


def _towards(averaged: list[Tensor], learning: list[Tensor], share: float) -> None:
    for each, value in zip(averaged, learning, strict=True):
        each.lerp_(value, share)
