"""Is the cause named rightly? Windows in which one thing is known to have changed, and what the verdict says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.drift import trials
from benchmarks.drift.methods import verdict
from benchmarks.drift.shifts import CAMERA
from benchmarks.drift.worlds import Indexes, World, joined, relabelled
from monitoring.verdict import Verdict
from monitoring.window import Scores

SKETCHES: Final = "sketches"
_LENS, _DATA = Verdict.SENSOR_SHIFT, Verdict.DATA_DRIFT

#: What each scenario is. Zoom is a lens's; a turned scene is other data, for no property of the images tells of it.
RIGHT: Final[dict[str, Verdict]] = {
    "clean": Verdict.OK,
    **dict.fromkeys(("brightness", "contrast", "blur", "noise", "JPEG quality", "hue", "crop and zoom"), _LENS),
    "rotation": _DATA,
    "prior shift, mild": Verdict.PRIOR_SHIFT,
    "prior shift, strong": Verdict.PRIOR_SHIFT,
    "labels swapped": Verdict.CONCEPT_DRIFT,
    SKETCHES: _DATA,
    "sketches of few classes": _DATA,
    "half photos, half sketches": _DATA,
}
_MILD, _STRONG = 3.0, 8.0  # how much more likely an image of the first third of the classes is


@dataclass(frozen=True)
class Named:
    """How often a verdict was given."""

    world: str
    scenario: str
    right: str
    verdict: str
    count: int
    trials: int


def window(world: World, scenario: str, rows: Indexes, random: np.random.Generator, count: int) -> Scores:
    """`count` rows of a scenario from images [M] that are not in the reference."""
    plain = world.scores[""]
    if scenario in CAMERA:
        return world.scores[scenario].take(rows[:count])
    if scenario.startswith("prior"):
        return plain.take(
            _mixed(world.labels[rows], rows, _MILD if scenario.endswith("mild") else _STRONG, count, random)
        )
    if scenario == "labels swapped":
        names = world.classes
        swap = {names[0]: names[1], names[1]: names[0]}
        taken = plain.take(rows[:count])
        return relabelled(taken, tuple(swap.get(str(label), label) for label in taken.labels))
    if scenario == "clean":
        return plain.take(rows[:count])
    other = world.scores[SKETCHES]
    at = random.permutation(len(other))
    if scenario == SKETCHES:
        return other.take(at[:count])
    if scenario == "sketches of few classes":
        return other.take(_mixed(np.array(other.labels)[at], at, _STRONG, count, random))
    half = count // 2
    mixed = joined([plain.take(rows[: count - half]), other.take(at[:half])])
    return mixed.take(random.permutation(count))


def _mixed(labels: np.ndarray, rows: Indexes, more: float, count: int, random: np.random.Generator) -> Indexes:  # type: ignore[type-arg]
    """Rows without replacement, of which those of the first third of the classes are so much more likely than the rest:
    drawn class by class, so that the mix is that and not one watered down where a class runs out."""
    names, given = np.unique(labels, return_counts=True)
    weights = given * np.where(np.arange(len(names)) < max(1, len(names) // 3), more, 1.0)
    wanted = count * weights / weights.sum()
    taken = [
        random.permutation(rows[labels == name])[: round(most * min(1.0, (given / wanted).min()))]
        for name, most in zip(names, wanted, strict=True)
    ]
    return np.asarray(random.permutation(np.concatenate(taken)))


@dataclass(frozen=True)
class _Task:
    scenario: str
    rows: int
    seed: int


def measure(
    world: World, *, rows: int, scenarios: Sequence[str], seeds: int, jobs: int, say: Callable[[str], None]
) -> list[Named]:
    """Windows of `rows` against all other images. A change that leaves this world's images as they were (hue, of grey
    ones) is left out."""
    tasks = []
    for scenario in scenarios:
        if scenario in CAMERA and np.array_equal(world.scores[scenario].properties, world.scores[""].properties):
            say(f"{world.name}, {scenario}: changes nothing here")
        else:
            tasks += [_Task(scenario, rows, seed) for seed in range(seeds)]
    given: dict[str, Counter[str]] = {}
    for task, name in zip(tasks, trials.run(_named, world, tasks, jobs), strict=True):
        counted = given.setdefault(task.scenario, Counter())
        counted[name] += 1
        if counted.total() == seeds:
            said = ", ".join(f"{verdict} {count}" for verdict, count in counted.most_common())
            say(f"{world.name}, {task.scenario} ({RIGHT[task.scenario]}): {said}")
    return [
        Named(world.name, scenario, str(RIGHT[scenario]), verdict, count, seeds)
        for scenario, counted in given.items()
        for verdict, count in counted.most_common()
    ]


def _named(world: World, task: _Task) -> str:
    random = np.random.default_rng([task.seed, 7])
    order = random.permutation(len(world))
    prior = task.scenario.startswith("prior")
    split = len(world) * 2 // 3 if prior else task.rows  # a mix needs images to choose from
    chosen, rest = order[:split], order[split:]
    scores = window(world, task.scenario, chosen, random, min(task.rows, split // 2 if prior else task.rows))
    labelled = task.scenario in ("labels swapped", "clean")
    return str(verdict(world.reference(rest), scores, labelled=labelled))


def summary(named: Sequence[Named]) -> list[str]:
    """Lines: how many of the drifted windows are named rightly, and what the others are called."""
    lines = []
    for world in dict.fromkeys(each.world for each in named):
        drifted = [each for each in named if each.world == world and each.right != Verdict.OK]
        right = sum(each.count for each in drifted if each.verdict == each.right)
        trials = sum(each.count for each in drifted)
        lines.append(
            f"{world}: the cause is named rightly in {right} of {trials} drifted windows ({right / trials:.1%})"
        )
        lines += [
            f"  {each.scenario}: {each.verdict} {each.count} of {each.trials}, right is {each.right}"
            for each in named
            if each.world == world and each.verdict != each.right
        ]
    return lines
