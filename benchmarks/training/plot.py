"""The picture of docs/training.md, from the CSV files: `python -m benchmarks.training.plot FOLDER SVG`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.training import ladder, time_to_accuracy
from benchmarks.training.results import ACCURACY, SECONDS, Measurement, listed, read
from benchmarks.training.time_to_accuracy import SINCE_START
from benchmarks.transfer import hardware

#: The parts that are drawn.
PARTS: Final = ("time", "ladder")
_NAMES: Final = {
    time_to_accuracy.PROBE: "Perennial, linear probe",
    time_to_accuracy.AUTO: "Perennial, auto",
    time_to_accuracy.TUTORIAL: "PyTorch tutorial, frozen",
    time_to_accuracy.FASTAI: "fastai, fine_tune",
}
_RUNGS: Final = {
    "linear_probe": "linear probe", "partial": "partial", "full": "full", "scratch": "from scratch", "auto": "auto",
}  # fmt: skip
# Okabe and Ito's colours, which are told apart without colour vision as well.
_COLOURS: Final = dict(zip(_NAMES, ("#0072b2", "#56b4e9", "#e69f00", "#009e73"), strict=True))
_RUNG_COLOURS: Final = dict(zip(_RUNGS, ("#e69f00", "#009e73", "#cc79a7", "#999999", "#0072b2"), strict=True))


def draw(parts: Mapping[str, Sequence[Measurement]], about: Mapping[str, str], path: Path) -> None:
    """Accuracy against seconds of every contender, and the ladder's choice; what was not measured is left out."""
    drawn = [part for part in PARTS if parts.get(part)]
    if not drawn:
        return
    # The same picture from the same numbers, byte for byte, and text that stays text.
    with mpl.rc_context({"svg.hashsalt": "perennial", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(5.6 * len(drawn), 3.8), layout="constrained")
        axes = figure.subplots(1, len(drawn), squeeze=False)[0]
        for axis, part in zip(axes, drawn, strict=True):
            (_race if part == "time" else _ladder)(axis, parts[part])
            axis.spines[["top", "right"]].set_visible(False)
        figure.suptitle(about.get("hardware", ""), fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _race(axis: Any, rows: Sequence[Measurement]) -> None:
    for method in listed(rows, "method"):
        kind = method if method in _NAMES else method.partition("-")[0]
        label = _NAMES[kind] + (f"({method.partition('-')[2]})" if kind == time_to_accuracy.FASTAI else "")
        for seed in sorted({row.seed for row in rows if row.method == method and row.metric == SECONDS}):
            mine = [row for row in rows if (row.method, row.seed) == (method, seed)]
            whole = {row.metric: row.value for row in mine if not row.epoch}
            since = {row.epoch: row.value for row in mine if row.metric == SINCE_START}
            curve = [(since[row.epoch], row.value) for row in mine if row.metric == ACCURACY and row.epoch]
            style = {"color": _COLOURS[kind], "label": label if seed == 0 else None}
            if curve:
                axis.plot(*zip(*curve, strict=True), marker="o", markersize=2.5, linewidth=1, **style)
            else:
                axis.plot(whole[SECONDS], whole[ACCURACY], "D", markersize=6, linestyle="none", **style)
    axis.set_xscale("log")
    axis.set_xlabel("seconds since the process was started")
    axis.set_title("Ants and bees: accuracy on the validation photos")
    axis.legend(frameon=False, fontsize=8)


def _ladder(axis: Any, rows: Sequence[Measurement]) -> None:
    judged = ladder.judge(rows)
    for place, each in enumerate(judged):
        for name, value in (each.rungs | {"auto": each.auto}).items():
            marker, size = ("D", 7) if name == "auto" else ("o", 5)
            axis.plot(
                value, place, marker, color=_RUNG_COLOURS[name], markersize=size, linestyle="none",
                markerfacecolor="none" if name == "auto" else _RUNG_COLOURS[name],
                label=_RUNGS[name] if name not in axis.get_legend_handles_labels()[1] else None,
            )  # fmt: skip
    handles, labels = axis.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axis.legend(once.values(), once.keys(), frameon=False, fontsize=8)
    axis.set_yticks(range(len(judged)), [each.task for each in judged])
    axis.invert_yaxis()
    axis.grid(axis="y", linewidth=0.3)
    axis.set_title("Accuracy on the test images: each rung, and auto's choice")


def draw_from(folder: Path, path: Path) -> None:
    """The same from the CSV files of this machine in a folder."""
    parts: dict[str, Sequence[Measurement]] = {}
    about: dict[str, str] = {}
    for part in PARTS:
        file = file_of(folder, part)
        if file.exists():
            parts[part], about = read(file)
    draw(parts, about, path)


def file_of(folder: Path, part: str) -> Path:
    """The CSV file of a part, with the hardware in its name."""
    return folder / f"training-{part}-{hardware()}.csv"


if __name__ == "__main__":
    draw_from(Path(sys.argv[1]), Path(sys.argv[2]))
