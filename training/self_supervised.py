"""Continued pretraining on images without labels: SimCLR from weights that are given (Chen et al., ICML 2020).

Two random views of an image shall be more alike than views of different images of the batch. What it gains, measured
with 10 labelled images a class afterwards (means of 5 draws, 95 % intervals of the paired difference):

- from the built-in weights, which know strokes and no photo: steel defects +26 points (.50 to .76; 640 images, 8
  epochs, half a minute on one core), sketches +8 (.50 to .59);
- from ImageNet's (`mobilenet_v2`): nothing. Steel -0.3 (-1.5 to +0.9), sketches -0.5 (-3.4 to +2.4) with the last
  stages trained.

So it is for weights that have never seen anything like the images.
"""

from __future__ import annotations

import copy
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perennial.errors import InvalidParameter
from perennial.images import ImageLimits, InputRule, Pixels
from perennial.progress import Progress, Step, silent
from training import backbones, unlabelled
from training.align import adapt_batch_norm, batch_norms
from training.augment import Augmentation, random_views
from training.backbones import Backbone
from training.datasets import DEFAULT_LIMITS, Skipped
from training.features import decode
from training.recipes import takes_one_size
from training.weights_file import digest_of, save_features

_VIEWS: Final = Augmentation(smallest=0.2, mirror=True, light=0.5)
_WEAK: Final = ("builtin", "none")  # weights that have much to learn, and little to lose
_LARGEST: Final = 96  # pixels a side: batches of large images take minutes each on a few cores
_RECALIBRATED: Final = 256  # images that BatchNorm's statistics are taken from in the end


@dataclass(frozen=True, slots=True)
class Recipe:
    """How it learns. `image_size` 0 is the network's own, but at most 96; `learning_rate` 0 is 1e-3 for the built-in or
    random weights and 3e-4 for others; `hidden` and `projected` are the widths of the projection head, which is thrown
    away."""

    epochs: int = 8
    batch: int = 64
    image_size: int = 0
    learning_rate: float = 0.0
    temperature: float = 0.2
    hidden: int = 512
    projected: int = 256
    weight_decay: float = 1e-4
    warmup: float = 0.1  # the share of all steps over which the learning rate rises


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """Where a run stands: the mean `loss` of this epoch, in nats, and the `seconds` since it began."""

    epoch: int
    epochs: int
    images: int
    loss: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Continued:
    """What was written, and what it took. `images` were trained on, each `epochs` times."""

    path: Path
    sha256: str
    bytes: int
    backbone: str
    image_size: int
    recipe: Recipe
    images: int
    loss: float
    seconds: float
    skipped: tuple[Skipped, ...] = ()


def pretrain_on(
    folder: Path,
    out: Path,
    *,
    weights: str,
    backbone: str,
    recipe: Recipe = Recipe(),
    seed: int = 0,
    threads: int = 1,
    limits: ImageLimits = DEFAULT_LIMITS,
    report: Callable[[EpochEnd], None] | None = None,
    progress: Progress = silent,
) -> Continued:
    """Continue from `weights` on every image below `folder`, and write the features to `out` for `--weights`.

    The same arguments, images, library versions and thread count give the same bytes.

    Raises:
        InvalidDataset: there is no image that can be read.
        InvalidParameter: too few images, no such backbone, or a recipe that cannot be trained.
        WeightsUnavailable: the weights cannot be had.
        PerennialError: training diverged; nothing is written.
    """
    began = time.perf_counter()
    start = backbones.load(backbone, weights, seed=seed)
    _check(start, recipe)
    _require_writable(out)
    images = unlabelled.load(folder, threads=threads, limits=limits, progress=progress)
    side = _side(start, recipe)
    with tempfile.TemporaryDirectory(prefix="perennial-pretrain-") as scratch:
        rule = InputRule(resize=round(side * 8 / 7), crop=side)
        pixels = unlabelled.pixels_of(
            images, rule, Path(scratch, "pixels.npy"), threads=threads, limits=limits, progress=progress
        )
        trained, loss = continue_pretraining(start, pixels, recipe, seed=seed, report=report, progress=progress)
    if any(True for _ in batch_norms(trained.network)):
        chosen = np.random.default_rng(seed).permutation(len(images.rows))[:_RECALIBRATED]
        _, served, _ = decode([images.rows[at] for at in chosen], start.rule, limits)
        trained = adapt_batch_norm(trained, served, share=1.0, seed=seed)
    about = {
        "objective": "simclr",
        "recipe": json.dumps(asdict(recipe)),
        "seed": str(seed),
        "from": json.dumps({"source": start.source, "sha256": start.weights_sha256}),
        "images": str(len(images.rows)),
        "fingerprint": images.fingerprint,
        "threads": str(torch.get_num_threads()),
        "libraries": json.dumps({name: version(name) for name in ("torch", "torchvision")}),
    }
    kept = save_features(trained, out, about)
    seconds = time.perf_counter() - began
    return Continued(
        out, kept.weights_sha256, out.stat().st_size, backbone, start.rule.crop, recipe, len(images.rows), loss,
        seconds, images.skipped,
    )  # fmt: skip


def continue_pretraining(
    backbone: Backbone,
    pixels: Pixels,
    recipe: Recipe = Recipe(),
    *,
    seed: int = 0,
    report: Callable[[EpochEnd], None] | None = None,
    progress: Progress = silent,
) -> tuple[Backbone, float]:
    """Train a copy of the network; `backbone` is left as it is. BatchNorm's statistics move, and are of views of the
    training size: see `adapt_batch_norm`.

    Args:
        pixels: uint8 [N, S, S, 3], perhaps memory-mapped, a little larger than the training size.

    Returns:
        the trained copy and the last epoch's loss.

    Raises:
        InvalidParameter: fewer images than two batches, or a recipe that cannot be trained.
    """
    _check(backbone, recipe)
    if len(pixels) < 2 * recipe.batch:
        raise InvalidParameter(
            f"{len(pixels)} images are too few to learn from without labels; give {2 * recipe.batch}, better thousands"
        )
    began = time.perf_counter()
    side, steps = _side(backbone, recipe), len(pixels) // recipe.batch
    weak = backbone.source in _WEAK
    rate = recipe.learning_rate or (1e-3 if weak else 3e-4)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    random = torch.Generator().manual_seed(seed)
    loss_sum = float("nan")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = copy.deepcopy(backbone.network).requires_grad_(True).train().to(device)
        head = _head(backbone.width, recipe).to(device)
        optimizer = torch.optim.AdamW(
            [{"params": network.parameters(), "lr": rate}, {"params": head.parameters(), "lr": 1e-3}],
            weight_decay=recipe.weight_decay,
        )
        full = [group["lr"] for group in optimizer.param_groups]
        for epoch in range(recipe.epochs):
            order = torch.randperm(len(pixels), generator=random).numpy()
            loss_sum = 0.0
            for step in range(steps):
                share = rate_at((epoch + step / steps) / recipe.epochs, recipe.warmup)
                for group, most in zip(optimizer.param_groups, full, strict=True):
                    group["lr"] = most * share
                some = torch.from_numpy(pixels[np.sort(order[step * recipe.batch :][: recipe.batch])])
                views = torch.cat([random_views(some, side, random, _VIEWS) for _ in range(2)])
                with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                    projected = head(network(normalised_views(views, backbone).to(device)))
                loss = contrast(projected.float(), recipe.temperature)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
                loss_sum += float(loss.detach())
                progress(Step("learning without labels", (epoch * steps + step + 1) * recipe.batch,
                              recipe.epochs * steps * recipe.batch))  # fmt: skip
            if report is not None:
                seen = (epoch + 1) * steps * recipe.batch
                report(EpochEnd(epoch + 1, recipe.epochs, seen, loss_sum / steps, time.perf_counter() - began))
    network.eval().requires_grad_(False).to("cpu")
    return replace(backbone, network=network, weights_sha256=digest_of(network)), loss_sum / steps


def contrast(projected: Tensor, temperature: float) -> Tensor:
    """The mean cross-entropy, in nats, of finding each row's other view among all rows by cosine (NT-Xent).

    Args:
        projected: [2 B, P]; row i and row B + i are views of one image.
    """
    rows = F.normalize(projected, dim=1)
    alike = rows @ rows.T / temperature
    alike = alike.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), float("-inf"))
    half = len(rows) // 2
    other = torch.arange(len(rows), device=rows.device).roll(half)
    return F.cross_entropy(alike, other)


def normalised_views(views: Tensor, backbone: Backbone) -> Tensor:
    """float32 [N, 3, H, W] in 0..255 -> the network's input."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255.0 for values in (backbone.mean, backbone.std))
    return ((views - mean) / std).contiguous(memory_format=torch.channels_last)


def rate_at(done: float, warmup: float) -> float:
    """The share of the full learning rate when `done`, in 0..1, of the steps are: a straight rise, then half a
    cosine."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def _head(width: int, recipe: Recipe) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, recipe.hidden), nn.BatchNorm1d(recipe.hidden), nn.ReLU(),
        nn.Linear(recipe.hidden, recipe.projected),
    )  # fmt: skip


def _require_writable(out: Path) -> None:
    """Better to hear now than after the work."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidParameter(f"{out} cannot be written: {error}") from error
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise InvalidParameter(f"{out} cannot be written; give the name of a file in a folder that can be")


def _side(backbone: Backbone, recipe: Recipe) -> int:
    if takes_one_size(backbone):
        return backbone.rule.crop
    return recipe.image_size or min(backbone.rule.crop, _LARGEST)


def _check(backbone: Backbone, recipe: Recipe) -> None:
    if recipe.epochs < 1 or recipe.batch < 8:
        raise InvalidParameter("pretraining needs at least 1 epoch and batches of at least 8 images")
    if recipe.image_size and recipe.image_size < 32:
        raise InvalidParameter("image_size must be at least 32")
    if takes_one_size(backbone) and recipe.image_size not in (0, backbone.rule.crop):
        raise InvalidParameter(f"{backbone.name} sees {backbone.rule.crop} pixels only; leave out --image-size")
