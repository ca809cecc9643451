"""What a check found, by property and by class: from what to what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monitoring.attribution import describe
from monitoring.detectors import Column, Family
from monitoring.window import Answers, Reference, Scores, Window
from perennial import effects

#: Of a distribution these quantiles are shown: the middle, and what nine of ten values lie between.
QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True, slots=True)
class PropertyChange:
    """An image property in the reference and in the window, each as its 5, 50 and 95 % quantiles. `says` is the shift
    in words; it is empty where the test raised no alarm."""

    name: str
    before: tuple[float, float, float]
    now: tuple[float, float, float]
    shift: float
    effect: float
    p_value: float
    says: str


@dataclass(frozen=True, slots=True)
class Recall:
    """Of `labelled` images of a class, `right` were answered with it."""

    right: int
    labelled: int


@dataclass(frozen=True, slots=True)
class ClassChange:
    """A class in the reference's held-out rows and in the window: the share of answers that it is, how sure they are in
    the mean, and the recall; None where there is nothing to count."""

    name: str
    share_before: float
    share_now: float
    confidence_before: float | None
    confidence_now: float | None
    recall_before: Recall | None
    recall_now: Recall | None


def property_changes(reference: Reference, window: Scores, family: Family | None) -> tuple[PropertyChange, ...]:
    """The properties that could be tested: those that raised the alarm first, then by effect."""
    if family is None:
        return ()
    tested = sorted(
        (column for column in family.columns if column.problem is None), key=lambda each: (not each.alarm, -each.effect)
    )
    return tuple(_property_change(reference, window, column) for column in tested)


def _property_change(reference: Reference, window: Scores, column: Column) -> PropertyChange:
    name = column.name.removeprefix("property:")
    index = reference.properties.index(name)
    before, now = (_quantiles(scores.properties[:, index]) for scores in (reference.scores, window))
    says = describe(column) if column.alarm else ""
    return PropertyChange(name, before, now, column.shift, column.effect, column.p_value, says)


def _quantiles(values: NDArray[np.float32]) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values[np.isfinite(values)], QUANTILES)
    return float(low), float(middle), float(high)


def class_changes(reference: Reference, window: Window) -> tuple[ClassChange, ...]:
    """The classes that were answered or are labelled, on either side; the largest change of share first."""
    unseen, scores = reference.unseen, window.scores
    names, before, now = effects.shares(unseen.predicted, scores.predicted)
    share_of = {str(name): (float(a), float(b)) for name, a, b in zip(names, before, now, strict=True)}
    truths = {str(label) for answers in (unseen.answers, window.answers) for label in answers.labels}
    found = [
        ClassChange(
            name,
            *share_of.get(name, (0.0, 0.0)),
            _confidence(unseen, name),
            _confidence(scores, name),
            _recall(unseen.answers, name),
            _recall(window.answers, name),
        )
        for name in sorted(truths | set(share_of))
    ]
    return tuple(sorted(found, key=lambda each: -abs(each.share_now - each.share_before)))


def _confidence(scores: Scores, name: str) -> float | None:
    sure = scores.confidence[scores.predicted == name]
    sure = sure[np.isfinite(sure)]
    return float(sure.mean()) if len(sure) else None


def _recall(answers: Answers, name: str) -> Recall | None:
    right = answers.of(name)
    return Recall(int(right.sum()), len(right)) if len(right) else None
