"""A check for people: one HTML file that needs nothing else and may be printed, Evidently's report at its end.

Its own part has no script, and nothing in it loads anything: a policy in its head forbids to. Evidently's part needs
scripts, so it is in a frame of an origin of its own, out of which it reaches nothing; that policy holds there too, and
allows scripts only on a page with such a frame. All names and texts are escaped, all counts, lengths and pictures
bounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment
from markupsafe import Markup

from monitoring import wording
from monitoring.attribution import describe
from monitoring.breakdown import ClassChange, PropertyChange, Recall, class_changes, property_changes
from monitoring.detectors import Column, Family
from monitoring.examples import Example, Why
from monitoring.pictures import captured_pictures
from monitoring.verdict import CALM
from monitoring.window import Reference, Window
from perennial.images import ImageLimits, InputRule
from perennial.pages import page_environment
from perennial.settings import Settings
from perennial.storage import Storage
from perennial.thumbnails import data_uri

#: Of the whole page. Evidently's part, 4 to 5.4 MB of it, is left out where it would be larger.
MOST_BYTES: Final = 6_000_000
_MOST_TEXT: Final = 200_000
_MOST_CLASSES: Final = 40
_STANDS_OUT: Final = 2.0  # standard deviations
_FAMILIES: Final = {
    "properties": "image properties",
    "output": "probabilities and confidence",
    "class_mix": "predicted classes",
    "embedding": "embedding",
    "novelty": "images like nothing known",
    "embedding_within_classes": "embedding, class mix taken out",
    "labels": "labels",
}
_TONES: Final = {"ok": "good", "insufficient_data": "caution"}


@dataclass(frozen=True, slots=True)
class Shown:
    """What a page is made of. `check` is the document of a check made `at` a moment; `compared` of the window's images
    were compared, and `captured` of these are kept. `pictures` has by URL a captured image's data URI, or None and why
    there is none; `thumbnails` by digest a reference image's data URI. `evidently` is its report as HTML, or it is
    `missing` for a reason."""

    check: Mapping[str, Any]
    at: datetime
    compared: int
    captured: int
    properties: Sequence[PropertyChange] = ()
    classes: Sequence[ClassChange] = ()
    examples: Sequence[Example] = ()
    pictures: Mapping[str, tuple[str | None, str]] = field(default_factory=dict)
    thumbnails: Mapping[str, str] = field(default_factory=dict)
    evidently: str | None = None
    missing: str = ""


def render(shown: Shown) -> str:
    """HTML of at most `MOST_BYTES`."""
    check = shown.check
    verdict = str(check["verdict"])
    frame = None if shown.evidently is None else _framed(shown.evidently)
    too_large = frame is not None and len(frame.encode()) > MOST_BYTES - _MOST_TEXT - _bytes_of_pictures(shown)
    return (
        _environment()
        .get_template("page.html")
        .render(
            shown=shown,
            check=check,
            tone=_TONES.get(verdict, "bad"),
            sentence=wording.VERDICTS[verdict],
            state=wording.STATES[check["state"]],
            next_step=wording.next_step(verdict, retrain_due=check["retrain"]["due"]),
            false_alarms=wording.false_alarms(check["false_alarms"]) if check["false_alarms"] else "",
            changed=verdict not in CALM,
            accuracy=_best_known(check["accuracy"]),
            contradicted=any(example.why is Why.CONTRADICTED for example in shown.examples),
            asked_of_labels=verdict == "concept_drift",
            classes=shown.classes[:_MOST_CLASSES],
            unlisted=max(0, len(shown.classes) - _MOST_CLASSES),
            share_axis=max((max(each.share_before, each.share_now) for each in shown.classes), default=1.0),
            families=[(_FAMILIES.get(name, name), family) for name, family in check["families"].items()],
            frame=None if too_large else frame,
            too_large=too_large,
        )
    )


def of_check(
    check: Mapping[str, Any],
    settings: Settings,
    rule: InputRule,
    reference: Reference,
    window: Window,
    *,
    properties: Family | None,
    examples: Sequence[Example],
    thumbnails: Mapping[str, bytes],
    evidently: str | None,
    missing: str = "",
) -> str:
    """The page of a check, with its pictures out of the storage; one that cannot be had is said so.

    Args:
        check: its document.
        rule: how the model's input is made of an image.
        thumbnails: JPEG by digest, of reference images.
        evidently: its report, a page of its own; or it is `missing` for a reason.
    """
    limits = ImageLimits(settings.serve.max_bytes, settings.serve.max_pixels)
    urls = [example.image_url for example in examples]
    near = {neighbour.digest for example in examples for neighbour in example.nearest}
    return render(
        Shown(
            check,
            at=datetime.now(UTC),
            compared=len(window.scores),
            captured=sum(image is not None for image in window.images),
            properties=property_changes(reference, window.scores, properties),
            classes=class_changes(reference, window),
            examples=examples,
            pictures=captured_pictures(Storage(settings.blobs_url), urls, rule, limits) if urls else {},
            thumbnails={digest: data_uri(thumbnails[digest]) for digest in near},
            evidently=evidently,
            missing=missing,
        )
    )


def _best_known(accuracy: Mapping[str, Any]) -> tuple[str, Mapping[str, float]] | None:
    for source, name in (("labels", "by labels"), ("estimated", "estimated, without labels")):
        if accuracy[source] is not None:
            return name, accuracy[source]
    return None


def _bytes_of_pictures(shown: Shown) -> int:
    near = (neighbour.digest for example in shown.examples for neighbour in example.nearest)
    uris = [*(shown.thumbnails.get(digest) for digest in near), *(uri for uri, _ in shown.pictures.values())]
    return sum(len(uri) for uri in uris if uri is not None)


def _environment() -> Environment:
    environment = page_environment(Path(__file__).parent)
    environment.filters |= {
        "share": lambda value: f"{100 * value:.1f} %",
        "interval": _interval,
        "points": lambda value: _signed(100 * value),
        "recall": _recall,
        "plain": lambda value: f"{value:.3g}",
        "sd": lambda value: f"{_signed(value)} sd",
        "count": lambda number: f"{number:,}",
        "name": lambda text: _short(str(text), 60),
        "text": lambda text: _short(str(text), 1500),
        "moment": lambda text: str(text)[:19].replace("T", " "),
        "place": _place,
        "stands_out": _stands_out,
    }
    return environment


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # never "-0.0"


def _interval(found: Mapping[str, float]) -> str:
    value, low, high = (f"{100 * found[name]:.1f}" for name in ("value", "low", "high"))
    return f"{value} % ({low} to {high})"


def _recall(found: Recall | None) -> str:
    return "" if found is None else f"{100 * found.right / found.labelled:.1f} % of {found.labelled:,}"


def _place(value: float, low: float, high: float) -> str:
    """Where a value lies on an axis, as SVG wants it."""
    share = (value - low) / (high - low) if high > low else 0.5
    return f"{100 * min(1.0, max(0.0, share)):.1f}%"


def _stands_out(example: Example) -> str:
    """In which property the image is far from the reference, in words; empty where in none."""
    if example.stands_out is None or abs(example.stands_out[1]) < _STANDS_OUT:
        return ""
    name, distance = example.stands_out
    return describe(Column(name, effect=abs(distance), shift=distance))


def _framed(html: str) -> Markup:
    """Evidently's page in a frame that shares nothing with ours. In single quotes: its JSON is full of double ones."""
    document = _with_inert_data(html).replace("&", "&amp;").replace("'", "&#39;")
    rights = "sandbox='allow-scripts allow-downloads'"
    # Inside single quotes nothing but these two has a meaning.
    return Markup(f"<iframe title='Evidently' loading='lazy' {rights} srcdoc='{document}'></iframe>")  # noqa: S704


def _with_inert_data(html: str) -> str:
    """Evidently writes names into a script as JSON, in which `</script>` would end it. Escaped, it is the same JSON.
    (Should a later Evidently write its page otherwise, the frame and the policy still hold.)"""
    begin = re.search(r"<script>\s*var (metric_[0-9a-f]{32}) = ", html)
    end = html.find(f'<div id="root_{begin[1]}">') if begin else -1
    last = html.rfind("</script>", 0, end) if end >= 0 else -1
    if begin is None or last < begin.end():
        return html
    return html[: begin.end()] + html[begin.end() : last].replace("<", "\\u003c") + html[last:]
