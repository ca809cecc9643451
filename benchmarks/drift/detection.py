"""How often each method alarms, in the form of Failing Loudly, with the column that it lacks: no shift at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.drift.methods import METHODS, Sides
from benchmarks.drift.worlds import Indexes, World, joined

NONE: Final = "none"
KNOCK_OUT: Final = "knock-out"
#: name -> (the change of pixels, what is done to the classes)
SHIFTS: Final[dict[str, tuple[str, str]]] = {
    NONE: ("", ""),
    **{f"noise {size}": (f"noise {size}", "") for size in ("small", "medium", "large")},
    **{f"image {size}": (f"image {size}", "") for size in ("small", "medium", "large")},
    KNOCK_OUT: ("", KNOCK_OUT),
    "image medium, knock-out": ("image medium", KNOCK_OUT),
    "image medium, one class": ("image medium", "one class"),
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
    window, rest = order[:rows], order[rows:]
    if reference == EQUAL:
        rest = rest[:rows]
    if len(window) < rows or len(rest) < min(rows, 200):
        return None
    change, classes = SHIFTS[shift]
    if classes:
        window = _of_other_classes(world, window, order[rows + len(rest) :], classes, delta, random)
    changed = np.zeros(len(window), dtype=bool)
    if change:
        changed[random.permutation(len(window))[: round(delta * len(window))]] = True
    parts = [world.scores[""].take(window[~changed]), world.scores[change].take(window[changed])]
    pixels = [world.components[""][window[~changed]], world.components[change][window[changed]]]
    return Sides(world.reference(rest), joined(parts), world.components[""][rest], np.concatenate(pixels), seed)


def _of_other_classes(
    world: World, window: Indexes, spare: Indexes, classes: str, delta: float, random: np.random.Generator
) -> Indexes:
    """Without a share delta of the first class's images, or with its images alone; as many rows as there are images
    for."""
    first = world.labels[window] == world.classes[0]
    if classes == KNOCK_OUT:
        gone = np.flatnonzero(first)[: round(delta * int(first.sum()))]
        kept = np.delete(window, gone)
        more = spare[world.labels[spare] != world.classes[0]][: len(gone)]
        return np.concatenate([kept, more])
    return window[first]


def measure(
    world: World,
    *,
    sizes: Sequence[int],
    references: Sequence[str],
    shifts: Sequence[str],
    seeds: int,
    clean: int,
    methods: Sequence[str],
    say: Callable[[str], None],
) -> list[Cell]:
    """`clean` is how many windows without a shift are drawn."""
    found = []
    for reference in references:
        for rows in sizes:
            for shift in shifts:
                for delta in DELTAS if shift != NONE else (0.0,):
                    drawn = [
                        sides
                        for seed in range(clean if shift == NONE else seeds)
                        if (sides := draw(world, rows, reference, shift, delta, seed)) is not None
                    ]
                    if not drawn:
                        continue
                    for method in methods:
                        alarms = sum(METHODS[method](sides) for sides in drawn)
                        found.append(Cell(world.name, reference, rows, shift, delta, method, alarms, len(drawn)))
                    line = ", ".join(
                        f"{cell.method} {cell.alarms / cell.trials:.2f}" for cell in found[-len(methods) :]
                    )
                    say(f"{world.name}, {rows} against {reference}, {shift} {delta:g}: {line}")
    return found
