"""The picture of docs/monitoring.md, from the CSV files: `python -m benchmarks.drift.plot FOLDER SVG`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.drift.detection import FULL, NONE
from benchmarks.drift.methods import METHODS
from benchmarks.transfer import hardware

Row = dict[str, str]

# Okabe and Ito's colours, which are told apart without colour vision as well.
_COLOURS: Final = ("#0072b2", "#e69f00", "#f0c060", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")
_STYLES: Final = dict(zip(METHODS, _COLOURS, strict=True))
_CHANGE: Final = "blur"  # whose delay is drawn


def draw(folder: Path, path: Path) -> None:
    """Detection and false alarms by rows, and delay, of every world; what was not measured is left out."""
    detection, delay = (_read(folder / f"drift-{part}-{hardware()}.csv") for part in ("detection", "delay"))
    worlds = sorted({row["world"] for row in detection} | {row["world"] for row in delay})
    if not worlds:
        return
    # The same picture from the same numbers, byte for byte, and text that stays text.
    with mpl.rc_context({"svg.hashsalt": "perennial", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(11.5, 3.4 * len(worlds)), layout="constrained")
        panels = figure.subplots(len(worlds), 3, squeeze=False)
        for axes, world in zip(panels, worlds, strict=True):
            mine = [row for row in detection if row["world"] == world and row["reference"] == FULL]
            _by_rows(axes[0], mine, lambda row: row["shift"] != NONE, f"{world}: shifted windows that are told")
            _by_rows(axes[1], mine, lambda row: row["shift"] == NONE, f"{world}: clean windows that alarm")
            _delays(axes[2], [row for row in delay if row["world"] == world], world)
        handles, names = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _by_rows(axis: Any, rows: Sequence[Row], kept: Callable[[Row], bool], title: str) -> None:
    for method in (name for name in METHODS if any(row["method"] == name for row in rows)):
        cells = [row for row in rows if row["method"] == method and kept(row)]
        sizes = sorted({int(row["rows"]) for row in cells})
        shares = []
        for size in sizes:
            mine = [row for row in cells if int(row["rows"]) == size]
            shares.append(sum(int(row["alarms"]) for row in mine) / sum(int(row["trials"]) for row in mine))
        width = 2.2 if method == next(iter(METHODS)) else 1.1
        axis.plot(sizes, shares, marker="o", markersize=3, color=_STYLES[method], label=method, linewidth=width)
    axis.set(title=title, xscale="log", xlabel="rows of a window", ylim=(-0.02, 1.02))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.minorticks_off()
    if rows:
        sizes = sorted({int(row["rows"]) for row in rows})
        axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.spines[["top", "right"]].set_visible(False)


def _delays(axis: Any, rows: Sequence[Row], world: str) -> None:
    mine = [row for row in rows if row["change"] == _CHANGE]
    for ramp, style in zip(sorted({int(row["ramp"]) for row in mine}), ("-", "--", ":"), strict=False):
        shares = sorted({float(row["share"]) for row in mine})
        opened = [
            median(int(row["opened"]) or float("nan") for row in mine if _is(row, share, ramp)) for share in shares
        ]
        label = "at once" if ramp == 1 else f"over {ramp} windows"
        axis.plot(shares, opened, style, marker="o", markersize=3, color=_COLOURS[0], label=label)
    axis.set(title=f"{world}: windows until drift is opened ({_CHANGE})", xlabel="images changed in the end", ylim=0)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    if mine:
        axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def _is(row: Row, share: float, ramp: int) -> bool:
    return float(row["share"]) == share and int(row["ramp"]) == ramp


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
