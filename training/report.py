"""A bundle's report for people: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from perennial.bundle import Estimate, Manifest
from training.datasets import LabelledImages, Row
from training.evaluate import confusion

_METRICS: Final = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "nll": "Log-loss (nats)",
    "ece": "Calibration error",
}
_MISTAKES: Final = 20
_SKIPPED: Final = 50
_CELLS: Final = 40  # past so many classes a confusion matrix is no longer read


def render(manifest: Manifest, images: LabelledImages, scored: Sequence[Row], predicted: Sequence[str]) -> str:
    """HTML. `predicted` are the graph's answers on `scored`, of which the test rows are reported."""
    tested = [(row, guess) for row, guess in zip(scored, predicted, strict=True) if row.split == "test"]
    counts = confusion([row.label for row, _ in tested], [guess for _, guess in tested], images.classes)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda estimate: _interval(estimate, 100.0, " %", 1)
    environment.filters["plain"] = lambda estimate: _interval(estimate, 1.0, "", 3)
    mistakes = [(row, guess) for row, guess in tested if row.label != guess]
    return environment.get_template("report.html").render(
        manifest=manifest,
        metrics=[(title, manifest.metrics[key], key in ("nll",)) for key, title in _METRICS.items()],
        classes=images.classes if len(images.classes) <= _CELLS else (),
        counts=counts.tolist(),
        most=[max(1, sum(row)) for row in counts.tolist()],
        per_split=_per_split(images),
        mistakes=mistakes[:_MISTAKES],
        mistake_count=len(mistakes),
        skipped=images.skipped[:_SKIPPED],
        skipped_count=len(images.skipped),
    )


def _per_split(images: LabelledImages) -> list[tuple[str, list[int]]]:
    splits = ("train", "validation", "test")
    counts = {label: dict.fromkeys(splits, 0) for label in images.classes}
    for row in images.rows:
        counts[row.label][row.split] += 1
    return [(label, [counts[label][split] for split in splits]) for label in images.classes]


def _interval(estimate: Estimate, factor: float, unit: str, digits: int) -> str:
    value, low, high = (f"{factor * number:.{digits}f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value}{unit} ({low} to {high})"
