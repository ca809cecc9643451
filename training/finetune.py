"""Gradient fine-tuning: the last stages of a pretrained network, all of it, or the same network from random weights.

Pretrained networks start from a linear probe (LP-FT; Kumar et al., ICLR 2022): a random head would send noise through
good features. Their BatchNorm keeps its statistics, earlier stages learn more slowly than later ones, and what is kept
is a running average of the weights. What lies before the first stage that learns is run once on a few views of each
image; every epoch after that trains on those, in a fraction of the time. At the end the head is fitted anew, as a probe
on the features that have been learnt, of the images as they will be served: on sketches that is worth a point.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from perennial.bundle import CurvePoint
from perennial.progress import IMAGES, Progress, Step, silent
from training import processes, stages
from training.backbones import Backbone
from training.depthwise import strides_in_float32
from training.epochs import Checkpoint, Resumed, restore
from training.front import Front
from training.probe import Floats, Probe, fixed_probe, never_negative
from training.recipes import Recipe
from training.shared_batch_norm import Sharing, over_all_processes, summed
from training.views import BATCH, Batch, Images, Shelf, Views, batches, whole_fronts

__all__ = ["EpochDone", "Finetuned", "Images", "Recipe", "Shelf", "finetune"]

HEAD_PENALTY: Final = 0.1  # inverse strength of the penalty on the head's weights, before and after
_SETTLING: Final = 16  # batches that BatchNorm's statistics are taken from
_OF_A_RANK: Final = 2**40  # between the seeds of two processes


@dataclass(frozen=True, slots=True)
class EpochDone:
    """How an epoch went: the share of judged images that are right (NaN without such), the mean `loss` over what was
    learnt from, the last learning rate of the head, and images learnt from in a second."""

    epoch: int
    accuracy: float
    loss: float
    learning_rate: float
    images_per_second: float


Record = Callable[[EpochDone], None]


def unrecorded(done: EpochDone) -> None:
    """Nobody keeps it."""


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
    shelf: Shelf,
    stage: str,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
    record: Record = unrecorded,
) -> Finetuned:
    """Train a copy of `backbone` and a head; `backbone` itself is left as it is.

    The same arguments give the same weights on the same machine, interrupted and resumed or not. In several processes
    (`training.processes`) all of them call it, each learns from its share of every batch, and only the leader judges.

    Args:
        start: the head to start from, fitted on the features as they are (`root` false); None starts from zero.
        judged: rows that are not trained on; after each epoch the curve says how many of them are right.
        fabric: a launched `lightning_fabric.Fabric`: device, precision and processes.
        shelf: for memory-mapped activations; its folder is removed by the caller.
        stage: what `progress` calls this.
        record: is told after each epoch how it went.

    Raises:
        InvalidParameter: this network cannot be trained in part.
    """
    backbone = replace(backbone, network=copy.deepcopy(backbone.network))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        frozen, back, groups = _parts(backbone, recipe)
        front = Front(frozen, backbone, fabric)
        front.compile(recipe.image_size)
        began = time.perf_counter()
        head = _head(start, classes, backbone.width)
        network = nn.Sequential(back, head)
        groups.append({"params": list(head.parameters()), "lr": recipe.learning_rate})
        optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=True)
        for group in optimizer.param_groups:
            group["full"] = group["lr"]
        model, optimizer = fabric.setup(network, optimizer)
        learning = [value for group in optimizer.param_groups for value in group["params"]]
        averaged = [value.detach().clone() for value in learning]
        whole = list(whole_fronts(front, backbone, judged))
        saved = processes.broadcast(checkpoint.read() if checkpoint else None)
        resumed = restore(saved, network, optimizer, averaged)
        curve, first = list(resumed.curve), resumed.epoch
        kept = train if first < recipe.epochs else train.none()
        views = Views(front, backbone, recipe, kept, fabric, shelf, seed, progress, stage)
        spent = time.perf_counter() - began if not first else resumed.seconds
        steps = math.ceil(len(train) / BATCH)

        def answers() -> NDArray[np.float64]:
            if recipe.random_start and len(kept):
                torch.manual_seed(seed + fabric.global_rank * _OF_A_RANK)
                some = batches(views, train, recipe, classes, seed, 0, fabric)
                _settle(network, itertools.islice(some, _SETTLING), fabric, sharing)
            return _answers(network, whole, fabric)

        with over_all_processes(network) as sharing, strides_in_float32(network):
            for epoch in range(first, recipe.epochs):
                tick = time.perf_counter()
                network.train(recipe.random_start)
                # What drops out is random too: an epoch must not depend on whether those before it were done just now.
                torch.manual_seed(seed * 1_000_003 + epoch + fabric.global_rank * _OF_A_RANK)
                loss = torch.zeros((), device=fabric.device)
                for step, batch in enumerate(batches(views, train, recipe, classes, seed, epoch, fabric)):
                    _set_rates(optimizer, (epoch + step / steps) / recipe.epochs, recipe.warmup)
                    sharing.on = batch.shared
                    loss += _learn(model, optimizer, batch, recipe, fabric)
                    done = epoch * steps + step + 1
                    with torch.no_grad():
                        _towards(averaged, learning, 1 - min(recipe.average, (1 + done) / (10 + done)))
                    progress(Step(stage, done * BATCH, recipe.epochs * steps * BATCH, IMAGES))
                took = time.perf_counter() - tick
                spent += took
                logits = _with(averaged, learning, answers)
                right = float((logits.argmax(axis=1) == judged.labels).mean()) if len(judged) else float("nan")
                curve.append(CurvePoint(epoch=epoch + 1, seconds=round(spent, 3), accuracy=right))
                if checkpoint:
                    checkpoint.save(network, optimizer, averaged, Resumed(epoch + 1, tuple(curve), spent))
                mean = float(summed(loss)) / len(train)
                record(EpochDone(epoch + 1, right, mean, optimizer.param_groups[-1]["lr"], len(train) / took))
            with torch.no_grad():
                _copy(learning, averaged)
            logits = answers()
            kept_head = _as_probe(head)
            if recipe.refit and fabric.global_rank == 0:
                kept_head = _fitted_anew(back, whole_fronts(front, backbone, train), train, classes, fabric)
                if len(judged):
                    logits = kept_head.logits(_features(back, whole, fabric))
                    right = float((logits.argmax(axis=1) == judged.labels).mean())
                    curve[-1] = curve[-1].model_copy(update={"accuracy": right})
    backbone.network.eval().requires_grad_(False).to("cpu")
    return Finetuned(backbone, kept_head, logits, tuple(curve), recipe.epochs, spent)


def _learn(model: nn.Module, optimizer: Any, batch: Batch, recipe: Recipe, fabric: Any) -> Tensor:
    """One step; the sum of the losses of the batch's images, or this process's part of it."""
    losses = F.cross_entropy(
        model(batch.images).float(), batch.targets, reduction="sum", label_smoothing=recipe.label_smoothing
    )
    optimizer.zero_grad(set_to_none=True)
    fabric.backward(losses * batch.scale)
    optimizer.step()
    share: float = batch.scale * batch.size / fabric.world_size
    return losses.detach() * share


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


def _fitted_anew(back: nn.Module, fronts: Iterable[Tensor], train: Images, classes: int, fabric: Any) -> Probe:
    """A probe on what the network makes of the training images now."""
    features = _features(back, fronts, fabric)
    return fixed_probe(
        features, train.labels.tolist(), train.weights.tolist(), classes, HEAD_PENALTY, root=never_negative(features)
    )


def _features(back: nn.Module, fronts: Iterable[Tensor], fabric: Any) -> Floats:
    back.eval()
    with torch.inference_mode(), fabric.autocast():
        return np.concatenate([back(fabric.to_device(batch).float()).float().cpu().numpy() for batch in fronts])


def _settle(network: nn.Module, seen: Iterable[Batch], fabric: Any, sharing: Sharing) -> None:
    """BatchNorm's statistics for the weights as they are now: the running ones are of weights that have moved on, and
    with few steps some networks (MobileNetV3 keeps 99 % a step) have hardly begun to have any."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain average of all that is seen
    network.train()
    with torch.no_grad():
        for batch in seen:  # made without autocast, which would round where crops are
            sharing.on = batch.shared
            with fabric.autocast():
                network(batch.images.float())
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum


def _set_rates(optimizer: Any, done: float, warmup: float) -> None:
    """A straight rise, then half a cosine."""
    share = min(1.0, (done + 1e-3) / (warmup + 1e-3))
    if done > warmup:
        share = 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = group["full"] * share


# --- the averaged weights ---------------------------------------------------------------------------------


def _answers(network: nn.Module, whole: Sequence[Tensor], fabric: Any) -> NDArray[np.float64]:
    was = network.training
    network.eval()
    with torch.inference_mode(), fabric.autocast():
        parts = [network(fabric.to_device(batch).float()).float().cpu().numpy() for batch in whole]
    network.train(was)
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
