"""How often each method alarms, in the form of Failing Loudly, with the column that it lacks: no shift at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.drift import trials
from benchmarks.drift.methods import METHODS, Sides
from benchmarks.drift.worlds import Indexes, World, joined

NONE: Final = "none"
KNOCK_OUT: Final = "knock-out"
ONE_CLASS: Final = "one class"
#: name -> (the change of pixels, what is done to the classes)
SHIFTS: Final[dict[str, tuple[str, str]]] = {
    NONE: ("", ""),
    **{f"noise {size}": (f"noise {size}", "") for size in ("small", "medium", "large")},
    **{f"image {size}": (f"image {size}", "") for size in ("small", "medium", "large")},
    KNOCK_OUT: ("", KNOCK_OUT),
    "image medium, knock-out": ("image medium", KNOCK_OUT),
    "image medium, one class": ("image medium", ONE_CLASS),
}
DELTAS: Final = (0.1, 0.5, 1.0)
SIZES: Final = (50, 100, 200, 500, 1000)
#: What the window is compared with: as many rows, or all that are left.
EQUAL, FULL = "n", "full"


@dataclass(frozen=True)
class Cell:
    """`alarms` of `trials`: re-splits of the same images."""

    world: str
    reference: str
    rows: int
    shift: str
    delta: float
    method: str
    alarms: int
    trials: int


def draw(world: World, rows: int, reference: str, shift: str, delta: float, seed: int) -> Sides | None:
    """A window and its reference, which share no image; None where there are too few."""
    random = np.random.default_rng([seed, rows])
    order = random.permutation(len(world))
    change, classes = SHIFTS[shift]
    if classes == ONE_CLASS:
        window, rest = _of_one_class(world, order, rows)
    else:
        window, rest = order[:rows], order[rows:]
        if len(window) < rows:
            return None
    if reference == EQUAL:
        rest = rest[:rows]
    if len(rest) < min(rows, 200):
        return None
    if classes == KNOCK_OUT:
        window = _knocked_out(world, window, order[rows + len(rest) :], delta)
    changed = np.zeros(len(window), dtype=bool)
    if change:
        changed[random.permutation(len(window))[: round(delta * len(window))]] = True
    parts = [world.scores[""].take(window[~changed]), world.scores[change].take(window[changed])]
    pixels = [world.components[""][window[~changed]], world.components[change][window[changed]]]
    return Sides(world.reference(rest), joined(parts), world.components[""][rest], np.concatenate(pixels), seed)


def _knocked_out(world: World, window: Indexes, spare: Indexes, delta: float) -> Indexes:
    """Without a share delta of the first class's images; as many rows as there are images for."""
    first = world.labels[window] == world.classes[0]
    gone = np.flatnonzero(first)[: round(delta * int(first.sum()))]
    more = spare[world.labels[spare] != world.classes[0]][: len(gone)]
    return np.concatenate([np.delete(window, gone), more])


def _of_one_class(world: World, order: Indexes, rows: int) -> tuple[Indexes, Indexes]:
    """The first class's images alone, up to half of them; and all others."""
    first = order[world.labels[order] == world.classes[0]]
    window = first[: min(rows, len(first) // 2)]
    return window, order[~np.isin(order, window)]


@dataclass(frozen=True)
class _Task:
    reference: str
    rows: int
    shift: str
    delta: float
    seeds: int
    methods: tuple[str, ...]


def measure(
    world: World,
    *,
    sizes: Sequence[int],
    references: Sequence[str],
    shifts: Sequence[str],
    seeds: int,
    clean: int,
    methods: Sequence[str],
    jobs: int,
    say: Callable[[str], None],
) -> list[Cell]:
    """`clean` is how many windows without a shift are drawn."""
    tasks = [
        _Task(reference, rows, shift, delta, clean if shift == NONE else seeds, tuple(methods))
        for reference in references
        for rows in sizes
        for shift in shifts
        for delta in (DELTAS if shift != NONE else (0.0,))
    ]
    found = []
    for task, cells in zip(tasks, trials.run(_cells, world, tasks, jobs), strict=True):
        if cells:
            line = ", ".join(f"{cell.method} {cell.alarms / cell.trials:.2f}" for cell in cells)
            say(f"{world.name}, {task.rows} against {task.reference}, {task.shift} {task.delta:g}: {line}")
        found += cells
    return found


def _cells(world: World, task: _Task) -> list[Cell]:
    alarms, drawn = dict.fromkeys(task.methods, 0), 0
    for seed in range(task.seeds):
        sides = draw(world, task.rows, task.reference, task.shift, task.delta, seed)
        if sides is None:
            continue
        drawn += 1
        for method in task.methods:
            alarms[method] += METHODS[method](sides)
    return [
        Cell(world.name, task.reference, task.rows, task.shift, task.delta, method, count, drawn)
        for method, count in alarms.items()
        if drawn
    ]


def summary(cells: Sequence[Cell]) -> list[str]:
    """Lines: of the shifted windows those that alarm, by rows, and in brackets of those without a shift."""
    lines = []
    for world, reference in dict.fromkeys((cell.world, cell.reference) for cell in cells):
        mine = [cell for cell in cells if (cell.world, cell.reference) == (world, reference)]
        sizes = sorted({cell.rows for cell in mine})
        lines.append(f"{world}, against {reference}: shifted windows told (clean windows that alarm), by rows")
        lines.append(f"{'':36}" + "".join(f"{size:>14}" for size in sizes))
        for method in dict.fromkeys(cell.method for cell in mine):
            of = [[cell for cell in mine if (cell.method, cell.rows) == (method, size)] for size in sizes]
            told = (f"{_share(each, clean=False):.3f} ({_share(each, clean=True):.3f})" for each in of)
            lines.append(f"{method:36}" + "".join(f"{each:>14}" for each in told))
    return lines


def _share(cells: Sequence[Cell], *, clean: bool) -> float:
    kept = [cell for cell in cells if (cell.shift == NONE) == clean]
    return sum(cell.alarms for cell in kept) / max(1, sum(cell.trials for cell in kept))
