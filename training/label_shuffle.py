"""Controls for an accuracy that is too good: shuffled labels must not be predictable, and 100 % must be earned."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, stats
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from perennial.bundle import Estimate, Finding
from training.resident import taken

Floats = NDArray[np.float32]

#: Level at which shuffled labels count as predicted, and by how much at least.
ALPHA: Final = 1e-3
LEAST_EXCESS: Final = 0.02
_TRAIN_ROWS: Final = 1_500  # of larger data a sample
_HELD_OUT_ROWS: Final = 1_500
_REPEATS: Final = (10, 40)
_TARGETS: Final = 400  # columns that are solved for at once
_RIDGE: Final = 1e-2  # of the mean eigenvalue: weak, so that the probe remembers what it was shown

#: An accuracy whose interval starts above this is looked at twice.
PERFECT: Final = 0.99
_FEW_ERRORS: Final = 100  # test rows below which a perfect score is mostly a lack of evidence


@dataclass(frozen=True, slots=True)
class Shuffled:
    """`accuracy`: the mean share of held-out rows on which a probe was right that was trained on shuffled labels;
    `chance`: what it would be if held-out rows could not be told apart by the training rows. `p_value` is one-sided,
    over `repeats` shuffles."""

    accuracy: float
    chance: float
    p_value: float
    repeats: int
    rows: int

    @property
    def above_chance(self) -> bool:
        return self.p_value < ALPHA and self.accuracy - self.chance > LEAST_EXCESS


def label_shuffle_control(
    features: Floats,
    labels: Sequence[int],
    held_out: Sequence[bool],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Shuffled | None:
    """Train a probe on labels that were drawn by lot, and see whether it is right on held-out rows.

    Each group gets one lot, for its training and its held-out rows alike. What that shows depends on the groups:

    - each image a group of its own (`groups` None): nothing connects the lots of training and held-out rows, so an
      excess over chance is a fault of the evaluation itself, such as rows that are on both sides.
    - images of one origin a group (look-alikes, frames of one film, one patient): an excess says that groups lie on
      both sides and that the features recognise them. An accuracy on true labels then holds memory as well.

    The probe is ridge regression on one-hot labels in its dual form: one factorisation serves all shuffles.
    (Ojala and Garriga, 2010, Permutation tests for studying classifier performance; Zhang et al., 2017, Understanding
    deep learning requires rethinking generalization.)

    Args:
        features: [N, D].
        labels: [N], from 0. The lots are drawn in their proportions.
        held_out: [N], the rows that are judged on.

    Returns:
        None where there are fewer than 10 rows on a side or one class.
    """
    random = np.random.default_rng([seed, 4])  # a stream of its own, should features come from the same seed
    y, judged = np.asarray(labels), np.asarray(held_out, dtype=bool)
    train = _sample(np.flatnonzero(~judged), _TRAIN_ROWS, random)
    test = _sample(np.flatnonzero(judged), _HELD_OUT_ROWS, random)
    shares = np.bincount(y) / len(y)
    if min(len(train), len(test)) < 10 or np.count_nonzero(shares) < 2:
        return None
    rows = np.concatenate([train, test])
    if groups is None:
        group, count = np.arange(len(rows)), len(rows)
    else:
        numbers: dict[Hashable, int] = {}
        group = np.array([numbers.setdefault(groups[at], len(numbers)) for at in rows])
        count = len(numbers)
    repeats = int(np.clip(_TARGETS // len(shares), *_REPEATS))
    lots = random.choice(len(shares), size=(repeats, count), p=shares)[:, group]
    with threadpool_limits(1):  # on cores that do other work, threads in so small products wait for each other
        predicted = _predictions(taken(features, train), taken(features, test), lots[:, : len(train)], len(shares))
    accuracy = (predicted == lots[:, len(train) :]).mean(axis=1)
    # Of independent lots, a prediction of class k is right with the share of k.
    chance = shares[predicted].mean(axis=1)
    excess = accuracy - chance
    p_value = float(stats.ttest_1samp(excess, 0.0, alternative="greater").pvalue) if excess.std() > 0 else 1.0
    return Shuffled(float(accuracy.mean()), float(chance.mean()), p_value, repeats, len(test))


def shuffle_findings(control: Shuffled | None) -> tuple[Finding, ...]:
    """A finding where shuffled labels were predicted better than by chance."""
    if control is None or not control.above_chance:
        return ()
    excess = (control.accuracy - control.chance) / (1 - control.chance)
    message = (
        f"a probe trained on shuffled labels is right on {control.accuracy:.1%} of the held-out images, where chance "
        f"is {control.chance:.1%}: at least {excess:.0%} of them are recognised from training images instead of judged "
        "by what they show, so the accuracy on true labels is too good as well. Put images of one origin on one side "
        "of the split"
    )
    return (Finding(kind="shuffled_labels_predicted", message=message),)


def suspiciously_good(accuracy: Estimate, rows: int, baseline: Estimate | None = None) -> tuple[Finding, ...]:
    """A finding where a test accuracy is so high that another explanation than a good model should be looked for.

    Args:
        accuracy: on `rows` test rows, with its 95 % interval.
        baseline: of a simple model on the same rows, such as colour histograms.
    """
    perfect = accuracy.value >= 1.0
    if not perfect and accuracy.low <= PERFECT:
        return ()
    reasons = []
    if perfect and rows < _FEW_ERRORS:
        reasons.append(
            f"on {rows} test images a model that is wrong once in {max(2, round(rows / 3))} is right on all of them "
            "one time in twenty: hold out more"
        )
    if baseline is not None and baseline.high >= accuracy.value:
        reasons.append(
            f"a simple model on colours and coarse pixels gets {baseline.value:.1%}: the task may be easy, or "
            "something beside the subject gives the class away (background, border, lighting, camera)"
        )
    if not reasons and not perfect:
        return ()
    reasons = reasons or [
        "look whether something beside the subject gives the class away, and whether test images are really new"
    ]
    message = f"the test accuracy is {accuracy.value:.1%} on {rows:,} images: "
    return (Finding(kind="suspiciously_good", message=message + "; ".join(reasons)),)


def _sample(rows: NDArray[Any], most: int, random: np.random.Generator) -> NDArray[Any]:
    return rows if len(rows) <= most else np.sort(random.choice(rows, most, replace=False))


def _predictions(train: Floats, test: Floats, lots: NDArray[Any], classes: int) -> NDArray[Any]:
    """Classes [R, T] that probes trained on each row of `lots` [R, N] give the test rows."""
    centre, spread = train.mean(axis=0), train.std(axis=0)
    spread = np.where(spread < 1e-6 * max(1.0, float(spread.max())), np.inf, spread)
    X, Z = (train - centre) / spread, (test - centre) / spread
    kernel = (X @ X.T).astype(np.float64)
    kernel[np.diag_indices_from(kernel)] += _RIDGE * float(np.trace(kernel)) / len(kernel) + 1e-9
    targets = (lots[:, :, None] == np.arange(classes)).transpose(1, 0, 2).reshape(len(train), -1).astype(np.float64)
    means = targets.mean(axis=0)
    solved = linalg.cho_solve(linalg.cho_factor(kernel, lower=True), targets - means)
    scores = (Z @ X.T).astype(np.float64) @ solved + means
    return np.asarray(scores.reshape(len(test), len(lots), classes).argmax(axis=2).T)
