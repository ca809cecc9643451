"""Relational distillation: a small network learns how a larger one places images towards each other (Park et al., CVPR
2019). Widths and classes need not agree, and images without labels serve as well.

Measured with ImageNet's `mobilenet_v2` as teacher of the built-in `mobilenet_v3_small` at 64 pixels, 8,000 images shown
(20 s on one core), accuracy of a probe on other images (means of 5 draws, 95 % intervals of the paired difference):

- steel defects, taught on 300 training images: with 10 labels a class .54 to .80 (+24 to +28 points), with 40 a class
  .62 to .83 (+20 to +23); taught on 400 more without labels .81 and .86. The teacher itself: .98 and .99.
- ants and bees, taught on 160 training images: nothing (-1.6 points, -6.3 to +3.1, 64 labels a class); with 236 more
  without labels +3.6 (+0.2 to +7.0), far from the teacher's .96.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from perennial.errors import InvalidParameter
from perennial.images import ImageLimits, Pixels
from perennial.progress import Progress, Step, silent
from training import features
from training.align import adapt_batch_norm, batch_norms
from training.augment import Augmentation, random_views
from training.backbones import Backbone
from training.datasets import DEFAULT_LIMITS, Row
from training.pixels import mapped_pixels
from training.probe import never_negative
from training.self_supervised import normalised_views, rate_at
from training.weights_file import digest_of, save_features

Floats = NDArray[np.float32]

_VIEWS: Final = Augmentation(smallest=0.5, mirror=True, light=0.2)
_MOST_EPOCHS: Final = 40
_RECALIBRATED: Final = 256  # images that BatchNorm's statistics are taken from in the end


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the student learns. `distance` and `angle` weigh the two losses (25 and 50 in the paper's classification);
    `epochs` 0 shows it about `seen` images in all, each of them 4 to
    40 times."""

    epochs: int = 0
    seen: int = 12_000
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.1
    distance: float = 1.0
    angle: float = 2.0


def distil(
    student: Backbone,
    teacher_features: Floats,
    pixels: Pixels,
    recipe: Recipe = Recipe(),
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> Backbone:
    """A copy of the student whose features lie towards each other as the teacher's do; `student` is left as it is.

    The student sees random views, the teacher saw each image once. In the end BatchNorm's statistics are taken anew
    from images as they will be served.

    Args:
        teacher_features: [N, D] of the same images, of any width. Of features that are never negative the square root
            is taken, as by the probe.
        pixels: uint8 [N, S, S, 3] with S the side that the student's rule resizes to, perhaps memory-mapped.

    Raises:
        InvalidParameter: the two are not of the same images, or there are fewer than a batch.
    """
    if len(teacher_features) != len(pixels):
        raise InvalidParameter(f"{len(teacher_features)} rows of the teacher's for {len(pixels)} images")
    if len(pixels) < recipe.batch:
        raise InvalidParameter(f"{len(pixels)} images are too few to learn from a teacher; give {recipe.batch} or more")
    steps = len(pixels) // recipe.batch
    epochs = recipe.epochs or min(_MOST_EPOCHS, max(4, round(recipe.seen / len(pixels))))
    root = never_negative(teacher_features)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    random = torch.Generator().manual_seed(seed)
    side = student.rule.crop
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = copy.deepcopy(student.network).requires_grad_(True).train().to(device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        for epoch in range(epochs):
            order = torch.randperm(len(pixels), generator=random).numpy()
            for step in range(steps):
                share = rate_at((epoch + step / steps) / epochs, recipe.warmup)
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * share
                rows = np.sort(order[step * recipe.batch :][: recipe.batch])
                views = random_views(torch.from_numpy(pixels[rows]), side, random, _VIEWS)
                taught = torch.from_numpy(np.asarray(teacher_features[rows])).to(device)
                with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                    learnt = network(normalised_views(views, student).to(device))
                loss = relational_loss(
                    learnt.float(), taught.clamp(min=0).sqrt() if root else taught, recipe.distance, recipe.angle
                )
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
                progress(Step("learning from the teacher", (epoch * steps + step + 1) * recipe.batch,
                              epochs * steps * recipe.batch))  # fmt: skip
    network.eval().requires_grad_(False).to("cpu")
    done = replace(student, network=network, weights_sha256=digest_of(network))
    if any(True for _ in batch_norms(network)):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(pixels))[:_RECALIBRATED])
        margin = (pixels.shape[1] - side) // 2
        served = pixels[chosen][:, margin : margin + side, margin : margin + side]
        done = adapt_batch_norm(done, served, share=1.0, seed=seed)
    return done


def learn_from(
    student: Backbone,
    teacher: Backbone,
    rows: Sequence[Row],
    kept: Path,
    cache: Path,
    recipe: Recipe = Recipe(),
    *,
    seed: int,
    threads: int,
    limits: ImageLimits = DEFAULT_LIMITS,
    progress: Progress = silent,
) -> Backbone:
    """The student taught by a larger network on these images, its weights in a file of the folder `kept`: the backbone
    that comes back is the one that `backbones.load` gives for that file, so a retrain can start from it.

    Args:
        rows: images that may be trained on; labels are not looked at.

    Raises:
        InvalidParameter: too few of them can be decoded.
        InvalidDataset: a file is gone, or was changed since it was listed.
        PerennialError: training diverged; nothing is written.
    """
    lesson = features.embed(rows, teacher, cache, threads=threads, limits=limits, progress=progress)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # one batch at a time: threads belong inside the operations
    try:
        with tempfile.TemporaryDirectory(prefix="perennial-teacher-") as folder:
            pixels = mapped_pixels(
                lesson.rows, student.rule, Path(folder, "pixels.npy"), threads=threads, limits=limits, progress=progress
            )
            taught = distil(student, lesson.features, pixels, recipe, seed=seed, progress=progress)
    finally:
        torch.set_num_threads(before)
    origins = {
        name: json.dumps({"backbone": each.name, "source": each.source, "sha256": each.weights_sha256})
        for name, each in (("from", student), ("teacher", teacher))
    }
    out = kept / f"{student.name}-{taught.weights_sha256[:16]}.safetensors"
    about = {"objective": "relational distillation", "seed": str(seed), "images": str(len(lesson.rows)), **origins}
    return save_features(taught, out.absolute(), about)


def relational_loss(student: Tensor, teacher: Tensor, distance: float = 1.0, angle: float = 2.0) -> Tensor:
    """Huber losses of the distances between rows, each network's relative to their mean, and of the cosines of the
    angles that rows make at a third (equations 4 to 8 of the paper).

    Args:
        student: [B, D], teacher: [B, E]. The gradient goes to the student only.
    """
    teacher = teacher.detach()
    far = F.smooth_l1_loss(_distances(student), _distances(teacher))
    return distance * far + angle * F.smooth_l1_loss(_cosines(student), _cosines(teacher))


def _distances(rows: Tensor) -> Tensor:
    squares = (rows.unsqueeze(0) - rows.unsqueeze(1)).square().sum(dim=2)
    apart = (squares + 1e-12).sqrt()
    off = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return apart[off] / apart[off].mean()


def _cosines(rows: Tensor) -> Tensor:
    """[B, B, B]: at row i, between the directions to j and to k."""
    directions = F.normalize(rows.unsqueeze(0) - rows.unsqueeze(1), dim=2)
    return torch.bmm(directions, directions.transpose(1, 2))
