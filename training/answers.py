"""What models answer on the rows that they are judged by, without asking again what they have answered already.

A bundle's reference rows were scored by the very graph that is judged, on the same runtime. A sample of them is asked
anew all the same: if one answer is not the one that is known (another processor, another version of the runtime, a
graph that is not what its bundle says), all rows are asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from perennial.bundle import Bundle
from perennial.graph import OUTPUTS, Graph, GraphOutput
from perennial.images import ImageLimits, InputRule
from perennial.progress import Progress, silent
from training.datasets import DEFAULT_LIMITS, Row
from training.evaluate import score_each

#: So many of a model's known answers on the rows at hand are asked for anew.
SAMPLE: Final = 64
#: Most that a known probability may be off. On one processor a graph gives the same to the last bit.
_TOLERANCE: Final = 1e-3

Numbers = tuple[NDArray[np.float32], ...]  # of one image: its probabilities [K], embedding [E] and properties [P]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a graph said in float32: `output` has a row for each of the images `digests` [N]."""

    digests: tuple[str, ...] = ()
    output: GraphOutput | None = None

    def by_digest(self) -> dict[str, Numbers]:
        return dict(zip(self.digests, _by_row(self.output), strict=True)) if self.output is not None else {}


def recorded(bundle: Bundle) -> Answers:
    """Those of a bundle's float32 reference."""
    table = pq.read_table(bundle.reference, columns=["image_digest", *OUTPUTS])
    if not table.num_rows:
        return Answers()
    columns = (np.array(table[name].to_pylist(), np.float32) for name in OUTPUTS)
    return Answers(tuple(table["image_digest"].to_pylist()), GraphOutput(*columns))


def answers(
    graphs: Mapping[str, Graph],
    rules: Mapping[str, InputRule],
    rows: Sequence[Row],
    known: Mapping[str, Answers],
    limits: ImageLimits = DEFAULT_LIMITS,
    progress: Progress = silent,
    *,
    threads: int = 0,
) -> dict[str, GraphOutput]:
    """What each graph says of all rows [N], in their order. Raises as `training.evaluate.score_each` does.

    Args:
        rules: how each graph's images are prepared. Where graphs see them alike, each image is decoded once.
        known: what some of the graphs are known to say, which is taken where the sample confirms it.
    """
    sides = {name: _Side(rows, known.get(name, Answers())) for name in graphs}
    while any(side.to_ask for side in sides.values()):
        together: dict[tuple[str, ...], list[int]] = {}
        for at in range(len(rows)):
            for rule in set(rules.values()):
                asked = tuple(name for name, side in sides.items() if rules[name] == rule and at in side.to_ask)
                together.setdefault(asked, []).append(at)
        together.pop((), None)
        for names, places in together.items():
            some, rule = {name: graphs[name] for name in names}, rules[names[0]]
            found = score_each(some, [rows[at] for at in places], rule, limits, progress, threads=threads)
            for name, output in found.items():
                sides[name].take(places, output)
        for side in sides.values():
            side.settle()
    return {name: side.output() for name, side in sides.items()}


class _Side:
    """One graph: the rows that are still `to_ask`, by their place, and its answers so far."""

    def __init__(self, rows: Sequence[Row], known: Answers) -> None:
        said = {digest: numbers for digest, numbers in known.by_digest().items() if _finite(numbers)}
        self._known = {at: said[row.digest] for at, row in enumerate(rows) if row.digest in said}
        self._asked: dict[int, Numbers] = {}
        # The lowest digests are a random draw, and much the same one for each model: fewer images are decoded.
        self._sample = sorted(self._known, key=lambda at: rows[at].digest)[:SAMPLE]
        self._every = range(len(rows))
        self.to_ask = {*self._every} - {*self._known} | {*self._sample}

    def take(self, places: Sequence[int], output: GraphOutput) -> None:
        self._asked |= zip(places, _by_row(output), strict=True)

    def settle(self) -> None:
        """After all that was to be asked: what is known stands, or the rest is to be asked too."""
        if not all(_alike(self._known[at], self._asked[at]) for at in self._sample):
            self._known = {}
        self._sample = []
        self.to_ask = {*self._every} - {*self._known} - {*self._asked}

    def output(self) -> GraphOutput:
        said = self._known | self._asked
        return GraphOutput(*(np.stack(column) for column in zip(*(said[at] for at in self._every), strict=True)))


def _by_row(output: GraphOutput) -> list[Numbers]:
    return list(zip(*(getattr(output, name) for name in OUTPUTS), strict=True))


def _finite(numbers: Numbers) -> bool:
    return all(np.isfinite(each).all() for each in numbers)


def _alike(known: Numbers, asked: Numbers) -> bool:
    if [each.shape for each in known] != [each.shape for each in asked]:
        return False
    # Written so that a number that is none counts as far apart.
    return bool(np.abs(known[0] - asked[0]).max() <= _TOLERANCE)
