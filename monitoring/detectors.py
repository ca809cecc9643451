"""The families of tests, each with two gates: significance after correction, and an effect worth acting on.

Significance alone alarms on every huge window, an effect alone on every tiny one. The p-values come from the check's
Evidently report; the effects and the decisions are made here, by pure functions over arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import fisher_exact

from monitoring.embedding import Separation
from monitoring.novelty import Novelty
from monitoring.window import Answers, Scores
from perennial.effects import LEAST_SPREAD, shares, standardised_distance

_MIN_VALUES: Final = 20  # of each side; fewer say nothing about a column


@dataclass(frozen=True, slots=True)
class Column:
    """One column's numbers. `effect` is never negative; `shift` is signed, in reference standard deviations.

    `problem` says why the column could not be tested; then it has no numbers and raises no alarm.
    """

    name: str
    effect: float = 0.0
    p_value: float = 1.0
    alarm: bool = False
    shift: float = 0.0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """What a family of tests found. `score` is its largest effect, `p_value` is corrected for its columns, `floor` is
    the least effect that counts. `skipped` says why there was nothing to test."""

    score: float
    p_value: float
    alarm: bool
    floor: float
    columns: tuple[Column, ...] = ()
    skipped: str | None = None

    @property
    def alarmed(self) -> tuple[Column, ...]:
        """The columns that raised the alarm, largest effect first."""
        return tuple(sorted((column for column in self.columns if column.alarm), key=lambda column: -column.effect))


def usable(reference: NDArray[Any], window: NDArray[Any]) -> str | None:
    """Why a pair of columns cannot be tested, or None if it can."""
    left, right = reference[np.isfinite(reference)], window[np.isfinite(window)]
    if len(right) < _MIN_VALUES:
        return f"{len(right)} of {len(window)} values in the window are numbers"
    if len(left) < _MIN_VALUES:
        return f"the reference has {len(left)} values"
    if left.min() == left.max() == right.min() == right.max():
        return "constant, in the reference and in the window"
    return None


def shifted(
    reference: Mapping[str, NDArray[Any]],
    window: Mapping[str, NDArray[Any]],
    p_values: Mapping[str, float],
    *,
    alpha: float,
    floor: float,
) -> Family:
    """Numeric columns: Kolmogorov-Smirnov with Bonferroni's correction, and the Wasserstein distance in reference
    standard deviations."""
    tested = {name: usable(reference[name], window[name]) for name in reference}
    count = sum(problem is None for problem in tested.values())
    columns = []
    for name, problem in tested.items():
        p_value = p_values.get(name)
        if problem is None and (p_value is None or not np.isfinite(p_value)):
            problem = "the test gave no number"
        if problem is not None or p_value is None:
            columns.append(Column(name, problem=problem))
            continue
        left = reference[name][np.isfinite(reference[name])].astype(np.float64)
        right = window[name][np.isfinite(window[name])].astype(np.float64)
        effect = standardised_distance(left, right)
        corrected = min(1.0, p_value * count)
        shift = float(right.mean() - left.mean()) / max(float(left.std()), LEAST_SPREAD)
        columns.append(Column(name, effect, corrected, corrected <= alpha and effect >= floor, shift))
    return _family(columns, floor)


def class_mix(reference: Scores, window: Scores, p_value: float | None, *, alpha: float, floor: float) -> Family:
    """The predicted classes: a two-sample chi-square, and the total variation between the two mixes."""
    names, left, right = shares(reference.predicted, window.predicted)
    if p_value is None or not np.isfinite(p_value) or not len(names):
        return Family(0.0, 1.0, False, floor, skipped="the test gave no number")
    distance = float(np.abs(right - left).sum() / 2)
    columns = tuple(
        Column(str(name), float(abs(b - a)), p_value, False, float(b - a))
        for name, a, b in zip(names, left, right, strict=True)
    )
    return Family(distance, p_value, p_value <= alpha and distance >= floor, floor, columns)


def embedding(separation: Separation | None, *, alpha: float, floor: float) -> Family:
    """The domain classifier's area under the ROC curve and its permutation p-value."""
    if separation is None:
        return Family(0.5, 1.0, False, floor, skipped="too few rows that can be compared")
    alarm = separation.p_value <= alpha and separation.auc >= floor
    return Family(separation.auc, separation.p_value, alarm, floor)


def embedding_within_classes(
    every: Separation | None, grown: Separation | None, *, alpha: float, floor: float
) -> Family:
    """The domain classifier with the class mix taken out, within every class and within those that grew.

    It raises no alarm of its own, it only tells causes apart, so its two looks are not corrected for."""
    names = ("every class", "classes that grew")
    tried = [(name, found) for name, found in zip(names, (every, grown), strict=True) if found is not None]
    if not tried:
        return Family(0.5, 1.0, False, floor, skipped="too few rows of the same class on both sides")
    columns = [
        Column(name, found.auc, found.p_value, found.p_value <= alpha and found.auc >= floor) for name, found in tried
    ]
    return _family(columns, floor)


def novelty(found: Mapping[str, Novelty | None], *, alpha: float, floor: float) -> Family:
    """More images than there should be are like nothing in the reference; by what they were compared in, corrected."""
    tried = {name: each for name, each in found.items() if each is not None}
    columns = []
    for name, each in found.items():
        if each is None:
            columns.append(Column(name, problem="too few rows that can be compared"))
            continue
        p_value = min(1.0, each.p_value * len(tried))
        alarm = p_value <= alpha and each.excess >= floor
        columns.append(Column(name, max(0.0, each.excess), p_value, alarm, each.excess))
    return _family(columns, floor)


def labels(
    reference: Answers, window: Answers, classes: Sequence[str], *, alpha: float, floor: float, least: int
) -> Family:
    """Accuracy and each class's recall against the reference's: Fisher's exact test, one-sided.

    Half of alpha goes to accuracy, half to the recalls, with Holm's correction among them.
    """
    right, known = window.correct, reference.correct
    if len(right) < least:
        return Family(0.0, 1.0, False, floor, skipped=f"{len(right)} labels; {least} are needed (monitor.min_labels)")
    if len(known) < _MIN_VALUES:
        return Family(0.0, 1.0, False, floor, skipped=f"the reference has {len(known)} held-out rows")
    columns = [_fewer_right("accuracy", known, right)]
    recalls = []
    for name in classes:
        left, now = reference.of(name), window.of(name)
        if len(left) and len(now):
            recalls.append(_fewer_right(f"recall:{name}", left, now))
    running = 0.0
    for rank, column in enumerate(sorted(recalls, key=lambda column: column.p_value)):
        running = max(running, min(1.0, column.p_value * (len(recalls) - rank)))
        columns.append(Column(column.name, column.effect, running, shift=column.shift))
    halved = [
        Column(
            column.name,
            column.effect,
            min(1.0, 2 * column.p_value),
            2 * column.p_value <= alpha and column.effect >= floor,
            column.shift,
        )
        for column in columns
    ]
    family = _family(halved, floor)
    return Family(halved[0].effect, family.p_value, family.alarm, floor, family.columns)


def _family(columns: Sequence[Column], floor: float) -> Family:
    tested = [column for column in columns if column.problem is None]
    if not tested:
        return Family(0.0, 1.0, False, floor, tuple(columns), skipped="no column could be tested")
    return Family(
        max(column.effect for column in tested),
        min(column.p_value for column in tested),
        any(column.alarm for column in tested),
        floor,
        tuple(columns),
    )


def _fewer_right(name: str, reference: NDArray[np.bool_], window: NDArray[np.bool_]) -> Column:
    drop = float(reference.mean() - window.mean())
    table = [[int(window.sum()), int((~window).sum())], [int(reference.sum()), int((~reference).sum())]]
    return Column(name, max(0.0, drop), float(fisher_exact(table, alternative="less").pvalue), shift=-drop)
