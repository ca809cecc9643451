"""The report's pictures as inline SVG: no script, colours from the page's style, a title and a description each.

What a colour says is also said by a shape, a dash or a number beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from markupsafe import Markup, escape

from perennial.bundle import CurvePoint, Estimate
from training.errors import EmbeddingMap
from training.reliability import Reliability

#: So many series have a colour of their own, `--s0` to `--s7` of the style.
SERIES: Final = 8
_DASHES: Final = ("", "6 3", "2 3", "8 3 2 3", "1 4", "10 4", "4 2", "3 6")
_MOST_CURVE_POINTS: Final = 200

# Each about (0, 0), as a path with relative steps.
_SHAPES: Final = (
    "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "m-2.6-2.6h5.2v5.2h-5.2z",
    "m0-3.6l3.4 6h-6.8z",
    "m0-3.8l3.2 3.8l-3.2 3.8l-3.2-3.8z",
    "m-1-3.4h2v2.4h2.4v2h-2.4v2.4h-2v-2.4h-2.4v-2h2.4z",
)
_DOT: Final = "m-1.6 0a1.6 1.6 0 1 0 3.2 0a1.6 1.6 0 1 0-3.2 0z"


def track(estimate: Estimate, low: float, high: float, marks: Sequence[float] = (), kind: str = "") -> Markup:
    """A value as a dot and its interval as a bar, on an axis from `low` to `high`; each of `marks` is a thin line.
    As wide as its place; the numbers stand beside it in the text."""

    def at(value: float) -> str:
        return f"{_round(100 * min(1.0, max(0.0, (value - low) / (high - low))))}%"

    ticks = "".join(f'<line class="mark" x1="{at(mark)}" x2="{at(mark)}" y1="1" y2="17"/>' for mark in marks)
    return Markup(  # noqa: S704 - numbers and our own words only
        f'<svg class="track {escape(kind)}" width="100%" height="18" aria-hidden="true">'
        f'<line class="axis" x1="0" x2="100%" y1="9" y2="9"/>{ticks}'
        f'<line class="range" x1="{at(estimate.low)}" x2="{at(estimate.high)}" y1="9" y2="9"/>'
        f'<circle class="dot" cx="{at(estimate.value)}" cy="9" r="4.5"/></svg>'
    )


def swatch(at: int | None, dash: bool = False) -> Markup:
    """The sign of a series, for a legend: its shape, or its line; None is the rest."""
    width = 26 if dash and at is not None else 16
    if at is None:
        inside = f'<path class="rest" d="M8 8{_DOT}"/>'
    elif dash:
        line = f'class="line s{at % SERIES}" stroke-dasharray="{_DASHES[at % SERIES]}"'
        inside = f'<line {line} x1="0" x2="26" y1="8" y2="8"/>'
    else:
        inside = f'<path class="s{at % SERIES}" d="M8 8{_SHAPES[at % len(_SHAPES)]}"/>'
    return Markup(f'<svg class="swatch" width="{width}" height="16" aria-hidden="true">{inside}</svg>')  # noqa: S704


def curves(
    series: Sequence[tuple[int, str, Sequence[CurvePoint]]], by: str, level: float | None, level_name: str = ""
) -> Markup:
    """Learning curves: accuracy by `epoch` or by `seconds`. A series is its number, its name and its points; `level` is
    the accuracy whose arrival is compared."""
    points = [point for _, _, each in series for point in each]
    right = max(float(getattr(point, by)) for point in points) or 1.0
    ticks = _ticks(0.0, right)
    right = max(right, ticks[-1])
    bottom = min([point.accuracy for point in points] + ([level] if level is not None else []))
    bottom = max(0.0, math.floor(bottom * 10 - 0.25) / 10)
    frame = _Frame(0.0, right, bottom, 1.0)
    parts = [frame.grid(ticks, _ticks(bottom, 1.0), by if by == "seconds" else "epochs")]
    if level is not None:
        y = frame.y(level)
        parts.append(f'<line class="level" x1="{frame.left}" x2="{frame.right}" y1="{y}" y2="{y}"/>')
        place = f'x="{frame.right - 2}" y="{_round(y + 11)}" text-anchor="end"'
        parts.append(f'<text class="note" {place}>{escape(level_name)}</text>')
    for number, _, each in series:
        thinned = each if len(each) <= _MOST_CURVE_POINTS else each[:: math.ceil(len(each) / _MOST_CURVE_POINTS)]
        places = [f"{frame.x(getattr(point, by))},{frame.y(point.accuracy)}" for point in thinned]
        if len(places) > 1:
            parts.append(
                f'<polyline class="line s{number % SERIES}" stroke-dasharray="{_DASHES[number % SERIES]}" '
                f'points="{" ".join(places)}"/>'
            )
        end = places[-1].replace(",", " ")
        parts.append(f'<path class="s{number % SERIES}" d="M{end}{_SHAPES[number % len(_SHAPES)]}"/>')
    says = "; ".join(
        f"{name} ends at {100 * each[-1].accuracy:.1f} % after {each[-1].epoch} epochs, {each[-1].seconds:.1f} seconds"
        for _, name, each in series
    )
    return _svg(frame, f"Accuracy by {'epoch' if by == 'epoch' else 'second'} of training", says, parts)


def reliability_diagram(found: Reliability, name: str) -> Markup:
    """The share that was right (dot, with its interval) by confidence; on the diagonal the model is as often right as
    it says. The bars below are how many answers have that confidence."""
    frame = _Frame(0.0, 1.0, 0.0, 1.0, height=288, below=78)
    ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    parts = [frame.grid(ticks, ticks, "confidence", "right")]
    parts.append(f'<line class="ideal" x1="{frame.x(0)}" y1="{frame.y(0)}" x2="{frame.x(1)}" y2="{frame.y(1)}"/>')
    most = max(each.count for each in found.bins)
    base = frame.height - 2
    parts.append(f'<text x="{frame.left - 5}" y="{base - 22}" text-anchor="end">{most:,}</text>')
    parts.append(f'<text class="name" x="{frame.left + 6}" y="{base - 22}">answers</text>')
    for each in found.bins:
        x, y = frame.x(each.confidence), frame.y(each.accuracy.value)
        low, high = frame.y(each.accuracy.low), frame.y(each.accuracy.high)
        parts.append(f'<line class="range" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>')
        parts.append(f'<circle class="dot" cx="{x}" cy="{y}" r="{_round(3 + 3 * math.sqrt(each.count / most))}"/>')
        left, wide = _round(frame.x(each.low) + 0.7), _round(frame.x(each.high) - frame.x(each.low) - 1.4)
        tall = _round(max(1.0, 30 * each.count / most))
        top = _round(base - tall)
        parts.append(f'<rect class="bar" x="{left}" width="{wide}" y="{top}" height="{tall}"/>')
    says = "; ".join(
        f"{each.count} answers, {100 * each.confidence:.0f} % sure on average, {100 * each.accuracy.value:.0f} % right"
        for each in found.bins
    )
    return _svg(frame, f"Reliability {name}", says, parts)


def embedding_plane(found: EmbeddingMap, series: dict[int, int]) -> Markup:
    """The map. `series` gives classes a colour and a shape; the others are small and grey. Wrong answers are ringed."""
    width, height, edge = 560.0, 400.0, 14.0
    paths: dict[int | None, list[str]] = {}
    rings: list[str] = []
    for point in found.points:
        x, y = _round(edge + point.x * (width - 2 * edge)), _round(edge + (1 - point.y) * (height - 2 * edge))
        number = series.get(point.label)
        shape = _DOT if number is None else _SHAPES[number % len(_SHAPES)]
        paths.setdefault(number, []).append(f"M{x} {y}{shape}")
        if not point.right:
            rings.append(f'<circle class="ring" cx="{x}" cy="{y}" r="7"/>')
    parts = [f'<rect class="ground" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="10"/>']
    for number, places in sorted(paths.items(), key=lambda item: (item[0] is not None, item[0] or 0)):
        parts.append(
            f'<path class="{"rest" if number is None else f"s{number % SERIES}"} point" d="{"".join(places)}"/>'
        )
    says = f"{len(found.points)} test images by {found.method}, {len(rings)} of them answered wrongly and ringed"
    return _wrapped(width, height, "Map of the embeddings", says, [*parts, *rings], "map")


class _Frame:
    """Where numbers lie in a plot with axes."""

    def __init__(
        self, x_low: float, x_high: float, y_low: float, y_high: float, height: float = 250.0, below: float = 36.0
    ) -> None:
        self.width, self.height = 360.0, height
        self.left, self.right, self.top, self.bottom = 44.0, 350.0, 10.0, height - below
        self._x, self._y = (x_low, x_high - x_low or 1.0), (y_low, y_high - y_low or 1.0)

    def x(self, value: float) -> float:
        return _round(self.left + (value - self._x[0]) / self._x[1] * (self.right - self.left))

    def y(self, value: float) -> float:
        return _round(self.bottom - (value - self._y[0]) / self._y[1] * (self.bottom - self.top))

    def grid(self, xs: Sequence[float], ys: Sequence[float], x_name: str, y_name: str = "") -> str:
        parts = []
        shares: Callable[[float], str] = lambda value: f"{100 * value:.0f} %"  # noqa: E731
        for value in ys:
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{self.right}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="{self.left - 5}" y="{_round(y + 3.5)}" text-anchor="end">{shares(value)}</text>')
        share = x_name == "confidence"
        for value in xs:
            text = shares(value) if share else f"{value:g}"
            parts.append(f'<text x="{self.x(value)}" y="{self.bottom + 14}" text-anchor="middle">{text}</text>')
        middle = (self.left + self.right) / 2
        parts.append(f'<text class="name" x="{middle}" y="{self.bottom + 29}" text-anchor="middle">{x_name}</text>')
        if y_name:
            parts.append(f'<text class="name" x="{self.left + 6}" y="{self.top + 8}">{y_name}</text>')
        return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers that span low..high."""
    span = high - low or 1.0
    step = 10.0 ** math.floor(math.log10(span / 3))
    for factor in (1, 2, 5, 10):
        if span / (step * factor) <= 6:
            step *= factor
            break
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(at * step, 10) for at in range(first, last + 1)]


def _round(value: float) -> float:
    return round(float(value), 1)


def _svg(frame: _Frame, title: str, says: str, parts: Sequence[str]) -> Markup:
    return _wrapped(frame.width, frame.height, title, says, parts, "plot")


def _wrapped(width: float, height: float, title: str, says: str, parts: Sequence[str], kind: str) -> Markup:
    # All names in `parts` were escaped where they were put in.
    return Markup(  # noqa: S704
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title><desc>{escape(says)}</desc>{''.join(parts)}</svg>"
    )
