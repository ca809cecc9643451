"""Train a backbone on generated images only, and keep its features as a small, self-describing checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from perennial.errors import InvalidParameter, PerennialError, WeightsUnavailable
from training import distortions, fractals, glyphs
from training.weights_file import in_order

CHECKPOINTS = Path(__file__).parent / "checkpoints"
BACKBONES = ("mobilenet_v3_small",)
# ImageNet's, so that a checkpoint made here and a downloaded one are fed the same way.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SOURCES = (distortions, fractals, glyphs)


@dataclass(frozen=True)
class Recipe:
    """Everything, with the library versions and the thread count, that the weights depend on.

    The defaults are the recipe of the committed checkpoint.
    """

    backbone: str = "mobilenet_v3_small"
    epochs: int = 12
    images_per_class: int = 100
    glyph_classes: int = 300
    fractal_classes: int = 0
    image_size: int = 64
    seed: int = 0
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    warmup: float = 0.05  # the share of all steps over which the learning rate rises
    ease_in: float = 0.3  # the share of all steps over which distortion grows to full; without it, learning starts late
    average: float = 0.998  # decay of the running average of the weights, which is what is kept


@dataclass(frozen=True)
class PretrainProgress:
    """Where a run stands at the end of an epoch; ``accuracy`` is on that epoch's own, fresh images."""

    epoch: int
    epochs: int
    images: int
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class PretrainResult:
    """What was written, and what it took."""

    path: Path
    sha256: str
    bytes: int
    recipe: Recipe
    images: int
    accuracy: float
    seconds: float


def builtin_checkpoint(backbone: str) -> Path:
    """The path of the committed checkpoint of a backbone.

    Raises WeightsUnavailable, naming the backbones that have one.
    """
    path = CHECKPOINTS / f"{backbone}-glyphs.safetensors"
    if path.is_file():
        return path
    known = sorted(p.name.removesuffix("-glyphs.safetensors") for p in CHECKPOINTS.glob("*-glyphs.safetensors"))
    raise WeightsUnavailable(
        f"there is no built-in checkpoint for {backbone!r}; there is one for: {', '.join(known) or 'none'}"
    )


def pretrain(
    out: Path,
    *,
    backbone: str = "mobilenet_v3_small",
    epochs: int = Recipe.epochs,
    images_per_class: int = Recipe.images_per_class,
    glyph_classes: int = Recipe.glyph_classes,
    fractal_classes: int = Recipe.fractal_classes,
    image_size: int = Recipe.image_size,
    seed: int = Recipe.seed,
    progress: Callable[[PretrainProgress], None] | None = None,
) -> PretrainResult:
    """Train ``backbone`` to tell generated classes apart and write its features to ``out`` (safetensors, float16).

    Every image is new: one epoch is ``images_per_class`` fresh distortions of each class. The keys are torchvision's,
    ``features.*``; the head is thrown away. The same arguments, library versions and thread count give the same bytes.

    Raises InvalidParameter for a backbone, class count or size that cannot be trained.
    """
    recipe = Recipe(
        backbone=backbone, epochs=epochs, images_per_class=images_per_class, glyph_classes=glyph_classes,
        fractal_classes=fractal_classes, image_size=image_size, seed=seed,
    )  # fmt: skip
    return run(recipe, out, progress)


def run(recipe: Recipe, out: Path, progress: Callable[[PretrainProgress], None] | None = None) -> PretrainResult:
    """Like ``pretrain``, with every number of the recipe open."""
    _check(recipe)
    started, sources = time.perf_counter(), source_digest()
    fields, first, count = _classes(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        features, accuracy = _train(recipe, fields, first, count, progress, started)
    seconds = time.perf_counter() - started
    images = recipe.epochs * _steps(recipe) * recipe.batch
    # No wall time in the file: the same recipe must give the same bytes.
    _save(features, recipe, out, {"images": images, "accuracy": round(accuracy, 4)}, sources)
    written = out.read_bytes()
    return PretrainResult(out, hashlib.sha256(written).hexdigest(), len(written), recipe, images, accuracy, seconds)


def _check(recipe: Recipe) -> None:
    if recipe.backbone not in BACKBONES:
        raise InvalidParameter(f"cannot pretrain {recipe.backbone!r}; choose from: {', '.join(BACKBONES)}")
    if recipe.glyph_classes + recipe.fractal_classes < 2:
        raise InvalidParameter("pretraining needs at least two classes")
    if min(recipe.epochs, recipe.images_per_class) < 1:
        raise InvalidParameter("epochs and images_per_class must be at least 1")
    if recipe.image_size < 32:
        raise InvalidParameter("image_size must be at least 32: the network halves it five times")


def _steps(recipe: Recipe) -> int:
    images = (recipe.glyph_classes + recipe.fractal_classes) * recipe.images_per_class
    return max(1, images // recipe.batch)


def _classes(recipe: Recipe) -> tuple[Tensor, Tensor, Tensor]:
    """All drawings ``[M, 1, 64, 64]``, and of each class its first drawing and how many it has."""
    try:
        atlases = [glyphs.glyph_atlas(recipe.glyph_classes)] if recipe.glyph_classes else []
    except ValueError as error:
        raise InvalidParameter(str(error)) from error
    if recipe.fractal_classes:
        atlases.append(fractals.fractal_atlas(recipe.fractal_classes, recipe.seed))
    count = np.concatenate([np.bincount(atlas.labels) for atlas in atlases])
    first = np.concatenate([[0], count.cumsum()[:-1]])
    fields = torch.from_numpy(np.concatenate([atlas.fields for atlas in atlases])).unsqueeze(1)
    return fields, torch.from_numpy(first), torch.from_numpy(count)


def _batches(
    recipe: Recipe, fields: Tensor, first: Tensor, count: Tensor, random: torch.Generator, epoch: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of normalised images ``[B, 3, S, S]`` and labels ``[B]``, classes evenly drawn."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    steps = _steps(recipe)
    rounds = -(-steps * recipe.batch // len(first))
    labels = torch.cat([torch.randperm(len(first), generator=random) for _ in range(rounds)])
    for step, label in enumerate(torch.split(labels[: steps * recipe.batch], recipe.batch)):
        done = (epoch + step / steps) / recipe.epochs
        how = distortions.Distortion().eased(min(1.0, 0.1 + 0.9 * done / recipe.ease_in))
        # The distortions go by position in the batch, so the order must say nothing about the class.
        drawing = first[label] + (torch.rand(len(label), generator=random) * count[label]).long()
        images = distortions.distort(fields[drawing].float(), recipe.image_size, random, how)
        yield ((images - mean) / std).to(memory_format=torch.channels_last), label


def _train(
    recipe: Recipe,
    fields: Tensor,
    first: Tensor,
    count: Tensor,
    progress: Callable[[PretrainProgress], None] | None,
    started: float,
) -> tuple[dict[str, Tensor], float]:
    """The averaged features' state and the last epoch's accuracy."""
    random = torch.Generator().manual_seed(recipe.seed)
    body: nn.Module = torchvision.models.get_model(recipe.backbone, weights=None).features
    with torch.no_grad():
        width = body.eval()(torch.zeros(1, 3, recipe.image_size, recipe.image_size)).shape[1]
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, len(first)))
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
    )
    total = recipe.epochs * _steps(recipe)
    average = {name: value.clone() for name, value in _floats(body).items()}
    step = 0
    share_right = 0.0
    for epoch in range(1, recipe.epochs + 1):
        loss_sum, right, seen = 0.0, 0, 0
        for images, labels in _ahead(_batches(recipe, fields, first, count, random, epoch - 1)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(step / total, recipe.warmup)
            scores = model(images)
            loss = F.cross_entropy(scores, labels, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            step += 1
            decay = min(recipe.average, (1 + step) / (10 + step))
            for name, value in _floats(body).items():
                average[name].lerp_(value, 1 - decay)
            loss_sum += float(loss.detach()) * len(labels)
            right += int((scores.detach().argmax(1) == labels).sum())
            seen += len(labels)
        share_right = right / seen
        if progress is not None:
            elapsed = time.perf_counter() - started
            done = PretrainProgress(epoch, recipe.epochs, step * recipe.batch, loss_sum / seen, share_right, elapsed)
            progress(done)
    return average, share_right


def _ahead(batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches, each drawn by one other thread while the last is learnt from."""
    with ThreadPoolExecutor(1) as painter:
        coming = painter.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = painter.submit(next, batches, None)
            yield batch


def _floats(body: nn.Module) -> dict[str, Tensor]:
    """Weights and BatchNorm statistics by name; the counters of batches seen are left out."""
    return {f"features.{k}": v for k, v in body.state_dict().items() if v.is_floating_point()}


def _schedule(done: float, warmup: float) -> float:
    """The share of the full learning rate: a straight rise, then half a cosine."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def source_digest() -> str:
    """The sha256 of the sources that generate the images and train on them."""
    digest = hashlib.sha256()
    for path in sorted([Path(__file__), *(Path(str(module.__file__)) for module in _SOURCES)]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _save(features: dict[str, Tensor], recipe: Recipe, out: Path, outcome: dict[str, float], sources: str) -> None:
    """Write under a temporary name, then rename, so a reader never sees half of a file."""
    tensors = {name: value.half().contiguous() for name, value in features.items()}
    broken = [name for name, value in tensors.items() if not bool(value.isfinite().all())]
    if broken:
        raise PerennialError(f"training diverged: {broken[0]} and {len(broken) - 1} more do not fit in float16")
    families = [f"{recipe.glyph_classes} printed glyphs", f"{recipe.fractal_classes} fractals"]
    metadata = {
        "format": "pt",
        "backbone": recipe.backbone,
        "recipe": json.dumps(asdict(recipe)),
        "seed": str(recipe.seed),
        "families": json.dumps(families),
        "input_size": str(recipe.image_size),
        "mean": json.dumps(MEAN),
        "std": json.dumps(STD),
        "outcome": json.dumps(outcome),
        "threads": str(torch.get_num_threads()),
        "libraries": json.dumps({name: version(name) for name in ("torch", "torchvision", "matplotlib", "pillow")}),
        "source_sha256": sources,
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    partial.write_bytes(in_order(save(tensors, metadata)))
    os.replace(partial, out)
