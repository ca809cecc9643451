"""A model's story as one HTML file: without scripts, loading nothing, to be read in a browser or printed.

All texts are escaped and bounded, and so are all tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment

from perennial.event_wording import title, what, why
from perennial.pages import page_environment
from perennial.story import Judgement, Story

MOST_BYTES: Final = 3_000_000
_CLASSES: Final = 100
_EVENTS: Final = 300
_JUDGEMENTS: Final = 20
_PERIODS: Final = 100
_COMPARISONS: Final = 20
_LINEAGE: Final = 50
_NUMBERS: Final = 200
_DEPTH: Final = 6
_COMPARED: Final = ("champion", "challenger", "difference")
_SLICES: Final = {"fresh": "Fresh labelled captures", "old": "The champion's held-out images"}
_TONES: Final = {"live": "good", "refused": "bad", "rolled back": "bad", "waiting": "caution"}
_METRICS: Final = {"macro_f1": "Macro-F1", "nll": "Log-loss, in nats", "ece": "Calibration error (ECE)"}
_STATUS: Final = {
    "live": "It answers now.",
    "replaced": "It was live; another version took its place.",
    "rolled back": "It was live and was undone.",
    "refused": "The gate refused it; it was never live.",
    "waiting": "The gate asked for more labels; it was never live.",
    "never live": "It was made, but never live.",
}


def render(story: Story) -> str:
    """HTML of at most `MOST_BYTES`."""
    manifest = story.model.manifest
    classes = sorted(manifest.per_class.items(), key=lambda item: item[1].recall.value if item[1].support else 2.0)
    return (
        _environment()
        .get_template("story.html")
        .render(
            story=story,
            manifest=manifest,
            metrics=[(_METRICS.get(name, title(name).capitalize()), found) for name, found in manifest.metrics.items()],
            tone=_TONES.get(story.status, "plain"),
            sentence=_STATUS[story.status],
            lineage=story.lineage[:_LINEAGE],
            classes=classes[:_CLASSES],
            unlisted=max(0, len(classes) - _CLASSES),
            judgements=[(each, slices(each), numbers(each)) for each in story.judgements[-_JUDGEMENTS:]],
            earlier_judgements=max(0, len(story.judgements) - _JUDGEMENTS),
            periods=story.periods[-_PERIODS:],
            comparisons=story.comparisons[-_COMPARISONS:],
            earlier_periods=max(0, len(story.periods) - _PERIODS),
            events=story.events[-_EVENTS:],
            earlier_events=max(0, len(story.events) - _EVENTS),
        )
    )


def slices(judgement: Judgement) -> list[tuple[str, Mapping[str, Any]]]:
    """What both models were compared on, and how each did."""
    return [
        (_SLICES.get(name, title(name).capitalize()), found)
        for name, found in judgement.gate.items()
        if isinstance(found, Mapping) and all(isinstance(found.get(key), Mapping) for key in _COMPARED)
    ]


def numbers(judgement: Judgement) -> list[tuple[str, str]]:
    """Everything in the gate's decision but its rules, as names and values."""
    rest = {key: value for key, value in judgement.gate.items() if key not in ("rules", "why", "outcome")}
    return list(_flat(rest, ""))[:_NUMBERS]


def _flat(value: Any, name: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and depth < _DEPTH:
        for key, inner in value.items():
            yield from _flat(inner, f"{name} {title(str(key))}".strip(), depth + 1)
    elif isinstance(value, list | tuple) and depth < _DEPTH:
        for at, inner in enumerate(value):
            yield from _flat(inner, f"{name} {at + 1}", depth + 1)
    elif value is not None:
        yield name, f"{value:.4g}" if isinstance(value, float) else str(value)


def _environment() -> Environment:
    environment = page_environment(Path(__file__).parent / "pages")
    environment.filters |= {
        "name": lambda text: _short(text, 100),
        "text": lambda text: _short(text, 1500),
        "count": lambda number: f"{number:,}",
        "moment": _moment,
        "duration": duration,
        "share": _interval,
        "points": _points,
        "plain": lambda number: f"{number:.3g}",
        "title": title,
        "what": what,
        "why": why,
        "place": lambda share: f"{100 * min(1.0, max(0.0, share)):.1f}%",
    }
    return environment


def duration(seconds: float) -> str:
    """`42 s`, `3 min`, `5 h 20 min`, `12 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{seconds / 86_400:,.1f} days"


def _short(text: Any, length: int) -> str:
    whole = str(text)
    return whole if len(whole) <= length else f"{whole[: length - 1]}…"


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"


def _interval(found: Any) -> str:
    """An estimate, of a manifest or of a gate's JSON."""
    value, low, high = (100 * number for number in _three(found))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def _points(found: Any) -> str:
    value, low, high = (100 * number for number in _three(found))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _three(found: Any) -> tuple[float, float, float]:
    if isinstance(found, Mapping):
        return float(found["value"]), float(found["low"]), float(found["high"])
    return found.value, found.low, found.high
