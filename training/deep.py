"""The upper rungs of the ladder, which train the network itself: how long they would take, what they are worth, and the
model they end in."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from perennial.bundle import CurvePoint
from perennial.graph import BFLOAT16, available_precisions
from perennial.images import ImageLimits, InputRule, Pixels
from perennial.progress import Progress, Step, silent
from perennial.storage import sha256
from training import backbones, embedder
from training.augment import Augmentation
from training.backbones import Backbone
from training.epochs import Checkpoint
from training.features import Embedded
from training.finetune import MOST_VIEWS, Finetuned, Images, Recipe, finetune
from training.paired import mcnemar
from training.pixels import mapped_pixels
from training.probe import Floats, Probe, fixed_probe
from training.rungs import FULL, PARTIAL, SCRATCH, Trial
from training.selection import Indexes, Selection

FOLDS: Final = 2  # of the cross-validation that a deep rung is tried on: each costs a whole training
_FOLD_SHARE: Final = 0.8  # of the rows, that a fold learns from
_MIRRORED: Final = 100  # images that are looked at in a mirror
_TIMED_IMAGES: Final = 64
_START_PENALTY: Final = 0.1
_ALPHA: Final = 0.05
_SEEN: Final = 16_000  # images that partial and full fine-tuning show the network, in all
_SEEN_FROM_SCRATCH: Final = 40_000
_CONTROL_SIZE: Final = 128  # pixels a side for the control from scratch: it learns faster on small images
_FEWEST_CONTROL_EPOCHS: Final = 5
_STAGES: Final = {
    PARTIAL: "fine-tuning the last stages", FULL: "fine-tuning every stage", SCRATCH: "training from scratch",
}  # fmt: skip
_FIXED_SIZE: Final = ("vit_", "maxvit")  # whose positions are made for one size


def recipe(name: str, images: int, backbone: Backbone, epochs: int | None = None) -> Recipe:
    """What a rung is trained with. The figures behind the numbers are in docs/training.md."""
    side = backbone.rule.crop
    smaller = side if backbone.name.startswith(_FIXED_SIZE) else max(32, round(side * 0.785 / 16) * 16)
    if name == SCRATCH:
        shown = epochs or _clip(_SEEN_FROM_SCRATCH / images, 20, 60)
        return Recipe(None, shown, side, learning_rate=2e-3, decay=1.0, weight_decay=0.05, random_start=True)
    shown = epochs or _clip(_SEEN / images, 8, 30)
    return Recipe(2 if name == PARTIAL else None, shown, smaller)


class Trainer:
    """Trains one network's copies on one selection of rows; decodes every image once, on first need, into `folder`."""

    def __init__(
        self,
        backbone: Backbone,
        embedded: Embedded,
        labels: NDArray[np.int64],
        weights: NDArray[np.float64],
        classes: int,
        selection: Selection,
        folder: Path,
        checkpoints: Path,
        *,
        seed: int,
        threads: int,
        limits: ImageLimits,
        folds: int = FOLDS,
        progress: Progress = silent,
    ) -> None:
        self.folds = folds
        self.backbone, self.embedded, self.labels, self.weights = backbone, embedded, labels, weights
        self.classes, self.selection, self.folder, self.checkpoints = classes, selection, folder, checkpoints
        self.seed, self.threads, self.limits, self.progress = seed, threads, limits, progress
        self._trained: dict[str, Finetuned] = {}
        self._epochs: dict[str, int] = {}
        self._pixels: Pixels | None = None
        self._at: dict[int, int] = {}
        self._fabric: Any = None
        self._written: list[Checkpoint] = []
        self._augmentation: Augmentation | None = None

    def expected_seconds(self, name: str) -> float:
        """What trying and fitting this rung would take, from a few steps on a few images."""
        learnt = len(self.selection.learnt)
        how = recipe(name, learnt, self.backbone)
        view, image = self._pace(name, how)
        views = min(MOST_VIEWS, how.epochs) if name == PARTIAL else 0
        once = learnt * (views * view + how.epochs * image)
        return once if self.selection.folds is None else once * (1 + self.folds * _FOLD_SHARE)

    def control_epochs(self, seconds: float) -> int:
        """How many epochs from scratch fit into so many seconds; 0 if too few to show anything."""
        learnt = len(self.selection.learnt)
        if seconds <= 0:
            return 0
        _, image = self._pace(SCRATCH, recipe(SCRATCH, learnt, self._from_scratch(self._control_size())))
        tries = 1 if self.selection.folds is None else self.folds * _FOLD_SHARE
        epochs = int(seconds / (image * learnt * tries))
        return 0 if epochs < _FEWEST_CONTROL_EPOCHS else min(epochs, 60)

    def trial(self, name: str, epochs: int | None = None) -> Trial:
        """Train on the selection's rows and answer the judged ones."""
        found: list[Finetuned] = []
        rows: list[Indexes] = []
        began = time.perf_counter()
        control = epochs is not None
        for fitted, judged in self.selection.parts(self.folds):
            found.append(self._finetune(name, fitted, judged, epochs, control=control))
            rows.append(judged)
        if self.selection.folds is None and not control:
            self._trained[name] = found[0]
        self._epochs[name] = found[0].epochs
        return Trial(
            name,
            np.concatenate(rows),
            np.concatenate([each.logits for each in found]),
            (time.perf_counter() - began) / len(found),
            found[0].epochs,
            _mean_curve([each.curve for each in found]),
        )

    def final(self, name: str) -> tuple[Backbone, Probe]:
        """The network and head to keep: those that were tried, or where rows were held out in turns, of all rows."""
        done = self._trained.get(name)
        if done is None:
            nothing = np.empty(0, np.int64)
            done = self._finetune(name, self.selection.learnt, nothing, None, control=False)
        return done.backbone, done.head

    def features(self, backbone: Backbone, at: Indexes, *, mirrored: bool = False) -> Floats:
        """What a network makes of these rows [N, D]."""
        pixels = self._of(at)
        side, margin = backbone.rule.crop, (pixels.shape[1] - backbone.rule.crop) // 2
        cut = pixels[:, margin : margin + side, margin : margin + side]
        cut = np.ascontiguousarray(cut[:, :, ::-1] if mirrored else cut)
        found = embedder.TorchEmbedder(backbone)
        return np.concatenate([found(cut[start : start + 16]) for start in range(0, len(cut), 16)])

    def forget(self) -> None:
        """All is done: what an interrupted run would have gone on from is not needed."""
        for checkpoint in self._written:
            checkpoint.remove()

    # --- one training ---

    def _finetune(self, name: str, fitted: Indexes, judged: Indexes, epochs: int | None, *, control: bool) -> Finetuned:
        scratch = name == SCRATCH
        backbone = self.backbone
        if scratch:
            backbone = self._from_scratch(self._control_size() if control else backbone.rule.crop)
        how = replace(recipe(name, len(fitted), backbone, epochs), augmentation=self.augmentation())
        with self._threads():
            return finetune(
                backbone,
                None if scratch else self._start(fitted),
                self._images(fitted),
                self._images(judged),
                how,
                classes=self.classes,
                seed=self.seed,
                fabric=self._launched(),
                scratch=self.folder,
                stage=_STAGES[name],
                checkpoint=self._checkpoint(backbone, how, fitted, judged),
                progress=self.progress,
            )

    def _checkpoint(self, backbone: Backbone, how: Recipe, fitted: Indexes, judged: Indexes) -> Checkpoint:
        """Named by all that the training depends on, so that the same command after an interruption finds it."""
        rows = self.embedded.rows
        lines = [f"{rows[at].digest} {rows[at].label} {rows[at].weight}" for at in fitted]
        lines += ["judged", *(rows[at].digest for at in judged), repr(how), str(self.seed), str(self.threads)]
        lines += [backbone.name, backbone.weights_sha256, repr(backbone.rule), version("torch")]
        run = sha256("\n".join(lines).encode())
        checkpoint = Checkpoint(self.checkpoints / f"{run[:16]}.safetensors", run)
        self._written.append(checkpoint)
        return checkpoint

    def _pace(self, name: str, how: Recipe) -> tuple[float, float]:
        """Seconds a view and an image, of two short epochs on a few rows."""
        rows = self.selection.learnt[:_TIMED_IMAGES]
        rows = np.resize(rows, _TIMED_IMAGES)
        backbone = self._from_scratch(how.image_size) if name == SCRATCH else self.backbone
        with self._threads():
            found = finetune(
                backbone, None, self._images(rows), self._images(rows[:0]), replace(how, epochs=2),
                classes=self.classes, seed=self.seed, fabric=self._launched(), scratch=self.folder,
                stage="timing a few steps",
            )  # fmt: skip
        first, second = (point.seconds for point in found.curve)
        epoch = second - first
        return max(0.0, first - epoch) / (2 * _TIMED_IMAGES), epoch / _TIMED_IMAGES

    def _start(self, fitted: Indexes) -> Probe:
        return fixed_probe(
            self.embedded.features[fitted], self.labels[fitted].tolist(), self.weights[fitted].tolist(), self.classes,
            _START_PENALTY, root=False,
        )  # fmt: skip

    def _from_scratch(self, size: int) -> Backbone:
        """The same network with random weights, which sees what the pretrained one sees."""
        mine = self.backbone
        rule = InputRule(resize=round(size * mine.rule.resize / mine.rule.crop), crop=size)
        random = backbones.load(mine.name, "none", image_size=size, seed=self.seed)
        return replace(random, rule=rule, mean=mine.mean, std=mine.std)

    def augmentation(self) -> Augmentation:
        """Mirror images are views only where they still are what they were: of letters and digits they are not. A probe
        tells: it must not be measurably worse on the mirrored images (McNemar's exact test, 5 %)."""
        if self._augmentation is None:
            fitted, judged = next(self.selection.parts())
            some = judged[:_MIRRORED]
            probe, truth = self._start(fitted), self.labels[some]
            plain = probe.logits(self.embedded.features[some]).argmax(axis=1) == truth
            turned = probe.logits(self.features(self.backbone, some, mirrored=True)).argmax(axis=1) == truth
            worse = mcnemar(int((turned & ~plain).sum()), int((plain & ~turned).sum())) < _ALPHA
            self._augmentation = Augmentation(mirror=not worse)
        return self._augmentation

    def _control_size(self) -> int:
        side = self.backbone.rule.crop
        return side if self.backbone.name.startswith(_FIXED_SIZE) else min(_CONTROL_SIZE, side)

    # --- what they share ---

    def _images(self, at: Indexes) -> Images:
        return Images(self._of(at), self.labels[at], self.weights[at])

    def _of(self, at: Indexes) -> Pixels:
        if self._pixels is None:
            every = np.unique(np.concatenate([self.selection.learnt, self.selection.judged]))
            self._at = {int(row): place for place, row in enumerate(every)}
            self._pixels = mapped_pixels(
                [self.embedded.rows[row] for row in every], self.backbone.rule, self.folder / "pixels.npy",
                threads=self.threads, limits=self.limits, progress=self.progress,
            )  # fmt: skip
        return self._pixels[[self._at[int(row)] for row in at]]

    def _launched(self) -> Any:
        if self._fabric is None:
            self.progress(Step("starting the trainer", 0, 1))
            from lightning_fabric import Fabric

            logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces its precision
            cuda = torch.cuda.is_available()
            half = cuda or BFLOAT16 in available_precisions("openvino")
            self._fabric = Fabric(
                accelerator="cuda" if cuda else "cpu", devices=1, precision="bf16-mixed" if half else "32-true"
            )
            self._fabric.launch()
            self.progress(Step("starting the trainer", 1, 1))
        return self._fabric

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """Training has one batch at a time: here, threads belong inside the operations."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _mean_curve(curves: list[tuple[CurvePoint, ...]]) -> tuple[CurvePoint, ...]:
    return tuple(
        CurvePoint(
            epoch=points[0].epoch,
            seconds=round(float(np.mean([point.seconds for point in points])), 3),
            accuracy=float(np.mean([point.accuracy for point in points])),
        )
        for points in zip(*curves, strict=True)
    )


def _clip(value: float, low: int, high: int) -> int:
    return int(min(high, max(low, round(value))))
