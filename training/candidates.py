"""Which rows a challenger should learn from, and how much each should count: ways that differ, compared by a probe.

On the frozen features a linear probe takes seconds, so each way is tried before one is trained in full. They are
compared on fresh captures that the probe was not fitted on, by cross-validation; the gate's slice is not touched.

A dozen probes are fitted for it, and what matters is which way is better, not how good a probe can be: they see the
features in their first 128 principal components: an eighth of the time, on 1,970 images
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from perennial.bundle import Estimate
from perennial.progress import Progress, Step, silent
from training.datasets import LabelledImages, Row
from training.evaluate import accuracy_interval
from training.paired import difference
from training.probe import Floats, fixed_probe, linear_probe, never_negative, split_into_folds
from training.resident import blocks
from training.selection import evenly

Weights = NDArray[np.float64]

_FOLDS: Final = 3
#: Fewer fresh rows than this to train on say too little about which way is better.
_LEAST_FRESH: Final = 30
#: A row's importance is at most so many times the mean, or a few rows would decide.
_MOST_IMPORTANT: Final = 10.0
_COMPONENTS: Final = 128
_ROWS: Final = 2_000  # that the components are found on
_PENALTY: Final = 1e-2  # of the domain classifier: strong, as its odds are used and not its answers

RECENT_WEIGHTED: Final = "recent_weighted"
ALL: Final = "all"
IMPORTANCE: Final = "importance"
RECENT_ONLY: Final = "recent_only"
#: Name -> what it is, the simplest first: of ways that cannot be told apart the first is taken.
NAMES: Final[Mapping[str, str]] = {
    RECENT_WEIGHTED: "fresh captures together weigh as much as all other rows",
    ALL: "every row weighs the same",
    IMPORTANCE: "original rows weigh more the more they look like fresh captures (covariate shift; Shimodaira, 2000)",
    RECENT_ONLY: "captures alone, without the original rows",
}


@dataclass(frozen=True, slots=True)
class Tried:
    """One way to weigh rows. `fresh`: the probe's accuracy on fresh captures held out from it; `old`: on the original
    validation rows (None without any)."""

    name: str
    fresh: Estimate
    old: Estimate | None


@dataclass(frozen=True, slots=True)
class Choice:
    """The way that was taken, and every one that was tried (none, where there was nothing to compare)."""

    name: str
    why: str
    tried: tuple[Tried, ...] = ()

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "why": self.why,
            "tried": [
                {
                    "name": one.name,
                    "what": NAMES[one.name],
                    "fresh": one.fresh.model_dump(),
                    "old": one.old.model_dump() if one.old is not None else None,
                }
                for one in self.tried
            ],
        }


def choose(
    images: LabelledImages,
    rows: Sequence[Row],
    features: Floats,
    names: Sequence[str],
    *,
    margin: float,
    group: Callable[[str], str] = str,
    progress: Progress = silent,
) -> tuple[LabelledImages, Choice]:
    """Compare the ways to weigh the training rows, and weigh them the best way.

    The best is the one with the highest accuracy on fresh captures among those that lose no more than `margin` on the
    original validation rows; one that comes first in `NAMES` and whose difference could be chance is taken instead.

    Args:
        rows: those of `images` whose features [N, D] are known, in their order: training and validation rows.
        names: of `NAMES`; `recent_weighted`, as the rows come, is always among them.
        group: an image's digest -> its group of near-duplicates, which are held out together.
    """
    tries = [name for name in NAMES if name in {RECENT_WEIGHTED, *names}]
    missing = _missing(images.classes, rows, tries)
    if missing:
        return images, Choice(RECENT_WEIGHTED, missing)
    trial = _Trial(images.classes, rows, features, group)
    answers: dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]] = {}
    weights: dict[str, Weights] = {}
    for number, name in enumerate(tries):
        progress(Step("comparing what to learn from", number, len(tries)))
        weights[name] = trial.weights(name)
        found = trial.answers(weights[name])
        if found is not None:
            answers[name] = found
    progress(Step("comparing what to learn from", len(tries), len(tries)))
    tried = tuple(
        Tried(name, _share(on_fresh), _share(on_old) if len(on_old) else None)
        for name, (on_fresh, on_old) in answers.items()
    )
    if not tried:
        return images, Choice(RECENT_WEIGHTED, "there are too few rows of some class to compare others by")
    name, why = _best(tried, answers, margin)
    return _weighed(images, rows, weights[name]), Choice(name, why, tried)


def importance(features: Floats, original: NDArray[np.bool_], fresh: NDArray[np.bool_]) -> Weights:
    """p(fresh | image) / p(original | image) of each original row, in [N]; 1 elsewhere. By a classifier of features
    [N, D] that was fitted on the other folds; their mean is 1, and none is above `_MOST_IMPORTANT`."""
    either = np.flatnonzero(original | fresh)
    truth = fresh[either].astype(int)
    folds = np.random.default_rng(0).permutation(len(either)) % _FOLDS
    balance = np.where(truth == 1, (truth == 0).sum() / max(1, truth.sum()), 1.0)
    odds = np.ones(len(features))
    for fold in range(_FOLDS):
        kept = folds != fold
        probe = fixed_probe(
            features[either[kept]], truth[kept].tolist(), balance[kept].tolist(), 2, _PENALTY, root=False
        )
        logits = probe.logits(features[either[~kept]])
        odds[either[~kept]] = np.exp(np.clip(logits[:, 1] - logits[:, 0], -10, 10))
    mean = float(odds[original].mean()) or 1.0
    return np.asarray(np.where(original, np.minimum(odds / mean, _MOST_IMPORTANT), 1.0))


def _missing(classes: Sequence[str], rows: Sequence[Row], tries: Sequence[str]) -> str:
    """Why nothing can be compared; empty if it can."""
    if len(tries) == 1:
        return "no other was asked for"
    fresh = sum(_is_fresh(row) for row in rows)
    if fresh < _LEAST_FRESH:
        return f"{fresh} fresh captures to train on are too few to compare others by; {_LEAST_FRESH} would do"
    if len({row.label for row in rows if row.split == "train"}) < len(classes):
        return "a class has no image left that can be decoded"
    return "" if any(row.split == "validation" for row in rows) else "there are no validation rows"


def _best(
    tried: Sequence[Tried], answers: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]], margin: float
) -> tuple[str, str]:
    most = max((one.old.value for one in tried if one.old is not None), default=0.0)
    kept = [one for one in tried if one.old is None or one.old.value >= most - margin - 1e-9]
    best = max(kept, key=lambda one: one.fresh.value)
    numbers = f"{best.fresh.value:.1%} on {len(answers[best.name][0])} fresh captures"
    for one in kept:
        if one is best:
            return best.name, f"{NAMES[best.name]}: {numbers}, more than any other"
        # Bonett and Price's interval of the paired difference, as in the gate.
        if difference(answers[one.name][0], answers[best.name][0]).low <= 0:
            why = f"{NAMES[one.name]}: {one.fresh.value:.1%} on fresh captures"
            return one.name, f"{why}, from which {best.name} ({best.fresh.value:.1%}) differs by no more than chance"
    raise AssertionError("the best is among those that were kept")


class _Trial:
    """Rows and features, set up once for every way to weigh them."""

    def __init__(
        self, classes: Sequence[str], rows: Sequence[Row], features: Floats, group: Callable[[str], str]
    ) -> None:
        index = {name: at for at, name in enumerate(classes)}
        self._classes = len(classes)
        self._rows, self._features = rows, _condensed(features)
        self._labels = np.array([index[row.label] for row in rows])
        self._learnt = np.array([row.split == "train" for row in rows])
        self._fresh = np.array([_is_fresh(row) for row in rows])
        self._old = np.array([row.split == "validation" and row.origin == "original" for row in rows])
        self._validation = np.array([row.split == "validation" for row in rows])
        at = np.flatnonzero(self._fresh)
        self._folds = np.full(len(rows), -1)
        self._folds[at] = split_into_folds(
            self._labels[at].tolist(), [group(rows[place].digest) for place in at.tolist()], _FOLDS
        )
        learnt = self._learnt
        given = np.array([row.weight for row in rows])
        # One penalty for all: looking for it is most of a probe's time, and it is a prior, not a matter of weights.
        found = linear_probe(
            self._features[learnt], self._labels[learnt].tolist(), given[learnt].tolist(),
            self._features[self._validation], self._labels[self._validation].tolist(), self._classes, root=False,
        )  # fmt: skip
        self._penalty, self._given = found.penalty, given

    def weights(self, name: str) -> Weights:
        """[N], 0 for rows that are left out."""
        ones = np.ones(len(self._rows))
        original = np.array([row.origin == "original" for row in self._rows])
        if name == ALL:
            return ones
        if name == RECENT_ONLY:
            return np.where(original & self._learnt, 0.0, 1.0)
        if name == IMPORTANCE:
            odds = importance(self._features, original & self._learnt, self._fresh)
            return np.where(original & self._learnt, odds, self._given)
        return self._given

    def answers(self, weights: Weights) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
        """Which fresh rows are answered rightly by a probe that did not see them, and which of the original validation
        rows; None where a class would have nothing left to learn from."""
        used = self._learnt & (weights > 0)
        right = np.zeros(len(self._rows), dtype=bool)
        for fold in range(_FOLDS):
            held_out = self._folds == fold
            logits = self._fitted(used & ~held_out, weights, held_out)
            if logits is None:
                return None
            right[held_out] = logits.argmax(axis=1) == self._labels[held_out]
        judged = self._folds >= 0
        old = self._fitted(used, weights, self._old) if self._old.any() else np.empty((0, self._classes))
        if old is None:
            return None
        return right[judged], np.asarray(old.argmax(axis=1) == self._labels[self._old])

    def _fitted(
        self, used: NDArray[np.bool_], weights: Weights, asked: NDArray[np.bool_]
    ) -> NDArray[np.float64] | None:
        if len(np.unique(self._labels[used])) < self._classes:
            return None
        probe = fixed_probe(
            self._features[used], self._labels[used].tolist(), weights[used].tolist(), self._classes, self._penalty,
            root=False,
        )  # fmt: skip
        return probe.logits(self._features[asked])


def _condensed(features: Floats) -> Floats:
    """What a probe sees of features [N, D] (`training.probe`), in [N, at most 128]: their first principal components,
    found on some of the rows."""

    def seen(rows: Floats) -> Floats:
        return np.sqrt(np.maximum(rows, 0.0)) if root else rows

    root = never_negative(features)
    count, width = features.shape
    some = evenly(np.arange(count), _ROWS)
    size = min(_COMPONENTS, width, len(some))
    if size == width:
        return seen(features)
    components = PCA(size, random_state=0).fit(seen(features[some]))
    found = np.empty((count, size), np.float32)
    for place, rows in blocks(features):
        found[place : place + len(rows)] = components.transform(seen(rows))
    return found


def _is_fresh(row: Row) -> bool:
    """A capture of the window that called for the retrain: these alone of all captures go into the reference."""
    return row.origin == "capture" and row.reference and row.split == "train"


def _weighed(images: LabelledImages, rows: Sequence[Row], weights: Weights) -> LabelledImages:
    """The same images, the training rows weighed so; those of weight 0 are not among them."""
    by_digest = {row.digest: float(weight) for row, weight in zip(rows, weights, strict=True)}
    weighed = [
        replace(row, weight=by_digest.get(row.digest, row.weight)) if row.split == "train" else row
        for row in images.rows
    ]
    return replace(images, rows=tuple(row for row in weighed if row.weight > 0))


def _share(right: NDArray[np.bool_]) -> Estimate:
    return accuracy_interval(int(right.sum()), len(right))
