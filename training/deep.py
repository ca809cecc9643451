"""The upper rungs of the ladder, which train the network itself: how long they would take, what they are worth, and the
model they end in."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from perennial.bundle import CurvePoint
from perennial.images import ImageLimits, InputRule, Pixels
from perennial.progress import Progress, Step, silent
from perennial.storage import sha256
from training import backbones, embedder, processes
from training.augment import Augmentation
from training.backbones import Backbone
from training.epochs import Checkpoint
from training.fair_views import Sight, fair_views
from training.features import Embedded
from training.finetune import HEAD_PENALTY, Finetuned, Images
from training.pixels import mapped_pixels
from training.probe import Floats, Probe, fixed_probe
from training.recipes import Recipe, recipe, takes_one_size
from training.resident import taken
from training.run_log import Log, log_epoch, unlogged
from training.rungs import FULL, PARTIAL, SCRATCH, Trial
from training.selection import Indexes, Selection
from training.together import ANY, Hardware, Job, Workplace
from training.views import MOST_VIEWS

FOLDS: Final = 2  # of the cross-validation that a deep rung is tried on: each costs a whole training
_FOLD_SHARE: Final = 0.8  # of the rows, that a fold learns from
_TRIED_SHARE: Final = 0.4  # of the epochs, that a rung is tried for where the one that is kept is trained anew
_TIMED_IMAGES: Final = 64
_CONTROL_SIZE: Final = 96  # pixels a side for the control from scratch: it learns faster on small images
_FEWEST_CONTROL_EPOCHS: Final = 5
_STAGES: Final = {
    PARTIAL: "fine-tuning the last stages", FULL: "fine-tuning every stage", SCRATCH: "training from scratch",
}  # fmt: skip


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
        hardware: Hardware = ANY,
        log: Log = unlogged,
    ) -> None:
        self.folds = folds
        self.backbone, self.embedded, self.labels, self.weights = backbone, embedded, labels, weights
        self.classes, self.selection, self.folder, self.checkpoints = classes, selection, folder, checkpoints
        self.seed, self.threads, self.limits, self.progress = seed, threads, limits, progress
        self._trained: dict[str, Finetuned] = {}
        self._pixels: Pixels | None = None
        self._at: dict[int, int] = {}
        self._hardware, self._log = hardware, log
        self._workplace = Workplace()
        self._started = False
        self._written: list[Checkpoint] = []
        self._augmentation: Augmentation | None = None
        self._paces: dict[str, tuple[float, float]] = {}
        self._seeing: tuple[Backbone, embedder.Embedder] | None = None  # what was asked for features last
        self.final_rows: Indexes = selection.final

    def keep_what_was_tried(self) -> None:
        """For want of time: what is kept does not learn from the judged rows."""
        self.final_rows = self.selection.learnt

    def expected_seconds(self, name: str) -> float:
        """What trying and fitting this rung would take, from a few steps on a few images."""
        learnt = len(self.selection.learnt)
        view, image = self._pace_of(name)
        views = min(MOST_VIEWS, self._recipe(name, learnt).epochs) if name == PARTIAL else 0
        tries = 1.0 if self.selection.folds is None else self.folds * _FOLD_SHARE
        tried = tries * learnt * (self._tried_epochs(name) or self._recipe(name, learnt).epochs) * image
        return len(self.final_rows) * views * view + tried + self.final_seconds(name)

    def final_seconds(self, name: str) -> float:
        """What it would take to train the network to keep, once it has been tried; 0 if that one is kept."""
        if not self._anew:
            return 0.0
        rows = len(self.final_rows)
        return rows * self._recipe(name, rows).epochs * self._pace_of(name)[1]

    def is_tried_short(self, name: str) -> bool:
        """Will the network that is kept be trained for longer than the one that was tried?"""
        return self._tried_epochs(name) is not None and name != SCRATCH

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
        epochs = epochs or self._tried_epochs(name)
        for fold, (fitted, judged) in enumerate(self.selection.parts(self.folds), start=1):
            tag = name if self.selection.folds is None else f"{name}-fold-{fold}"
            found.append(self._finetune(name, fitted, judged, epochs, control=control, tag=tag))
            rows.append(judged)
        if not self._anew and not control:
            self._trained[name] = found[0]
        return Trial(
            name,
            np.concatenate(rows),
            np.concatenate([each.logits for each in found]),
            (time.perf_counter() - began) / len(found),
            found[0].epochs,
            _mean_curve([each.curve for each in found]),
        )

    def final(self, name: str) -> tuple[Backbone, Probe]:
        """The network and head to keep: of all that may be learnt from; those that were tried, if they have."""
        done = self._trained.get(name)
        if done is None:
            nothing = np.empty(0, np.int64)
            done = self._finetune(name, self.final_rows, nothing, None, control=False, tag=f"{name}-final")
        return done.backbone, done.head

    def features(self, backbone: Backbone, at: Indexes, change: Callable[[Pixels], Pixels] | None = None) -> Floats:
        """What a network makes of these rows [N, D], changed or as they are."""
        images, few = self._images(at), [np.arange(len(at))[start : start + 16] for start in range(0, len(at), 16)]
        side, margin = backbone.rule.crop, (images.pixels.shape[1] - backbone.rule.crop) // 2

        def seen(rows: Indexes) -> Pixels:
            cut = images.seen(rows).numpy()[:, margin : margin + side, margin : margin + side]
            return np.ascontiguousarray(change(cut) if change else cut)

        if self._seeing is None or self._seeing[0] is not backbone:
            self._seeing = backbone, embedder.compiled(backbone, seen(few[0][:2]), threads=self.threads)
        found = self._seeing[1]
        with ThreadPoolExecutor(self.threads) as pool:
            return np.concatenate(list(pool.map(lambda rows: found(seen(rows)), few)))

    def forget(self) -> None:
        """All is done: what an interrupted run would have gone on from is not needed."""
        for checkpoint in self._written:
            checkpoint.remove()

    # --- one training ---

    @property
    def _anew(self) -> bool:
        """Is what is kept another network than the one that was tried?"""
        return self.selection.folds is not None or len(self.final_rows) > len(self.selection.learnt)

    def _recipe(self, name: str, rows: int) -> Recipe:
        return recipe(name, rows, self.backbone)

    def _tried_epochs(self, name: str) -> int | None:
        """Fewer than the recipe's, where that is enough to choose by; None for all of them."""
        if self.selection.folds is not None or not self._anew:
            return None
        return max(1, round(_TRIED_SHARE * self._recipe(name, len(self.selection.learnt)).epochs))

    def _pace_of(self, name: str) -> tuple[float, float]:
        if name not in self._paces:
            self._paces[name] = self._pace(name, self._recipe(name, len(self.selection.learnt)))
        return self._paces[name]

    def _finetune(
        self, name: str, fitted: Indexes, judged: Indexes, epochs: int | None, *, control: bool, tag: str
    ) -> Finetuned:
        scratch = name == SCRATCH
        backbone = self.backbone
        if scratch:
            backbone = self._from_scratch(self._control_size() if control else backbone.rule.crop)
        how = replace(recipe(name, len(fitted), backbone, epochs), augmentation=self._views_of(name))
        start = None if scratch else self._start(fitted)
        return self._workplace.train(
            replace(self._job(backbone, start, fitted, how, _STAGES[name]), pool=self._images(self.final_rows).at),
            self._images(judged),
            self._checkpoint(backbone, how, fitted, judged),
            self.progress,
            partial(log_epoch, self._log, tag),
        )

    def _job(self, backbone: Backbone, start: Probe | None, rows: Indexes, how: Recipe, stage: str) -> Job:
        images = self._images(rows)
        assert images.at is not None
        return Job(
            backbone, start, self._path, images.at, images.labels, images.weights, how, self.classes, self.seed, stage,
            self.folder, self._settled(), self.threads,
        )  # fmt: skip

    def _checkpoint(self, backbone: Backbone, how: Recipe, fitted: Indexes, judged: Indexes) -> Checkpoint:
        """Named by all that the training depends on, so that the same command after an interruption finds it."""
        rows = self.embedded.rows
        lines = [f"{rows[at].digest} {rows[at].label} {rows[at].weight}" for at in fitted]
        lines += ["judged", *(rows[at].digest for at in judged), repr(how), str(self.seed), str(self.threads)]
        lines += [backbone.name, backbone.weights_sha256, repr(backbone.rule), version("torch")]
        lines += [repr(self._settled()), str(processes.place().world)]
        run = sha256("\n".join(lines).encode())
        checkpoint = Checkpoint(self.checkpoints / f"{run[:16]}.safetensors", run)
        self._written.append(checkpoint)
        return checkpoint

    def _pace(self, name: str, how: Recipe) -> tuple[float, float]:
        """Seconds a view and an image, of two short epochs on a few rows."""
        rows = self.selection.learnt[:_TIMED_IMAGES]
        rows = np.resize(rows, _TIMED_IMAGES)
        backbone = self._from_scratch(how.image_size) if name == SCRATCH else self.backbone
        how = replace(how, epochs=2, refit=False)  # so few rows need not be of every class, nor of more than one
        found = self._workplace.train(self._job(backbone, None, rows, how, "timing a few steps"))
        first, second = (point.seconds for point in found.curve)
        epoch = second - first
        return max(0.0, first - epoch) / (2 * _TIMED_IMAGES), epoch / _TIMED_IMAGES

    def _start(self, fitted: Indexes) -> Probe:
        return self._probe(taken(self.embedded.features, fitted), fitted)

    def _probe(self, features: Floats, rows: Indexes) -> Probe:
        return fixed_probe(
            features, self.labels[rows].tolist(), self.weights[rows].tolist(), self.classes, HEAD_PENALTY,
            root=False, overwrite=True,
        )  # fmt: skip

    def _from_scratch(self, size: int) -> Backbone:
        """The same network with random weights, which sees what the pretrained one sees."""
        mine = self.backbone
        rule = InputRule(resize=round(size * mine.rule.resize / mine.rule.crop), crop=size)
        random = backbones.load(mine.name, "none", image_size=size, seed=self.seed)
        return replace(random, rule=rule, mean=mine.mean, std=mine.std)

    def augmentation(self) -> Augmentation:
        """The views that are fair for these images."""
        if self._augmentation is None:
            sight = Sight(self.embedded.features, partial(self.features, self.backbone), self._probe)
            self._augmentation = fair_views(sight, self.labels, self.classes, *next(self.selection.parts()))
        return self._augmentation

    def _views_of(self, name: str) -> Augmentation:
        # From random weights there is little to gain from shapes within so few epochs.
        return self.augmentation().plain_tones() if name == SCRATCH else self.augmentation()

    def _control_size(self) -> int:
        side = self.backbone.rule.crop
        return side if takes_one_size(self.backbone) else min(_CONTROL_SIZE, side)

    # --- what they share ---

    @property
    def _path(self) -> Path:
        return self.folder / "pixels.npy"

    def _images(self, rows: Indexes) -> Images:
        pixels = self._decoded()
        at = np.array([self._at[int(row)] for row in rows], np.int64)
        return Images(pixels, self.labels[rows], self.weights[rows], at)

    def _decoded(self) -> Pixels:
        if self._pixels is None:
            every = np.unique(np.concatenate([self.selection.learnt, self.selection.judged]))
            self._at = {int(row): place for place, row in enumerate(every)}
            self._pixels = mapped_pixels(
                [self.embedded.rows[row] for row in every], self.backbone.rule, self._path, threads=self.threads,
                limits=self.limits, progress=self.progress,
            )  # fmt: skip
        return self._pixels

    def _settled(self) -> Hardware:
        """What to train on; the first time, what trains is started as well."""
        if not self._started:
            self.progress(Step("starting the trainer", 0, 1))
            self._hardware = self._hardware.settled()
            self._workplace.trainer(self._hardware)
            self._started = True
            self.progress(Step("starting the trainer", 1, 1))
        return self._hardware


def _mean_curve(curves: list[tuple[CurvePoint, ...]]) -> tuple[CurvePoint, ...]:
    return tuple(
        CurvePoint(
            epoch=points[0].epoch,
            seconds=round(float(np.mean([point.seconds for point in points])), 3),
            accuracy=float(np.mean([point.accuracy for point in points])),
        )
        for points in zip(*curves, strict=True)
    )
