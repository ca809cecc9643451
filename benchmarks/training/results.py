"""Measurements as tidy rows, in a CSV file that grows as they come: a run that was cut short goes on where it was."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.transfer import Interval, interval

#: The metric that closes a unit of work: what has it is complete.
SECONDS: Final = "seconds"
ACCURACY: Final = "accuracy"
#: What the head says of the machine.
HARDWARE: Final = "hardware"
#: What says that a method was not measured; its note says why.
LEFT_OUT: Final = "left_out"


@dataclass(frozen=True)
class Measurement:
    """One number. `epoch` is 0 where it is of the whole; `note` has what a number cannot say, such as which rung `auto`
    chose. `seed` is that of the draw and of the training."""

    task: str
    method: str
    seed: int
    metric: str
    value: float
    unit: str
    epoch: int = 0
    note: str = ""


class Sheet:
    """The measurements of one part.

    Args:
        path: the CSV file; None keeps them in memory only.
        about: lines of `# key: value` at its head.
        resume: go on with what is there, which must have been measured with the same. A unit of work (task, method,
            seed) without its `seconds` is done again.
        elsewhere: it may have been on other hardware: accuracy is compared, not seconds. The head then names all.
    """

    def __init__(
        self, path: Path | None, about: Mapping[str, str], *, resume: bool = False, elsewhere: bool = False
    ) -> None:
        self.path = path
        self.about = dict(about)
        self.rows: list[Measurement] = []
        if path is not None and resume and path.exists():
            found, before = read(path)
            if elsewhere and HARDWARE in before:
                machines = dict.fromkeys([*before[HARDWARE].split("; "), about[HARDWARE]])
                before[HARDWARE] = self.about[HARDWARE] = "; ".join(machines)
            if before != self.about:
                said = "; ".join(
                    f"{key}: {before.get(key)!r} there, {value!r} now"
                    for key, value in self.about.items()
                    if before.get(key) != value
                )
                raise SystemExit(
                    f"{path} was measured otherwise ({said}); go on as it was begun, or leave --resume out"
                )
            complete = {_unit(row) for row in found if row.metric == SECONDS and row.epoch == 0}
            self.rows = [row for row in found if _unit(row) in complete]
        if path is not None:
            write(self.rows, self.about, path)

    def has(self, task: str, method: str, seed: int) -> bool:
        return any(_unit(row) == (task, method, seed) for row in self.rows)

    def add(self, rows: Sequence[Measurement]) -> None:
        """Append the rows of one unit of work, in one go."""
        self.rows += rows
        if self.path is not None:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(_texts(row) for row in rows)


def write(rows: Iterable[Measurement], about: Mapping[str, str], path: Path) -> None:
    """One measurement a row, after lines of `# key: value` that say what was measured with what."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        for key, value in about.items():
            file.write(f"# {key}: {value}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([column.name for column in fields(Measurement)])
        writer.writerows(_texts(row) for row in rows)


def read(path: Path) -> tuple[list[Measurement], dict[str, str]]:
    """What `write` and `Sheet` wrote: the rows, and what is said about them. A last line that was cut short is left
    out."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = file.readlines()
    about: dict[str, str] = {}
    while lines and lines[0].startswith("# "):
        key, value = lines.pop(0).removeprefix("# ").rstrip("\n").split(": ", 1)
        about[key] = value
    rows = []
    for row in csv.DictReader(lines):
        if None in row.values() or not row["epoch"]:
            continue
        rows.append(
            Measurement(
                row["task"], row["method"], int(row["seed"]), row["metric"], float(row["value"]), row["unit"],
                int(row["epoch"]), row["note"],
            )
        )  # fmt: skip
    return rows, about


def values(rows: Iterable[Measurement], task: str, method: str, metric: str = ACCURACY) -> list[float]:
    """The numbers of the whole, in order of the seeds."""
    found = [row for row in rows if (row.task, row.method, row.metric, row.epoch) == (task, method, metric, 0)]
    return [row.value for row in sorted(found, key=lambda row: row.seed)]


def notes(rows: Iterable[Measurement], task: str, method: str, metric: str = ACCURACY) -> list[str]:
    """What is noted beside them, in the same order."""
    found = [row for row in rows if (row.task, row.method, row.metric, row.epoch) == (task, method, metric, 0)]
    return [row.note for row in sorted(found, key=lambda row: row.seed)]


def mean(found: Sequence[float]) -> Interval:
    """Mean and 95 % t-interval; of one value the interval is not known."""
    if len(found) > 1 and np.ptp(found) > 0:
        return interval(list(found))
    value = float(np.mean(found)) if found else float("nan")
    return Interval(value, value, value) if len(found) > 1 else Interval(value, float("nan"), float("nan"))


def listed(rows: Iterable[Measurement], column: str) -> list[str]:
    """The different values of a column, in the order in which they came."""
    return list(dict.fromkeys(str(getattr(row, column)) for row in rows))


def _unit(row: Measurement) -> tuple[str, str, int]:
    return row.task, row.method, row.seed


def _texts(row: Measurement) -> list[str]:
    texts = [str(value) for value in astuple(row)]
    texts[4] = f"{row.value:.6f}"
    return texts
