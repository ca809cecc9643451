"""How many windows pass until drift is told: by how many images are changed in the end, and how fast they become so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from benchmarks.drift import trials
from benchmarks.drift.methods import verdict
from benchmarks.drift.worlds import World, joined
from monitoring.persistence import Persistence
from monitoring.verdict import CALM, Verdict

CHANGES: Final = ("blur", "JPEG quality", "rotation")
SHARES: Final = (0.05, 0.1, 0.25, 0.5, 1.0)  # of the images, in the end
RAMPS: Final = (1, 5, 20)  # windows until then
_LONGEST: Final = 30  # windows that are waited for


@dataclass(frozen=True)
class Delay:
    """Windows from the first with a changed image on: until one alarms, and until drift is opened (2 of 3). 0 where
    neither came within 30 windows."""

    world: str
    change: str
    share: float
    ramp: int
    rows: int
    seed: int
    alarm: int
    opened: int


@dataclass(frozen=True)
class _Task:
    change: str
    share: float
    ramp: int
    rows: int
    seed: int


def measure(world: World, *, rows: int, seeds: int, jobs: int, say: Callable[[str], None]) -> list[Delay]:
    """Windows of `rows` drawn from a third of the images, against the others."""
    tasks = [
        _Task(change, share, ramp, rows, seed)
        for change in CHANGES
        for share in SHARES
        for ramp in RAMPS
        for seed in range(seeds)
    ]
    found = []
    for delay in trials.run(_delay, world, tasks, jobs):
        found.append(delay)
        if delay.seed == seeds - 1:
            mine = found[-seeds:]
            said = ", ".join(f"{each.alarm or '-'} ({each.opened or '-'})" for each in mine)
            say(f"{world.name}, {delay.change}, {delay.share:.0%} within {delay.ramp} windows: alarm (opened) {said}")
    return found


def _delay(world: World, task: _Task) -> Delay:
    random = np.random.default_rng([task.seed, 11])
    order = random.permutation(len(world))
    stream, known = order[: len(order) // 3], world.reference(order[len(order) // 3 :])
    rule, verdicts, alarm, opened = Persistence(), [Verdict.OK] * 2, 0, 0
    for number in range(1, _LONGEST + 1):
        drawn = random.permutation(stream)[: min(task.rows, len(stream))]
        changed = round(len(drawn) * task.share * min(1.0, number / task.ramp))
        parts = [world.scores[task.change].take(drawn[:changed]), world.scores[""].take(drawn[changed:])]
        scores = joined(parts).take(random.permutation(len(drawn)))
        verdicts.insert(0, verdict(known, scores))
        if not alarm and verdicts[0] not in CALM:
            alarm = number
        if rule.opens(verdicts):
            opened = number
            break
    return Delay(world.name, task.change, task.share, task.ramp, task.rows, task.seed, alarm, opened)


def summary(delays: Sequence[Delay]) -> list[str]:
    """Lines: windows until drift is opened, in the median; "never" where it was not within thirty."""
    lines = []
    for world, change in dict.fromkeys((each.world, each.change) for each in delays):
        mine = [each for each in delays if (each.world, each.change) == (world, change)]
        shares, ramps = sorted({each.share for each in mine}), sorted({each.ramp for each in mine})
        lines.append(f"{world}, {change}: windows until drift is opened, by the images changed in the end")
        lines.append(f"{'':16}" + "".join(f"{share:>8.0%}" for share in shares))
        for ramp in ramps:
            label = "at once" if ramp == 1 else f"over {ramp} windows"
            lines.append(f"{label:16}" + "".join(f"{_opened(mine, share, ramp):>8}" for share in shares))
    return lines


def _opened(delays: Sequence[Delay], share: float, ramp: int) -> str:
    found = median(each.opened or float("inf") for each in delays if (each.share, each.ramp) == (share, ramp))
    return "never" if found == float("inf") else f"{found:g}"
