"""The picture of accuracy without labels, from its CSV file: `python -m benchmarks.drift.accuracy_plot CSV SVG`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.drift.accuracy import LOST, METHODS, Estimated

# Okabe and Ito's colours, which are told apart without colour vision as well.
_COLOURS: Final = dict(zip(METHODS, ("#0072b2", "#e69f00", "#56b4e9", "#999999", "#cc79a7"), strict=True))
_WITHHELD: Final = "#d55e00"


def read(path: Path) -> list[Estimated]:
    """The rows that `python -m benchmarks.drift --only accuracy` wrote."""
    kinds: dict[str, Any] = {"float": float, "int": int, "str": str, "bool": lambda text: text == "True"}
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Estimated(**{field.name: kinds[str(field.type)](row[field.name]) for field in fields(Estimated)})
            for row in csv.DictReader(file)
        ]


def draw(rows: Sequence[Estimated], path: Path) -> None:
    """For each world: estimate against truth with its interval, and the mean error by method and severity."""
    worlds = list(dict.fromkeys(row.world for row in rows))
    # The same picture from the same numbers, byte for byte, and text that stays text.
    with mpl.rc_context({"svg.hashsalt": "perennial", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(10.5, 3.8 * len(worlds)), layout="constrained")
        axes = figure.subplots(len(worlds), 2, squeeze=False)
        for (left, right), world in zip(axes, worlds, strict=True):
            mine = [row for row in rows if row.world == world]
            _against_truth(left, mine)
            _errors(right, mine)
            left.set_title(f"{world}: each window")
            right.set_title(f"{world}: by accuracy lost")
            for axis in (left, right):
                axis.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _against_truth(axis: Any, rows: Sequence[Estimated]) -> None:
    shown, withheld = ([row for row in rows if row.withheld is kept] for kept in (False, True))
    axis.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    axis.vlines(
        [row.true for row in shown], [row.low for row in shown], [row.high for row in shown],
        color=_COLOURS["estimated"], linewidth=0.6, alpha=0.35,
    )  # fmt: skip
    axis.scatter(
        [row.true for row in shown], [row.estimated for row in shown], s=9, color=_COLOURS["estimated"],
        label="shown, with its interval",
    )  # fmt: skip
    axis.scatter(
        [row.true for row in withheld], [row.estimated for row in withheld], s=12, facecolors="none",
        edgecolors=_WITHHELD, label="withheld: would have been",
    )  # fmt: skip
    axis.set(xlabel="true accuracy of the window", ylabel="estimated", xlim=(0, 1.01), ylim=(0, 1.01))
    axis.legend(frameon=False, loc="upper left")


def _errors(axis: Any, rows: Sequence[Estimated]) -> None:
    shown = [row for row in rows if not row.withheld]
    width = 0.8 / len(METHODS)
    for place, (method, name) in enumerate(METHODS.items()):
        parts = [[row.error(method) for row in shown if least < row.lost <= most] for least, most in LOST]
        heights = [100 * float(np.mean(part)) if part else 0.0 for part in parts]
        axis.bar(np.arange(len(LOST)) + place * width, heights, width, color=_COLOURS[method], label=name)
    axis.set_xticks(
        np.arange(len(LOST)) + 0.4 - width / 2, [f"{100 * max(least, 0):.0f}-{100 * most:.0f}" for least, most in LOST]
    )
    axis.set(xlabel="accuracy lost, points", ylabel="mean error where shown, points")
    axis.legend(frameon=False, loc="upper left")


if __name__ == "__main__":
    draw(read(Path(sys.argv[1])), Path(sys.argv[2]))
