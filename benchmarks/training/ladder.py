"""The ladder's choice: what `auto` keeps, against every rung by name, on test images that neither saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.training import fitting
from benchmarks.training.draws import DRAWS
from benchmarks.training.fitting import AUTO, RUNGS, STRATEGIES, Recipe
from benchmarks.training.results import ACCURACY, SECONDS, Measurement, Sheet, listed, mean, notes, values

TASKS: Final = (
    "hymenoptera-20", "hymenoptera-all", "steel-10", "steel-50", "steel-150", "photo-10", "photo-50", "sketch-10",
    "sketch-100", "photos+sketches",
)  # fmt: skip
METHODS: Final = STRATEGIES
#: How far `auto` may be behind the best rung, in accuracy, and for how many of ten tasks it must not be further.
POINT: Final = 0.01
LEAST_TASKS: Final = 8


def measure(
    sheet: Sheet,
    data: Path,
    recipe: Recipe,
    folder: Path,
    *,
    tasks: Sequence[str],
    methods: Sequence[str],
    seeds: int,
    reuse: bool,
    known: Sequence[Measurement] = (),
    say: Callable[[str], None],
) -> None:
    """All trainings share one feature cache.

    Args:
        reuse: where `auto` kept a rung, take its accuracy for the one of that rung by name as well (same draw, seed and
            recipe); the row's note says so.
        known: what another part measured of the same draws, with the same seeds and recipe, is not measured again.
    """
    for task in tasks:
        for seed in range(seeds):
            for method in methods:
                if sheet.has(task, method, seed):
                    continue
                found_before = [row for row in known if (row.task, row.method, row.seed) == (task, method, seed)]
                if found_before:
                    sheet.add(found_before)
                    say(f"{task}, seed {seed}, {method}: as measured before")
                    continue
                kept = _kept(sheet, task, method, seed) if reuse else []
                if kept:
                    sheet.add(kept)
                    say(f"{task}, seed {seed}, {method}: as auto, which kept it")
                    continue
                made = DRAWS[task].make(data, folder / "draws", seed, recipe.most)
                found = fitting.train(made, recipe, strategy=method, seed=seed, cache=folder / "cache", work=folder)
                sheet.add(fitting.measurements(task, method, seed, found))
                right, tested = found.counts[""]
                say(
                    f"{task}, seed {seed}, {method}: {right}/{tested} = {right / tested:.3f}, "
                    f"kept {found.manifest.strategy}, {found.seconds:.0f} s"
                )


@dataclass(frozen=True)
class Judged:
    """A task: the mean accuracy of each rung over the seeds that all of them have, the same of `auto`, and what it kept
    how often."""

    task: str
    seeds: int
    rungs: dict[str, float]
    auto: float
    kept: dict[str, int]

    @property
    def best(self) -> str:
        return max(self.rungs, key=lambda rung: self.rungs[rung])

    @property
    def behind(self) -> float:
        """How far `auto` is behind the best rung; negative where it is ahead."""
        return self.rungs[self.best] - self.auto

    @property
    def met(self) -> bool:
        return self.behind <= POINT + 1e-9


def judge(rows: Sequence[Measurement]) -> list[Judged]:
    """Every task of which `auto` and a rung were measured. The best rung is the one whose mean over the seeds is best:
    it is picked with knowledge of the test, which no strategy has."""
    found = []
    for task in listed(rows, "task"):
        here = [row for row in rows if row.task == task]
        rungs = [rung for rung in RUNGS if values(here, task, rung)]
        seeds = set.intersection(
            *({row.seed for row in here if row.method == method and row.metric == SECONDS} for method in (AUTO, *rungs))
        )
        if not rungs or not seeds:
            continue
        here = [row for row in here if row.seed in seeds]
        found.append(
            Judged(
                task,
                len(seeds),
                {rung: mean(values(here, task, rung)).mean for rung in rungs},
                mean(values(here, task, AUTO)).mean,
                dict(Counter(notes(here, task, AUTO))),
            )
        )
    return found


def text(sheet: Sheet) -> list[str]:
    """A line a task, and how often `auto` is within a point of the best rung."""
    judged = judge(sheet.rows)
    lines = [
        "the ladder's choice: accuracy on the test images, mean of the seeds",
        f"  {'':<18}{'seeds':>5}{''.join(f'{rung:>14}' for rung in RUNGS)}{AUTO:>8}  behind the best, in points; kept",
    ]
    for each in judged:
        rungs = "".join(f"{each.rungs[rung]:>14.3f}" if rung in each.rungs else f"{'':>14}" for rung in RUNGS)
        kept = ", ".join(f"{rung} {count}x" for rung, count in each.kept.items())
        verdict = "" if each.met else "  MORE THAN A POINT"
        lines.append(
            f"  {each.task:<18}{each.seeds:>5}{rungs}{each.auto:>8.3f}  {100 * each.behind:+.1f}; {kept}{verdict}"
        )
    if judged:
        met = sum(each.met for each in judged)
        goal = "met   " if met >= LEAST_TASKS else "MISSED" if len(judged) >= len(TASKS) else "so far"
        lines.append(
            f"  {goal} within a point of the best rung that was measured for {met} of {len(judged)} tasks "
            f"(asked {LEAST_TASKS} of {len(TASKS)})"
        )
    return lines


def _kept(sheet: Sheet, task: str, method: str, seed: int) -> list[Measurement]:
    """The rows of `auto`, if what it kept is this rung."""
    own = [row for row in sheet.rows if (row.task, row.method, row.seed) == (task, AUTO, seed)]
    if method not in {row.note for row in own if row.metric == ACCURACY}:
        return []
    return [
        replace(row, method=method, note=f"as {AUTO}, which kept it" if row.metric == SECONDS else row.note)
        for row in own
    ]
