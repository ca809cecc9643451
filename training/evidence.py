"""What a climb of the ladder has found, and how it is written down."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from perennial.bundle import Ladder, Rung, Signals, Transfer
from training import price, transfer_verdict
from training.backbone_ranking import adjusted_h_score
from training.backbones import Backbone
from training.calibrate import fit_temperature
from training.features import Embedded
from training.paired import difference
from training.probe import log_loss, row_losses
from training.resident import taken
from training.rungs import KNN, LINEAR_PROBE, MAJORITY, NAMES, SCRATCH, SIMPLE, Trial
from training.selection import Selection, evenly

#: What a rung must be expected to add before it is tried.
LEAST_GAIN: Final = 0.005
#: Of a probe's error; where no more is wrong, fine-tuned networks had up to three points less right.
_NEVER_LEARNT: Final = 0.05
#: Of the rest of the error, what fine-tuning took away with 70 images, what ten times as many add, and the most.
_SHARE_OF_70, _TENFOLD, _MOST_SHARE = 0.25, 0.5, 0.8


@dataclass(frozen=True, slots=True)
class Evidence:
    """Each rung is in `trials` or in `skipped`, with the reason and the seconds it would have taken; `gains` are those
    that were expected of it. `target` counts the images that the probe is aligned to; `auto` is false where one rung
    was asked for."""

    auto: bool
    budget: float
    target: int
    embedded: Embedded
    backbone: Backbone
    labels: NDArray[np.int64]
    classes: int
    selection: Selection
    trials: dict[str, Trial] = field(default_factory=dict)
    skipped: dict[str, tuple[str, float]] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=dict)

    def share(self, trial: Trial) -> float:
        """Of the rows it answered, how many it had right."""
        return float(trial.right(self.labels).mean())

    def is_better(self, name: str, than: str) -> bool:
        """Has it more right of the rows that both have answered?"""
        mine, theirs = transfer_verdict.shared_rows(self.trials[name], self.trials[than], self.labels)
        return bool(mine.mean() > theirs.mean())

    def is_behind(self, name: str, than: str) -> bool:
        """Is the other ahead both in accuracy and in calibrated log loss, by however little?"""
        accuracies, losses = self._behind_by(name, than)
        return bool(accuracies.mean() > 0.0 and losses.mean() > 0.0)

    def is_clearly_worse(self, name: str, than: str) -> bool:
        """Is the other ahead, in accuracy or in calibrated log loss, by more than a standard error of the paired
        difference? Log loss tells more of the same images: how nearly every answer was another."""
        return any(
            float(behind.mean()) > float(behind.std()) / math.sqrt(len(behind))
            for behind in self._behind_by(name, than)
        )

    def _behind_by(self, name: str, than: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """In accuracy and in log loss, row by row; positive where the other is ahead."""
        mine, theirs = transfer_verdict.shared_rows(self.trials[name], self.trials[than], self.labels)
        losses, others = self._losses(name, than)
        return theirs.astype(np.float64) - mine, losses - others

    def _losses(self, one: str, other: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Each one's on the rows that both have answered."""
        _, first, second = np.intersect1d(self.trials[one].rows, self.trials[other].rows, return_indices=True)
        calibrated = []
        for name in (one, other):
            trial = self.trials[name]
            truth = self.labels[trial.rows].tolist()
            calibrated.append(row_losses(trial.logits, truth, fit_temperature(trial.logits, truth)))
        return calibrated[0][first], calibrated[1][second]

    def why(self, name: str, learnt: int) -> str:
        """Why this rung, in one sentence; `learnt` is how many images what is kept has learnt from."""
        trial = self.trials[name]
        share = transfer_verdict.share(trial, self.labels)
        how = "auto chose it" if self.auto else "asked for"
        whole = len(trial.rows) == len(self.selection.judged)
        parts = [
            f"{how}: {len(self.selection.learnt):,} training images of {self.classes} classes; right on "
            f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%}) by {self.selection.says}"
            + ("" if whole else f", of which it was tried on {len(trial.rows):,}")
        ]
        if learnt > len(self.selection.learnt):
            parts.append(f"what is kept has learnt from the validation images as well, {learnt:,} in all")
        if self.target:
            parts.append(
                f"features aligned to {self.target:,} unlabelled target images; right is said of aligned "
                "ones, and how often it is on the target nobody knows without labels"
            )
        if self.auto:
            others = [
                f"{other} {transfer_verdict.share(self.trials[other], self.labels).value:.1%}"
                for other in NAMES
                if other in self.trials and other != name
            ]
            parts.append("against " + ", ".join(others))
            parts += [f"{other} not tried: {why}" for other, (why, _) in self.skipped.items() if other != SCRATCH]
        return "; ".join(parts)

    def ladder(self, name: str, transfer: Transfer | None) -> Ladder:
        """All of it, as the manifest holds it."""
        best = max((trial for trial in self.trials.values()), key=self.share)
        return Ladder(
            chosen=name,
            selection=self.selection.says,
            budget=self.budget,
            rungs=tuple(self._rung(each, best) for each in NAMES if each in self.trials or each in self.skipped),
            signals=self._signals() if self.auto else None,
            transfer=transfer,
        )

    def _rung(self, name: str, best: Trial) -> Rung:
        cost = self._price(name)
        if name not in self.trials:
            why, seconds = self.skipped[name]
            return Rung(
                name=name, tried=False, why=why, seconds=round(seconds, 2), parameters=cost.parameters,
                multiply_adds=cost.multiply_adds,
            )  # fmt: skip
        trial = self.trials[name]
        mine, theirs = transfer_verdict.shared_rows(trial, best, self.labels)
        return Rung(
            name=name,
            tried=True,
            accuracy=transfer_verdict.share(trial, self.labels),
            log_loss=log_loss(trial.logits, self.labels[trial.rows]),
            difference=difference(theirs, mine),
            seconds=round(trial.seconds, 3),
            epochs=trial.epochs,
            parameters=cost.parameters,
            multiply_adds=cost.multiply_adds,
            curve=trial.curve,
        )

    def _price(self, name: str) -> price.Price:
        if name == MAJORITY:
            return price.Price(self.classes, 0)
        if name == SIMPLE:
            return price.of_linear(self.embedded.simple.shape[1], self.classes)
        whole = price.of_network(self.backbone, self.classes)
        if name == KNN:
            return price.plus_neighbours(whole, len(self.selection.learnt), self.backbone.width, self.classes)
        return whole

    def _signals(self) -> Signals:
        simple = 1.0 - self.share(self.trials[SIMPLE])
        probe = 1.0 - self.share(self.trials[LINEAR_PROBE])
        learnt = self.selection.learnt
        some = evenly(learnt, 2000)
        return Signals(
            images=len(learnt),
            classes=self.classes,
            fewest_in_a_class=int(np.bincount(self.labels[learnt], minlength=self.classes).min()),
            similarity=1.0 - probe / simple if simple > 0 else 0.0,
            h_score=adjusted_h_score(taken(self.embedded.features, some), self.labels[some].tolist()),
            expected_gain={name: round(gain, 4) for name, gain in self.gains.items()},
        )


def expected_gain(error: float, images: int) -> float:
    """What fine-tuning is likely to add to the probe's accuracy.

    It takes away a share of the error that grows with the number of images, but none of its last five points. Both
    were fitted to nine tasks of `make bench-training` (docs/training.md): of sketches, a probe's error of .30 became
    .24 with 70 images, .20 became .09 with 700, and .12 became .07 of 1,300 photos and sketches; of ants and bees,
    photos and steel, of which a probe has .01 to .05 wrong, -.026 to +.004 was gained.
    """
    share = _SHARE_OF_70 + _TENFOLD * math.log10(max(1, images) / 70)
    return max(0.0, error - _NEVER_LEARNT) * min(_MOST_SHARE, max(0.0, share))
