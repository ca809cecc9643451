"""The lower rungs of the ladder, which learn on numbers that are cached: a majority class, a simple baseline, nearest
neighbours, the linear probe."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from perennial.bundle import CurvePoint
from training.neighbours import KNOWN, NeighbourVotes, neighbour_logits
from training.probe import Floats, Probe, cross_validated_probe, linear_probe
from training.resident import taken
from training.selection import Indexes, Selection, evenly

MAJORITY: Final = "majority"
SIMPLE: Final = "simple"
KNN: Final = "knn"
LINEAR_PROBE: Final = "linear_probe"
PARTIAL: Final = "partial"
FULL: Final = "full"
SCRATCH: Final = "scratch"
_ASKED: Final = 5000  # rows that nearest neighbours are asked about

#: From the cheapest to the dearest.
NAMES: Final = (MAJORITY, SIMPLE, KNN, LINEAR_PROBE, PARTIAL, FULL, SCRATCH)


@dataclass(frozen=True, slots=True)
class Trial:
    """What one rung said about rows it was not fitted on: `logits` [M, K] of `rows` [M]. `seconds` of fitting."""

    name: str
    rows: Indexes
    logits: NDArray[np.float64]
    seconds: float
    epochs: int = 0
    curve: tuple[CurvePoint, ...] = ()

    def right(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[M]; `labels` are of all rows."""
        return np.asarray(self.logits.argmax(axis=1) == labels[self.rows])


def majority(labels: NDArray[np.int64], selection: Selection, classes: int) -> Trial:
    """Always the commonest class, with the shares of the classes as probabilities."""
    shares = np.bincount(labels[selection.learnt], minlength=classes) + 1.0
    logits = np.log(shares / shares.sum())
    return Trial(MAJORITY, selection.judged, np.tile(logits, (len(selection.judged), 1)), 0.0)


def majority_head(trial: Trial, width: int) -> Probe:
    """The same as a head on features [N, `width`], none of which it looks at."""
    logits = trial.logits[0].astype(np.float32)
    return Probe(np.zeros((len(logits), width), np.float32), logits, 0.0, {}, 0.0)


def nearest(features: Floats, labels: NDArray[np.int64], selection: Selection, classes: int) -> Trial:
    """Nearest neighbours, asked about 5,000 rows at most: all of 15,000 would take a minute to say the same within a
    point."""
    began = time.perf_counter()
    rows, logits = [], []
    for fitted, judged in selection.parts():
        fitted, some = evenly(fitted, KNOWN), evenly(judged, _ASKED)
        rows.append(some)
        logits.append(neighbour_logits(features, labels[fitted].tolist(), taken(features, some), classes, at=fitted))
    return Trial(KNN, np.concatenate(rows), np.concatenate(logits), time.perf_counter() - began)


def neighbours_head(features: Floats, labels: NDArray[np.int64], selection: Selection, classes: int) -> NeighbourVotes:
    """The same with every row that may be learnt from."""
    at = evenly(selection.learnt, KNOWN)
    return NeighbourVotes(taken(features, at), labels[at].tolist(), classes)


def probe(
    name: str,
    features: Floats,
    labels: NDArray[np.int64],
    weights: Sequence[float],
    selection: Selection,
    classes: int,
    threads: int,
    root: bool | None = None,
) -> tuple[Trial, Probe]:
    """A linear probe and what it, or those of its folds, said."""
    began = time.perf_counter()
    learnt = selection.learnt
    counts = np.asarray(weights)[learnt]
    if selection.folds is None:
        judged = taken(features, selection.judged)
        truth = labels[selection.judged].tolist()
        known = taken(features, learnt)
        fitted = linear_probe(
            known, labels[learnt].tolist(), counts.tolist(), judged, truth, classes, root=root, overwrite=True
        )
        return Trial(name, selection.judged, fitted.logits(judged), time.perf_counter() - began), fitted
    found = cross_validated_probe(
        taken(features, learnt), labels[learnt].tolist(), counts.tolist(), selection.folds, classes,
        threads=threads, root=root,
    )  # fmt: skip
    answered = selection.folds >= 0
    return Trial(name, learnt[answered], found.logits[answered], time.perf_counter() - began), found.probe
