"""How often a window alarms in which nothing changed, beside the rate that Perennial states; every family, labels too.

There are not images enough for large windows that share none with their reference. So both are drawn, with
replacement, from the scores of one set of images, and each row is jittered by a tenth of a standard deviation: two
samples of one smooth distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import binomtest

from benchmarks.drift import trials
from benchmarks.drift.worlds import Indexes, World, window_of
from monitoring.attribution import attribute
from monitoring.check import expected_false_alarms
from monitoring.comparison import families_of
from monitoring.evidence import gather
from monitoring.persistence import Persistence
from monitoring.verdict import CALM
from monitoring.window import Reference, Scores
from perennial.graph import PROPERTIES
from perennial.settings_sections import MonitorSettings

SIZES: Final = (200, 500, 1000, 5000)
_REFERENCE: Final = 1000  # rows
_JITTER: Final = 0.1


@dataclass(frozen=True)
class Rate:
    """`alarms` of `trials` windows; `low` and `high` are Wilson's 95 % interval of their rate, `stated` is what the
    check itself prints for it."""

    world: str
    rows: int
    alarms: int
    trials: int
    low: float
    high: float
    stated: float


@dataclass(frozen=True)
class _Task:
    rows: int
    seed: int


def measure(world: World, *, sizes: Sequence[int], repeats: int, jobs: int, say: Callable[[str], None]) -> list[Rate]:
    found = []
    for rows in sizes:
        drawn = list(trials.run(_alarms, world, [_Task(rows, seed) for seed in range(repeats)], jobs))
        alarms = sum(alarm for alarm, _ in drawn)
        low, high = _interval(alarms, repeats)
        found.append(Rate(world.name, rows, alarms, repeats, low, high, max(stated for _, stated in drawn)))
        say(f"{world.name}, {rows} rows: {alarms} alarms in {repeats} clean windows, stated {found[-1].stated:.2%}")
    return found


def summary(rates: Sequence[Rate]) -> list[str]:
    """One line a world: all sizes together."""
    lines = []
    for world in dict.fromkeys(rate.world for rate in rates):
        mine = [rate for rate in rates if rate.world == world]
        alarms, windows = sum(rate.alarms for rate in mine), sum(rate.trials for rate in mine)
        low, high = _interval(alarms, windows)
        lines.append(
            f"{world}: {alarms} alarms in {windows} clean windows, {alarms / windows:.2%} ({low:.2%} to {high:.2%}); "
            f"stated is {max(rate.stated for rate in mine):.2%} at most"
        )
    return lines


def _alarms(world: World, task: _Task) -> tuple[bool, float]:
    """Whether a clean window alarms, and the rate that its check would print."""
    random = np.random.default_rng([task.seed, task.rows])
    plain = world.scores[""]
    reference = _jittered(plain, random.integers(len(plain), size=_REFERENCE), random)
    window = window_of(_jittered(plain, random.integers(len(plain), size=task.rows), random))
    settings = MonitorSettings(min_rows=min(200, task.rows))
    held_out = np.ones(_REFERENCE, dtype=bool)
    known = Reference(world.classes, PROPERTIES, reference, held_out, chance=world.chance)
    evidence = gather(known, window, settings).evidence
    expected = expected_false_alarms(Persistence(), families_of(evidence), settings.alpha, window)
    return attribute(evidence)[0] not in CALM, expected.rate if expected is not None else 0.0


def _jittered(scores: Scores, rows: Indexes, random: np.random.Generator) -> Scores:
    drawn = scores.take(rows)

    def near(values: np.ndarray, spread: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return (values + _JITTER * spread * random.normal(size=values.shape)).astype(np.float32)

    logits = np.log(np.maximum(drawn.probabilities, 1e-9))
    shaken = np.exp(near(logits, np.log(np.maximum(scores.probabilities, 1e-9)).std(axis=0)))
    probabilities = (shaken / shaken.sum(axis=1, keepdims=True)).astype(np.float32)
    # Who was right stays so: the prediction is the image's, only its sureness is shaken.
    return Scores(
        probabilities,
        near(drawn.embedding, scores.embedding.std(axis=0)),
        near(drawn.properties, scores.properties.std(axis=0)),
        drawn.predicted,
        probabilities.max(axis=1),
        drawn.labels,
        tuple(f"{at}" for at in range(len(rows))),
    )


def _interval(count: int, of: int) -> tuple[float, float]:

    found = binomtest(count, of).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
