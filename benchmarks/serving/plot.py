"""The picture of docs/benchmarks.md, from the CSV file: `python -m benchmarks.serving.plot CSV SVG`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.serving.results import CLOSED, THROUGHPUT, Measurement, medians, read, throughput

_NAMES: Final = {
    "limit": "no HTTP: decode, resize, infer",
    "perennial": "Perennial, recording",
    "perennial_capture": "Perennial, recording, keeping images",
    "fastapi": "FastAPI, ONNX Runtime, Pillow",
    "bentoml": "BentoML batchable, eager torch",
    "litserve": "LitServe, eager torch",
}
# Okabe and Ito's colours, which are told apart without colour vision as well.
_COLOURS: Final = dict(zip(_NAMES, ("#999999", "#0072b2", "#56b4e9", "#e69f00", "#009e73", "#cc79a7"), strict=True))
_QUANTILES: Final = (("latency_p50", "p50", "-"), ("latency_p99", "p99", "--"), ("latency_p999", "p99.9", ":"))


def draw(rows: Sequence[Measurement], about: Mapping[str, str], path: Path) -> None:
    """Answers a second by stack, and latency in the open loop where it was measured."""
    found = medians(rows)
    images = list(dict.fromkeys(row.image for row in rows if row.metric == THROUGHPUT))
    opened = [row for row in rows if row.load.startswith("open ")]
    panels = len(images) + bool(opened)
    # The same picture from the same numbers, byte for byte, and text that stays text.
    with mpl.rc_context({"svg.hashsalt": "perennial", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(5.2 * panels, 3.8), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for axis, image in zip(axes, images, strict=False):
            _bars(axis, found, rows, image)
        if opened:
            _latency(axes[-1], found, opened)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(f"{about.get('hardware', '')}; {about.get('network', '')}", fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _bars(
    axis: Any, found: Mapping[tuple[str, str, str, int, str], float], rows: Sequence[Measurement], image: str
) -> None:
    closed = [row for row in rows if row.image == image and row.load == CLOSED and row.metric == THROUGHPUT]
    counts = sorted({row.clients for row in closed if row.stack != "limit"})
    stacks = [name for name in _NAMES if any(row.stack == name for row in closed)]
    width = 0.8 / max(1, len(stacks))
    for place, stack in enumerate(stacks):
        rates = [throughput(found, stack, image, count) for count in counts]
        at = [index + (place - (len(stacks) - 1) / 2) * width for index in range(len(counts))]
        bars = axis.bar(at, rates, width * 0.95, label=_NAMES[stack], color=_COLOURS[stack])
        axis.bar_label(bars, fmt="%.3g", fontsize=6, padding=1)
    axis.set_xticks(range(len(counts)), [f"{count} client{'s' if count > 1 else ''}" for count in counts])
    axis.set_title(f"{image} JPEG: answers a second")
    axis.spines[["top", "right"]].set_visible(False)


def _latency(axis: Any, found: Mapping[tuple[str, str, str, int, str], float], rows: Sequence[Measurement]) -> None:
    loads = sorted({row.load for row in rows}, key=lambda load: int(load.split()[1].rstrip("%")))
    for stack, image in dict.fromkeys((row.stack, row.image) for row in rows):
        for metric, name, style in _QUANTILES:
            values = [found.get((stack, image, load, 0, metric), float("nan")) for load in loads]
            axis.plot(range(len(loads)), values, style, marker="o", markersize=3, color=_COLOURS[stack])
            if stack == rows[0].stack:
                axis.annotate(name, (len(loads) - 1, values[-1]), xytext=(4, 0), textcoords="offset points", fontsize=7)
    axis.set_yscale("log")
    axis.set_xticks(range(len(loads)), [load.removeprefix("open ") for load in loads])
    axis.set_xlabel("Poisson arrivals, share of each stack's own capacity")
    axis.set_title(f"{rows[0].image} JPEG: latency in ms, from when a request was due")
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    measured, said = read(Path(sys.argv[1]))
    draw(measured, said, Path(sys.argv[2]))
