"""A bundle's report for people: one HTML file that needs nothing else, neither script nor network.

Its size is bounded: thumbnails, points, rows and the lengths of names all are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment

from perennial.bundle import CurvePoint, Estimate, Finding, Ladder, Manifest
from perennial.graph import GraphOutput
from perennial.images import ImageLimits
from perennial.pages import page_environment
from training import verdict
from training.datasets import DEFAULT_LIMITS, LabelledImages, Row
from training.errors import ErrorAnalysis, analyse
from training.label_errors import LabelError
from training.report import charts
from training.report.thumbnails import thumbnail

_METRICS: Final = {
    "accuracy": ("Accuracy", "the share of answers that is right"),
    "macro_f1": ("Macro-F1", "precision and recall in one, each class counting the same"),
    "nll": ("Log-loss", "in nats; what the probabilities cost where they are wrong"),
    "ece": ("Calibration error", "how far confidence is from the share that is right (ECE)"),
}
_LABEL_ERRORS: Final = 24
_FINDINGS: Final = 30
_FINDING_LOCATIONS: Final = 12
_FINDING_THUMBNAILS: Final = 6
_MOST_FINDING_THUMBNAILS: Final = 24
_SKIPPED: Final = 50
_CELLS: Final = 40  # past so many classes a confusion matrix is no longer read
_OPEN_CLASSES: Final = 40  # of a long table this many rows are open, the rest is folded
_MOST_CLASSES: Final = 1000  # of a table
_NAME: Final = 60  # characters of a name
_LOCATION: Final = 120
_SENTENCE: Final = 1500


@dataclass(frozen=True, slots=True)
class _Suspect:
    row: Row
    suggested: str
    score: float


def render(
    manifest: Manifest,
    images: LabelledImages,
    scored: Sequence[Row],
    output: GraphOutput,
    label_errors: Sequence[tuple[Row, LabelError]] | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> str:
    """HTML of less than 5 MB.

    Args:
        images: what was trained and judged on, its classes in the order of the graph's columns.
        scored: the rows that `output` is of; the test rows among them are reported.
        label_errors: labels of any row that are probably wrong, the surest first; None if they were not looked for.
        limits: of the images that are shown.
    """
    tested = [at for at, row in enumerate(scored) if row.split == "test"]
    errors = analyse(
        [scored[at] for at in tested],
        output.probabilities[tested],
        output.embedding[tested],
        images.classes,
        manifest.temperature,
        manifest.seed,
    )
    pictures = _Pictures(limits)
    drawn = _drawn(errors)
    return (
        _environment(images.location)
        .get_template("report.html")
        .render(
            manifest=manifest,
            verdict=verdict.verdict(manifest),
            majority=verdict.majority(manifest),
            simple=verdict.rung_of(manifest.ladder, verdict.SIMPLE),
            metrics=[(*texts, manifest.metrics[key], key == "nll") for key, texts in _METRICS.items()],
            findings=_findings(manifest.findings, images, pictures),
            more_findings=max(0, len(manifest.findings) - _FINDINGS),
            ladder=manifest.ladder,
            ladder_axis=_axis(
                [rung.accuracy for rung in manifest.ladder.rungs if rung.accuracy] if manifest.ladder else []
            ),
            curves=_curves(manifest.ladder),
            per_class=_per_class(manifest)[:_MOST_CLASSES],
            unlisted=max(0, len(manifest.per_class) - _MOST_CLASSES),
            class_axis=_axis([each.f1 for each in manifest.per_class.values() if each.f1]),
            open_classes=_OPEN_CLASSES,
            errors=errors,
            cells=errors.counts.tolist() if len(images.classes) <= _CELLS else [],
            picture=pictures.of,
            suspects=[
                _Suspect(row, images.classes[each.suggested], each.score)
                for row, each in (label_errors or ())[:_LABEL_ERRORS]
            ],
            suspect_count=None if label_errors is None else len(label_errors),
            drawn=drawn,
            undrawn=len(images.classes) - len(drawn),
            per_split=_per_split(images)[:_MOST_CLASSES],
            skipped=images.skipped[:_SKIPPED],
            skipped_count=len(images.skipped),
            charts=charts,
            meaning=verdict.MEANING,
        )
    )


class _Pictures:
    """Each image is read once, however often it is shown."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        self._known: dict[str, str | None] = {}

    def of(self, row: Row) -> str | None:
        if row.location not in self._known:
            self._known[row.location] = thumbnail(row, self._limits)
        return self._known[row.location]


def _environment(location: str) -> Environment:
    environment = page_environment(Path(__file__).parent)

    def place(path: str) -> str:
        """Relative to the data, where it lies in there."""
        inside = path.removeprefix(location.rstrip("/") + "/")
        return _short(inside, _LOCATION)

    environment.filters |= {
        "percent": lambda estimate: _interval(estimate, 100.0, " %", 1),
        "plain": lambda estimate: _interval(estimate, 1.0, "", 3),
        "share": verdict.percent,
        "points": verdict.difference,
        "amount": verdict.amount,
        "duration": verdict.duration,
        "rung": verdict.title,
        "name": lambda text: _short(text, _NAME),
        "place": place,
        "sentence": lambda text: _short(text, _SENTENCE),
        "count": lambda number: f"{number:,}",
    }
    return environment


def _short(text: str, length: int) -> str:
    """With its middle left out if it is longer: the ends of a path tell more."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"


def _interval(estimate: Estimate, factor: float, unit: str, digits: int) -> str:
    value, low, high = (f"{factor * number:.{digits}f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value}{unit} ({low} to {high})"


def _axis(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """From the tenth below all of them to 1: on 0..1 good rungs would all look the same."""
    low = min((estimate.low for estimate in estimates), default=0.0)
    return (int(low * 10) / 10 if low < 1 else 0.9), 1.0


def _findings(
    findings: Sequence[Finding], images: LabelledImages, pictures: _Pictures
) -> list[tuple[str, str, list[Row], list[str], int]]:
    """Of each finding: its name, its message, rows to show, further locations, and how many more there are."""
    rows = {row.location: row for row in images.rows}
    left, result = _MOST_FINDING_THUMBNAILS, []
    for finding in findings[:_FINDINGS]:
        shown = [rows[location] for location in finding.locations if location in rows]
        shown = [row for row in shown[: min(left, _FINDING_THUMBNAILS)] if pictures.of(row)]
        left -= len(shown)
        pictured = {row.location for row in shown}
        rest = [location for location in finding.locations if location not in pictured]
        title = finding.kind.replace("_", " ").capitalize()
        result.append(
            (title, finding.message, shown, rest[:_FINDING_LOCATIONS], max(0, len(rest) - _FINDING_LOCATIONS))
        )
    return result


def _curves(ladder: Ladder | None) -> dict[str, Any] | None:
    """What the learning curves are drawn from; None where no rung has one."""
    if ladder is None:
        return None
    series: list[tuple[int, str, tuple[CurvePoint, ...]]] = [
        (at, verdict.title(rung.name), rung.curve)
        for at, rung in enumerate(rung for rung in ladder.rungs if rung.curve)
    ]
    if not any(len(points) > 1 for _, _, points in series):
        return None
    return {"series": series, "level": ladder.transfer.to_accuracy if ladder.transfer else None}


def _per_class(manifest: Manifest) -> list[tuple[str, Any]]:
    """The classes, those with the lowest F1 (or recall, in older bundles) first."""
    return sorted(
        manifest.per_class.items(),
        key=lambda item: (item[1].f1 or item[1].recall).value if item[1].support else 2.0,
    )


def _drawn(errors: ErrorAnalysis) -> dict[int, int]:
    """The classes with a colour on the map: all of them if there are few, else those with the most mistakes."""
    wrong = errors.counts.sum(axis=0) + errors.counts.sum(axis=1) - 2 * errors.counts.diagonal()
    chosen = sorted(np.argsort(-wrong, kind="stable")[: charts.SERIES].tolist())
    return {label: at for at, label in enumerate(chosen)}


def _per_split(images: LabelledImages) -> list[tuple[str, list[int]]]:
    counts = Counter((row.label, row.split) for row in images.rows)
    return [(label, [counts[label, split] for split in ("train", "validation", "test")]) for label in images.classes]
