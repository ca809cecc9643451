"""The ladder: from a majority class to full fine-tuning, climbed while it pays.

The lower rungs cost next to nothing on cached features, so all of them are tried. What the rungs above could add is
predicted from how many images there are and what the probe still has wrong; they are tried if that is worth having and
fits into the budget. The one that is kept is the cheapest within one standard error of the most accurate one, by paired
differences in accuracy and in log loss (Breiman et al., 1984).
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from perennial.bundle import Ladder, Transfer
from perennial.images import ImageLimits
from perennial.progress import Progress, Step, silent
from training import backbones, deep, features, rungs, transfer_verdict
from training.align import aligned_to
from training.backbones import Backbone
from training.calibrate import fit_temperature
from training.datasets import LabelledImages, Row
from training.evidence import LEAST_GAIN, Evidence, expected_gain
from training.features import Embedded
from training.probe import Floats, Probe, log_loss
from training.resident import taken
from training.run_log import Log, unlogged
from training.rungs import FULL, KNN, LINEAR_PROBE, MAJORITY, NAMES, PARTIAL, SCRATCH, SIMPLE, Trial
from training.selection import Selection, evenly, select
from training.simple_features import in_place_of
from training.together import ANY, Hardware

AUTO: Final = "auto"
STRATEGIES: Final = (AUTO, *NAMES)
_LOWER: Final = (MAJORITY, SIMPLE, KNN)
_DEEP: Final = (PARTIAL, FULL, SCRATCH)
_ON_FEATURES: Final = (KNN, LINEAR_PROBE, PARTIAL, FULL)

_CONTROL_ROWS: Final = 500  # on so many the features of random weights are looked at
_CONTROL_SHARE: Final = 0.1  # of the budget, at most, for the control from scratch
_CONTROL_TIMES: Final = 3.0  # as long as what it is compared with has taken
_LEAST_CONTROL: Final = 25.0  # seconds
_PROJECTED: Final = 1000  # images that the embedding's axes are fitted on, where features must be computed anew
_PROJECTED_FROM_CACHE: Final = 20_000  # and where they are known


@dataclass(frozen=True, slots=True)
class Climb:
    """What to climb with. `seconds` is the budget, from now on; a named strategy is not bound by it. `embedding` is how
    long it took to compute the features, which whatever learns on them needs first."""

    strategy: str
    seconds: float
    seed: int
    threads: int
    limits: ImageLimits
    work: Path
    cache: Path
    embedding: float = 0.0
    progress: Progress = silent
    target: Floats | None = None  # features [M, D] of unlabelled images; the probe is fitted on aligned ones
    hardware: Hardware = ANY
    log: Log = unlogged


@dataclass(frozen=True, slots=True)
class Chosen:
    """The model that is kept. `features` [N, D] are the ones that the embedding's axes are fitted on, `judged` and
    `probabilities` [M, K] the selection's rows and what models that did not know them said, `learnt` the digests of the
    rows that took part in training."""

    backbone: Backbone
    head: Probe | nn.Module
    temperature: float
    strategy: str
    why: str
    ladder: Ladder
    features: Floats
    judged: tuple[Row, ...]
    probabilities: NDArray[np.float64]
    learnt: frozenset[str]


def choose(images: LabelledImages, embedded: Embedded, backbone: Backbone, climb: Climb) -> Chosen:
    """Climb the ladder, or fit the one rung that is asked for.

    Raises:
        InvalidParameter: this network cannot be fine-tuned as asked.
    """
    return _Ladder(images, embedded, backbone, climb).climb()


class _Ladder:
    """One climb: what is known, and what has been tried so far."""

    def __init__(self, images: LabelledImages, embedded: Embedded, backbone: Backbone, climb: Climb) -> None:
        self.began = time.perf_counter()
        self.images, self.embedded, self.backbone, self.how = images, embedded, backbone, climb
        index = {label: at for at, label in enumerate(images.classes)}
        self.labels = np.array([index[row.label] for row in embedded.rows], np.int64)
        self.weights = np.array([row.weight for row in embedded.rows], np.float64)
        self.classes = len(images.classes)
        self.selection: Selection = select(embedded.rows, self.labels.tolist(), images.groups, climb.seed)
        self.found = Evidence(
            climb.strategy == AUTO, climb.seconds, 0 if climb.target is None else len(climb.target), embedded, backbone,
            self.labels, self.classes, self.selection,
        )  # fmt: skip
        self.probes: dict[str, Probe] = {}
        self.deep: deep.Trainer | None = None

    def climb(self) -> Chosen:
        how, progress = self.how, self.how.progress
        auto = how.strategy == AUTO
        self._lower_rungs(
            [*_LOWER, LINEAR_PROBE] if auto else [how.strategy if how.strategy in _LOWER else LINEAR_PROBE]
        )
        with tempfile.TemporaryDirectory(dir=how.work, prefix="deep-") as folder:
            if auto or how.strategy in _DEEP:
                self.deep = deep.Trainer(
                    self.backbone, self.embedded, self.labels, self.weights, self.classes, self.selection, Path(folder),
                    how.cache / "training",
                    seed=how.seed, threads=how.threads, limits=how.limits, progress=progress,
                    folds=deep.FOLDS if auto else 1,  # one is enough to calibrate by
                    hardware=how.hardware, log=how.log,
                )  # fmt: skip
            if auto:
                self._climb_on()
            elif how.strategy in _DEEP:
                self._keep(self._deep().trial(how.strategy))
            transfer = self._transfer() if auto else None
            name = self._choice(transfer) if transfer else how.strategy
            kept = self._kept(name, transfer)
            if self.deep is not None:
                self.deep.forget()
            return kept

    def _lower_rungs(self, names: list[str]) -> None:
        """Those that learn on numbers which are there already."""
        for done, name in enumerate(names):
            self.how.progress(Step("trying the lower rungs", done, len(names)))
            if name == MAJORITY:
                self._keep(rungs.majority(self.labels, self.selection, self.classes))
            elif name == KNN:
                self._keep(rungs.nearest(self.embedded.features, self.labels, self.selection, self.classes))
            else:
                trial, self.probes[name] = (
                    self._probe(SIMPLE, self.embedded.simple) if name == SIMPLE else self._linear_probe()
                )
                self._keep(trial)
        self.how.progress(Step("trying the lower rungs", len(names), len(names)))

    def _linear_probe(self) -> tuple[Trial, Probe]:
        if self.how.target is None:
            return self._probe(LINEAR_PROBE, self.embedded.features)
        at = np.union1d(self.selection.learnt, self.selection.judged)
        values, root = aligned_to(self.embedded.features, at, self.how.target)
        trial, probe = rungs.probe(
            LINEAR_PROBE, values, self.labels, self.weights.tolist(), self.selection, self.classes, self.how.threads,
            root=False,
        )  # fmt: skip
        return trial, replace(probe, root=root)  # from now on it answers plain features

    # --- climbing ---

    def _climb_on(self) -> None:
        """Partial, then full fine-tuning, each if it is worth trying."""
        best = self.found.trials[LINEAR_PROBE]
        for name in (PARTIAL, FULL):
            gain = self.found.gains[name] = expected_gain(
                error=1.0 - transfer_verdict.share(best, self.labels).value, images=len(self.selection.learnt)
            )
            if gain < LEAST_GAIN:
                self.found.skipped[name] = (f"would add {gain:.1%} by prediction; {LEAST_GAIN:.1%} is the least", 0.0)
                continue
            seconds, left = self._deep().expected_seconds(name), self._left()
            if seconds > left and name == PARTIAL and self.selection.folds is None:
                self._deep().keep_what_was_tried()
                seconds = self._deep().expected_seconds(name)
            if seconds > left:
                self.found.skipped[name] = (
                    f"would take {seconds:,.0f} s, and {left:,.0f} s of the budget are left",
                    seconds,
                )
                continue
            self._keep(self._deep().trial(name))
            if not self.found.is_better(name, best.name):
                if name == PARTIAL:
                    self.found.skipped[FULL] = ("the rung below it did not pay", 0.0)
                return
            best = self.found.trials[name]

    def _transfer(self) -> Transfer:
        """The controls: random weights, frozen and trained."""
        alone_random = self._random_features()
        best = max(
            (self.found.trials[name] for name in (LINEAR_PROBE, PARTIAL, FULL) if name in self.found.trials),
            key=self.found.share,
        )
        taken = max(_LEAST_CONTROL, _CONTROL_TIMES * best.seconds)
        reserved = self._deep().final_seconds(best.name) if best.name in _DEEP else 0.0
        most = min(self._left() - reserved, _CONTROL_SHARE * self.how.seconds, taken)
        epochs = self._deep().control_epochs(most)
        if epochs:
            self._keep(self._deep().trial(SCRATCH, epochs=epochs))
        else:
            self.found.skipped[SCRATCH] = (
                f"not one epoch of it fits into the {max(0.0, most):,.0f} s that are left for a control",
                0.0,
            )
        return transfer_verdict.judge(
            transfer_verdict.Tried(
                best,
                self.found.trials[LINEAR_PROBE],
                alone_random,
                self.found.trials.get(SCRATCH),
                self.found.trials[SIMPLE],
            ),
            self.labels,
        )

    def _random_features(self) -> Trial | None:
        """A probe on the same network's frozen features with random weights, on a sample of the rows."""
        how = self.how
        self.how.progress(Step("the control with random weights", 0, 1))
        selection = self.selection
        if selection.folds is None:
            share = len(selection.learnt) / (len(selection.learnt) + len(selection.judged))
            learnt = evenly(selection.learnt, int(_CONTROL_ROWS * share))
            judged = evenly(selection.judged, _CONTROL_ROWS - len(learnt))
            at = np.concatenate([learnt, judged])
            part = Selection(np.arange(len(learnt)), np.arange(len(learnt), len(at)), None, "")
        else:
            at = selection.learnt
            part = Selection(np.arange(len(at)), np.arange(len(at))[selection.folds >= 0], selection.folds, "")
        if len(np.unique(self.labels[at[part.learnt]])) < self.classes:
            return None
        network = backbones.load(self.backbone.name, "none", image_size=self.backbone.rule.crop, seed=how.seed)
        network = replace(network, rule=self.backbone.rule, mean=self.backbone.mean, std=self.backbone.std)
        random = features.embed(
            [self.embedded.rows[index] for index in at], network, how.cache, threads=how.threads, limits=how.limits
        )
        trial, _ = rungs.probe(
            "random", random.features, self.labels[at], self.weights[at].tolist(), part, self.classes, how.threads
        )
        self.how.progress(Step("the control with random weights", 1, 1))
        return replace(trial, rows=at[trial.rows])

    # --- choosing ---

    def _choice(self, transfer: Transfer) -> str:
        """The cheapest rung that is as good as the best. No network at all only where that was found to suffice."""
        name = self._network()
        return SIMPLE if transfer.simple_suffices and not self.found.is_clearly_worse(SIMPLE, name) else name

    def _network(self) -> str:
        """The cheapest rung that is as good as the best, among those that predict by the network."""
        served = [name for name in (LINEAR_PROBE, PARTIAL, FULL, SCRATCH) if name in self.found.trials]
        best = max(served, key=lambda name: self.found.share(self.found.trials[name]))
        # Tried for fewer epochs, on fewer images, than what is kept: to be ahead in both like that is enough.
        short = best in _DEEP and self._deep().is_tried_short(best)

        def worse(name: str) -> bool:
            return self.found.is_clearly_worse(name, best) or (short and self.found.is_behind(name, best))

        return next(name for name in served if name == best or not worse(name))

    def _kept(self, name: str, transfer: Transfer | None) -> Chosen:
        trial = self.found.trials[name]
        learnt = self._deep().final_rows if name in _DEEP else self.selection.learnt
        backbone, head, found = self._model(name)
        truth = self.labels[trial.rows]
        temperature = fit_temperature(trial.logits, truth.tolist())
        scaled = trial.logits / temperature
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return Chosen(
            backbone=backbone,
            head=head,
            temperature=temperature,
            strategy=name,
            why=self.found.why(name, len(learnt)),
            ladder=self.found.ladder(name, transfer),
            features=found,
            judged=tuple(self.embedded.rows[at] for at in trial.rows),
            probabilities=powers / powers.sum(axis=1, keepdims=True),
            learnt=frozenset(self.embedded.rows[at].digest for at in learnt),
        )

    def _model(self, name: str) -> tuple[Backbone, Probe | nn.Module, Floats]:
        """A rung's network and head, and the features [N, D] that the embedding's axes are fitted on."""
        if name in _DEEP:
            backbone, head = self._deep().final(name)
            return backbone, head, self._deep().features(backbone, evenly(self.selection.learnt, _PROJECTED))
        some = evenly(self.selection.learnt, _PROJECTED_FROM_CACHE)
        if name == SIMPLE:
            return in_place_of(self.backbone), self.probes[SIMPLE], taken(self.embedded.simple, some)
        features = self.embedded.features
        if name == KNN:
            found: Probe | nn.Module = rungs.neighbours_head(features, self.labels, self.selection, self.classes)
        elif name == MAJORITY:
            found = rungs.majority_head(self.found.trials[MAJORITY], self.backbone.width)
        else:
            found = self.probes[LINEAR_PROBE]
        return self.backbone, found, taken(features, some)

    # --- small things ---

    def _keep(self, trial: Trial) -> None:
        truth = self.labels[trial.rows]
        found = {"rung_accuracy": self.found.share(trial), "rung_log_loss": log_loss(trial.logits, truth)}
        self.how.log(trial.name, found | {"rung_seconds": trial.seconds}, trial.epochs)
        before = self.how.embedding if trial.name in _ON_FEATURES else 0.0
        self.found.trials[trial.name] = replace(
            trial, seconds=trial.seconds + before, curve=transfer_verdict.later(trial.curve, before)
        )

    def _probe(self, name: str, values: Floats) -> tuple[Trial, Probe]:
        return rungs.probe(
            name, values, self.labels, self.weights.tolist(), self.selection, self.classes, self.how.threads
        )

    def _left(self) -> float:
        return self.how.seconds - (time.perf_counter() - self.began)

    def _deep(self) -> deep.Trainer:
        assert self.deep is not None
        return self.deep
