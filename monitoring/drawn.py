"""What Evidently is told of a check: the columns that were tested, and what the check came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from monitoring.detectors import Column, Family
from monitoring.drawing import Numbers, Side
from monitoring.live_accuracy import Accuracies
from monitoring.two_sample import Measured, output_columns, property_columns
from monitoring.verdict import Verdict
from monitoring.window import Reference, Scores

#: Families that test column by column; the class mix is one column more.
_BY_COLUMN: Final = ("properties", "output")
#: Columns whose distributions are drawn. Each takes a twelfth of a second and 200 kB.
MOST_DRAWN: Final = 12


def most_moved(families: Mapping[str, Family], most: int = MOST_DRAWN) -> list[str]:
    """The columns to draw: those that alarmed, then those with the largest effect, of the families that test column by
    column."""
    ranked = sorted(_tested(families), key=lambda column: (not column.alarm, -column.effect))
    return [column.name for column in ranked[:most]]


def sides(reference: Reference, window: Scores, columns: Sequence[str]) -> tuple[Side, Side]:
    """The reference and the window, in these columns. Of the reference, outputs and labels of rows that are not held
    out are left out."""
    everything = np.ones(len(window), dtype=bool)
    return (
        _side(reference, reference.scores, columns, reference.held_out),
        _side(reference, window, columns, everything),
    )


def numbers(verdict: Verdict, families: Mapping[str, Family], accuracy: Accuracies, measured: Measured) -> Numbers:
    """What a check came to."""
    columns = [column.alarm for column in _tested(families)]
    if "class_mix" in families and families["class_mix"].skipped is None:
        columns.append(families["class_mix"].alarm)
    known = {"by labels": accuracy.labels, "estimated": accuracy.estimated, "in the reference": accuracy.reference}
    return Numbers(
        verdicts={str(each): float(each is verdict) for each in Verdict},
        drifted={"drifted": sum(map(bool, columns)), "tested": len(columns)} if columns else {},
        accuracies={name: float(found.value) for name, found in known.items() if found is not None},
        separations=separations(measured),
    )


def separations(measured: Measured) -> dict[str, float]:
    """What the domain classifier found, over all rows and with the class mix taken out."""
    by_suffix = {
        "": measured.separation, "_within_classes": measured.within, "_within_grown_classes": measured.within_grown,
    }  # fmt: skip
    return {
        f"{name}{suffix}": float(value)
        for suffix, found in by_suffix.items()
        if found is not None
        for name, value in (("auc", found.auc), ("p_value", found.p_value))
    }


def _tested(families: Mapping[str, Family]) -> list[Column]:
    found = (column for name in _BY_COLUMN if name in families for column in families[name].columns)
    return [column for column in found if column.problem is None]


def _side(reference: Reference, scores: Scores, names: Sequence[str], held_out: NDArray[np.bool_]) -> Side:
    outputs = {name: np.where(held_out, column, np.nan) for name, column in output_columns(reference, scores).items()}
    columns = {**property_columns(reference, scores), **outputs}
    return Side(
        {name: _finite(columns[name]) for name in names},
        _only(held_out, scores.predicted.astype(str)),
        _only(held_out, scores.labels),
    )


def _only(kept: NDArray[np.bool_], values: Sequence[str | None] | NDArray[Any]) -> tuple[str | None, ...]:
    return tuple(value if there else None for value, there in zip(values, kept.tolist(), strict=True))


def _finite(values: Any) -> NDArray[np.float64]:
    """NaN for infinities: Evidently leaves NaN out, and stumbles over the others."""
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)
