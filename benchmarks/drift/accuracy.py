"""How far off is accuracy without labels? Windows of known accuracy, each changed more or less, and five estimates."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.drift import trials
from benchmarks.drift.attribution import SKETCHES
from benchmarks.drift.attribution import window as scenario
from benchmarks.drift.shifts import BY_STRENGTH
from benchmarks.drift.worlds import World, joined
from monitoring.embedding import separate
from monitoring.estimate import MOST_UNLIKE, estimate
from monitoring.window import Scores

CLEAN: Final = "clean"
#: Share of the window that is changed.
SHARES: Final = (0.3, 0.6, 1.0)
SKETCH_SHARES: Final = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
_PRIOR: Final = ("prior shift, mild", "prior shift, strong")

#: Column -> what it is. The last three are others' (Garg et al., ICLR 2022; Guillory et al., ICCV 2021).
METHODS: Final = {
    "estimated": "Perennial: ATC, entropy",
    "calibrated": "isotonic confidence",
    "atc_confidence": "ATC, confidence",
    "mean_confidence": "mean confidence",
    "confidence_difference": "difference of confidences",
}
#: Severities: accuracy lost, from and up to.
LOST: Final = ((-1.0, 0.02), (0.02, 0.05), (0.05, 0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 1.0))
#: Up to this loss the error counts; past it, whether the estimate is withheld or its interval holds the truth.
MILD: Final = 0.2


@dataclass(frozen=True)
class Estimated:
    """One window. `reference` and `true` are accuracies; `unlike` is the share that is told from the reference; the
    rest are estimates, which are made here of windows as well whose estimate Perennial withholds."""

    world: str
    change: str
    share: float
    seed: int
    reference: float
    true: float
    unlike: float
    withheld: bool
    low: float
    high: float
    estimated: float
    calibrated: float
    atc_confidence: float
    mean_confidence: float
    confidence_difference: float

    @property
    def lost(self) -> float:
        return self.reference - self.true

    @property
    def covered(self) -> bool:
        return self.low <= self.true <= self.high

    def error(self, method: str = "estimated") -> float:
        return abs(float(getattr(self, method)) - self.true)


def plan(world: World) -> Iterator[tuple[str, float]]:
    """Changes, each with the share of the window that it takes."""
    yield CLEAN, 0.0
    for kind in _PRIOR:
        yield kind, 1.0
    if SKETCHES in world.scores:
        yield from ((SKETCHES, share) for share in SKETCH_SHARES)
    for names in BY_STRENGTH.values():
        yield from ((name, share) for name in names for share in SHARES)


@dataclass(frozen=True)
class _Task:
    change: str
    share: float
    rows: int
    seed: int


def measure(world: World, *, rows: int, seeds: int, jobs: int, say: Callable[[str], None]) -> list[Estimated]:
    """Windows of `rows` against all other images."""
    found: list[Estimated] = []
    tasks = [_Task(change, share, rows, seed) for change, share in plan(world) for seed in range(seeds)]
    for each in trials.run(_one, world, tasks, jobs):
        found.append(each)
        if len(found) % seeds:
            continue
        cell = found[-seeds:]
        true, guess, unlike = np.mean([[one.true, one.estimated, one.unlike] for one in cell], axis=0)
        withheld = sum(one.withheld for one in cell)
        say(
            f"{world.name}, {each.change} of {each.share:.0%}: accuracy {true:.3f}, estimated {guess:.3f}, "
            f"unlike {unlike:.0%}, withheld {withheld} of {seeds}"
        )
    return found


def _one(world: World, task: _Task) -> Estimated:
    change, share = task.change, task.share
    random = np.random.default_rng([task.seed, zlib.crc32(change.encode()), round(100 * share)])
    order = random.permutation(len(world))
    prior = change in _PRIOR
    split = len(world) * 2 // 3 if prior else task.rows  # a mix needs images to choose from
    chosen, rest = order[:split], order[split:]
    if prior:
        window = scenario(world, change, chosen, random, min(task.rows, split // 2))
    else:
        window = _partly(world, change, share, chosen, random)
    return _estimated(world.name, change, share, task.seed, world.reference(rest).scores, window)


def _partly(
    world: World,
    change: str,
    share: float,
    rows: np.ndarray,
    random: np.random.Generator,  # type: ignore[type-arg]
) -> Scores:
    count = round(share * len(rows))
    kept = world.scores[""].take(rows[count:])
    if not count:
        return kept
    other = world.scores[change]
    changed = other.take(random.permutation(len(other))[:count] if change == SKETCHES else rows[:count])
    return joined([kept, changed]) if len(kept) else changed


def _estimated(world: str, change: str, share: float, seed: int, reference: Scores, window: Scores) -> Estimated:
    separation = separate(reference.embedding, window.embedding, seed=seed)
    if separation is None:
        raise ValueError(f"{len(reference)} and {len(window)} rows are too few to compare")
    found = estimate(reference, window, separation.share, proven=1.0, seed=seed)
    if found.estimated is None or found.calibrated is None:
        raise ValueError(f"no estimate: {found.withheld}")
    right = reference.answers.correct
    before, now = reference.confidence.astype(np.float64), window.confidence.astype(np.float64)
    threshold = np.sort(before)[min(len(before) - 1, int((~right).sum()))]
    numbers = {
        "reference": right.mean(),
        "true": window.answers.correct.mean(),
        "unlike": separation.share,
        "low": found.estimated.low,
        "high": found.estimated.high,
        "estimated": found.estimated.value,
        "calibrated": found.calibrated.value,
        "atc_confidence": (now >= threshold).mean(),
        "mean_confidence": now.mean(),
        "confidence_difference": right.mean() - before.mean() + now.mean(),
    }
    return Estimated(
        world, change, share, seed, withheld=separation.share > MOST_UNLIKE,
        **{name: round(float(value), 4) for name, value in numbers.items()},
    )  # fmt: skip


def summary(rows: Sequence[Estimated]) -> list[str]:
    """Lines that say what was found: by severity and method, and what it comes to."""
    lines = []
    for world in dict.fromkeys(row.world for row in rows):
        mine = [row for row in rows if row.world == world]
        lines.append(f"{world}: mean error in points by accuracy lost, of the windows whose estimate is shown")
        lines.append(f"{'lost':>12} {'windows':>8} {'withheld':>8} {'covered':>8}  " + "  ".join(METHODS.values()))
        for least, most in LOST:
            part = [row for row in mine if least < row.lost <= most]
            lines.append(_line(f"{max(least, 0):.0%} to {most:.0%}", part))
        mild = [row for row in mine if row.lost <= MILD]
        severe = [row for row in mine if row.lost > MILD]
        shown = [row for row in mild if not row.withheld]
        away = sum(row.withheld for row in severe)
        lines.append(
            f"{world}: of {len(mild)} windows that lost at most {MILD:.0%}, {len(shown)} are shown, off by "
            f"{100 * _mean(shown):.1f} points in the mean ({100 * _mean(mild):.1f} with those withheld), the truth "
            f"within the interval of {sum(row.covered for row in shown)}; of {len(severe)} that lost more, {away} are "
            f"withheld, and the interval of {sum(row.covered for row in severe if not row.withheld)} of the other "
            f"{len(severe) - away} holds the truth"
        )
    return lines


def _line(label: str, rows: Sequence[Estimated]) -> str:
    shown = [row for row in rows if not row.withheld]
    covered = f"{np.mean([row.covered for row in shown]):.0%}" if shown else "-"
    errors = (f"{100 * _mean(shown, name):>{len(text)}.1f}" for name, text in METHODS.items())
    return f"{label:>12} {len(rows):>8} {len(rows) - len(shown):>8} {covered:>8}  " + "  ".join(errors)


def _mean(rows: Sequence[Estimated], method: str = "estimated") -> float:
    return float(np.mean([row.error(method) for row in rows])) if rows else float("nan")
