"""The picture of docs/benchmarks.md: accuracy window by window, with changes and deployments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.loop.arms import ARMS
from benchmarks.loop.play import Window
from benchmarks.loop.streams import Stream

# Okabe and Ito's colours, which are told apart without colour vision as well.
_COLOURS: Final = dict(zip(ARMS, ("#999999", "#e69f00", "#56b4e9", "#cc79a7", "#0072b2"), strict=True))
_BAD: Final = "#d55e00"
_COLUMNS: Final = 2
_MANY: Final = 50  # windows; of more, means are drawn
_MEAN_OF: Final = 10


def draw(windows: Sequence[Window], streams: Mapping[str, Stream], path: Path) -> None:
    """A panel a stream, of its first seed: a dot is a deployment, a cross one that made it worse."""
    names = [name for name in streams if any(window.stream == name for window in windows)]
    # The same picture from the same numbers, byte for byte, and text that stays text.
    with mpl.rc_context({"svg.hashsalt": "perennial", "svg.fonttype": "none", "font.size": 9}):
        rows = -(-len(names) // _COLUMNS)
        figure = Figure(figsize=(11.5, 3.0 * rows), layout="constrained")
        panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
        for axis, name in zip(panels, names, strict=False):
            _stream(axis, [window for window in windows if window.stream == name and window.seed == 0], streams[name])
        for axis in panels[len(names) :]:
            axis.set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _stream(axis: Any, windows: Sequence[Window], stream: Stream) -> None:
    for arm in (name for name in ARMS if any(window.arm == name for window in windows)):
        mine = [window for window in windows if window.arm == arm]
        width = 2.2 if arm == list(ARMS)[-1] else 1.1
        step = _MEAN_OF if len(mine) > _MANY else 1
        means = [
            (start + (step + 1) / 2, sum(window.accuracy for window in mine[start : start + step]) / step)
            for start in range(0, len(mine) - step + 1, step)
        ]
        axis.plot(*zip(*means, strict=True), color=_COLOURS[arm], label=arm, linewidth=width)
        for bad, marker, colour, size in ((False, "o", _COLOURS[arm], 10), (True, "x", _BAD, 34)):
            at = [window for window in mine if window.deployed and window.bad == bad]
            axis.scatter(
                [window.window + 1 for window in at], [window.accuracy for window in at], marker=marker, color=colour,
                s=size, zorder=3,
            )  # fmt: skip
    for change in stream.changes:
        axis.axvline(change + 0.5, color="black", linestyle=":", linewidth=1)
    axis.set(title=stream.name, xlabel="window", ylim=(0, 1.02))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.spines[["top", "right"]].set_visible(False)
