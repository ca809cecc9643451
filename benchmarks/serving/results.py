"""Measurements as tidy rows, their medians, and what they say about the goals."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Final

CLOSED: Final = "closed"
THROUGHPUT: Final = "throughput"
#: (image, clients, stack that it is compared with, the least ratio of Perennial's throughput to its)
GOALS: Final = (
    ("640x480", 32, "limit", 0.80),
    ("640x480", 32, "fastapi", 1.5),
    ("640x480", 32, "bentoml", 4.0),
    ("4000x3000", 32, "fastapi", 4.0),
)
MOST_STARTUP: Final = 2.5  # seconds
MOST_MEMORY: Final = 350.0  # MB


@dataclass(frozen=True)
class Measurement:
    """One number. `load` is `closed` (each client waits for its answer) or `open P%` (arrivals at that share of the
    capacity). `clients` is 0 where there are none; for the no-HTTP limit it is the number of threads."""

    stack: str
    image: str
    load: str
    clients: int
    metric: str
    value: float
    unit: str
    repeat: int


def medians(rows: Iterable[Measurement]) -> dict[tuple[str, str, str, int, str], float]:
    """The median over the repeats, by (stack, image, load, clients, metric)."""
    values: dict[tuple[str, str, str, int, str], list[float]] = {}
    for row in valid(rows):
        values.setdefault((row.stack, row.image, row.load, row.clients, row.metric), []).append(row.value)
    return {key: median(each) for key, each in values.items()}


def valid(rows: Iterable[Measurement]) -> list[Measurement]:
    """Without the points in which an answer was not good: a server that refuses is quick."""
    rows = list(rows)
    bad = {_point(row) for row in rows if row.metric == "errors" and row.value}
    return [row for row in rows if row.metric == "errors" or _point(row) not in bad]


def invalid(rows: Iterable[Measurement]) -> list[Measurement]:
    """The counts of errors that are not zero."""
    return [row for row in rows if row.metric == "errors" and row.value]


def throughput(found: Mapping[tuple[str, str, str, int, str], float], stack: str, image: str, clients: int) -> float:
    """Answers a second; the best number of threads for the limit, NaN where it was not measured."""
    values = [
        value
        for (name, size, load, count, metric), value in found.items()
        if (name, size, load, metric) == (stack, image, CLOSED, THROUGHPUT) and (stack == "limit" or count == clients)
    ]
    return max(values, default=float("nan"))


@dataclass(frozen=True)
class Verdict:
    """A goal, what was measured, and whether it is met."""

    goal: str
    measured: float
    asked: float
    met: bool


def verdicts(rows: Sequence[Measurement]) -> list[Verdict]:
    """Every goal for which there are measurements."""
    found = medians(rows)
    listed = []
    for image, clients, other, least in GOALS:
        ratio = throughput(found, "perennial", image, clients) / throughput(found, other, image, clients)
        if ratio == ratio:
            listed.append(Verdict(f"{image}, {clients} clients: Perennial / {other}", ratio, least, ratio >= least))
    for metric, most, what in (
        ("startup", MOST_STARTUP, "Perennial is ready, seconds"),
        ("memory_worker", MOST_MEMORY, "Perennial's worker under load, MB"),
    ):
        values = [value for key, value in found.items() if key[0] == "perennial" and key[4] == metric]
        if values:
            listed.append(Verdict(f"{what} (at most)", max(values), most, max(values) <= most))
    return listed


def write(rows: Sequence[Measurement], about: Mapping[str, str], path: Path) -> None:
    """One measurement a row, after lines of `# key: value` that say what was measured with what."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        for key, value in about.items():
            file.write(f"# {key}: {value}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([column.name for column in fields(Measurement)])
        for row in rows:
            writer.writerow(
                [row.stack, row.image, row.load, row.clients, row.metric, f"{row.value:.4f}", row.unit, row.repeat]
            )


def read(path: Path) -> tuple[list[Measurement], dict[str, str]]:
    """What `write` wrote: the rows, and what is said about them."""
    lines = path.read_text("utf-8").splitlines()
    about = dict(line.removeprefix("# ").split(": ", 1) for line in lines if line.startswith("# "))
    rows = [
        Measurement(
            row["stack"], row["image"], row["load"], int(row["clients"]), row["metric"], float(row["value"]),
            row["unit"], int(row["repeat"]),
        )
        for row in csv.DictReader(line for line in lines if not line.startswith("#"))
    ]  # fmt: skip
    return rows, about


def _point(row: Measurement) -> tuple[str, str, str, int, int]:
    return row.stack, row.image, row.load, row.clients, row.repeat
