"""Few images: how good `auto` and each rung are on draws of a few labelled images, and how long they take."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.training import fitting
from benchmarks.training.draws import DRAWS
from benchmarks.training.fitting import AUTO, RUNGS, Recipe
from benchmarks.training.results import ACCURACY, SECONDS, Sheet, mean, notes, values

TASKS: Final = ("steel-10", "steel-50", "photo", "photos+sketches")
METHODS: Final = (AUTO, *RUNGS[:3])
#: (task, metric, what `auto` must reach in the mean of the draws)
GOALS: Final = (
    ("steel-10", ACCURACY, 0.96),
    ("steel-50", ACCURACY, 0.985),
    ("photo", ACCURACY, 0.985),
    ("photos+sketches", f"{ACCURACY}_sketch", 0.88),
    ("photos+sketches", f"{ACCURACY}_photo", 0.97),
)
MOST_SECONDS: Final = ("photos+sketches", 300.0)


def measure(
    sheet: Sheet,
    data: Path,
    recipe: Recipe,
    folder: Path,
    *,
    tasks: Sequence[str],
    methods: Sequence[str],
    seeds: int,
    say: Callable[[str], None],
) -> None:
    """Each draw has a feature cache of its own, empty for the first of `methods`: its seconds are those of somebody who
    comes with new images, the others' without embedding."""
    for task in tasks:
        for seed in range(seeds):
            cache = folder / "caches" / f"{task}-{seed}"
            for method in methods:
                if sheet.has(task, method, seed):
                    continue
                made = DRAWS[task].make(data, folder / "draws", seed, recipe.most)
                found = fitting.train(
                    made, recipe, strategy=method, seed=seed, cache=cache, work=folder, domains=DRAWS[task].domains
                )
                sheet.add(fitting.measurements(task, method, seed, found))
                shares = ", ".join(
                    f"{domain or 'test'} {right}/{tested}" for domain, (right, tested) in found.counts.items()
                )
                say(f"{task}, draw {seed}, {method}: {shares}, kept {found.manifest.strategy}, {found.seconds:.0f} s")
            shutil.rmtree(cache, ignore_errors=True)


def text(sheet: Sheet) -> list[str]:
    """Means over the draws with 95 % t-intervals, and the goals."""
    lines = ["few images: accuracy on the test images, mean of the draws and 95 % t-interval"]
    rows = sheet.rows
    for task, method in dict.fromkeys((row.task, row.method) for row in rows):
        for metric in dict.fromkeys(row.metric for row in rows if (row.task, row.method) == (task, method)):
            if not metric.startswith(ACCURACY):
                continue
            found = mean(values(rows, task, method, metric))
            chosen = ", ".join(dict.fromkeys(notes(rows, task, method, metric))) if method == AUTO else ""
            seconds = mean(values(rows, task, method, SECONDS)).mean
            domain = metric.removeprefix(ACCURACY).replace("_", " ")
            lines.append(
                f"  {task + domain:<24}{method:<14}{found.mean:.3f}  [{found.low:.3f}, {found.high:.3f}]"
                f"{len(values(rows, task, method, metric)):>4} draws{seconds:>8.1f} s  {chosen}"
            )
    for task, metric, least in GOALS:
        found_values = values(rows, task, AUTO, metric)
        if found_values:
            value = mean(found_values).mean
            name = f"{task}{metric.removeprefix(ACCURACY).replace('_', ' ')}"
            lines.append(f"  {_met(value >= least)} {name}: {value:.3f} (asked at least {least})")
    seconds_of = values(rows, MOST_SECONDS[0], AUTO, SECONDS)
    if seconds_of:
        most = max(seconds_of)
        lines.append(
            f"  {_met(most <= MOST_SECONDS[1])} {MOST_SECONDS[0]}: {most:.0f} s at most (asked {MOST_SECONDS[1]:.0f})"
        )
    return lines


def _met(met: bool) -> str:
    return "met   " if met else "MISSED"
