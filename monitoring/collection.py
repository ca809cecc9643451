"""How the images came in: format, colour mode, size, source, and how many could not be read. What of it is a fault?

A fault is only what no healthy stream does, and what takes something away that the model was trained with. What is
merely new is a note: a camera may send one size where a team trained on many, or JPEG where they had PNG, and what that
does to the pixels is seen by the tests of the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from monitoring.composition import Collection
from monitoring.decode_failures import Failures, unreadable
from monitoring.embedding import MIN_ROWS
from monitoring.two_sample import unlike_reference
from monitoring.window import Reference, Scores, Window
from perennial.settings_sections import MonitorSettings

#: Shares of the window at which collection is called broken. High: a clean stream does not come near them.
MOST_REPEATED: Final = 0.5
MOST_EMPTY: Final = 0.5
MOST_DAMAGED: Final = 0.1
MOST_CHANGED: Final = 0.5
#: The reference lacks what no more of its images are.
PRACTICALLY_NONE: Final = 0.02
#: A source counts from this share of the window on, as does a format, mode or size that is new.
LEAST_PART: Final = 0.1
#: Of each kind of fact that a check keeps.
MOST_ENTRIES: Final = 10
#: An image is empty when its contrast is below this share of nearly every reference image's.
_EMPTY_CONTRAST: Final = 0.1
#: Mean saturation (0..1) from which an image has colour. Grey ones have 0, photos .2 and more.
_COLOURED: Final = 0.05
_GREY: Final = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"})
#: Mean share of the reference's images that a source's look less like the reference than.
_UNLIKE: Final = 0.75
_LIKE: Final = 0.6


@dataclass(frozen=True, slots=True)
class Facts:
    """How a window came in, and its reference (None where its bundle does not say). `faults` and `notes` are in words;
    a note is no fault. `unlike`, by source: the share of the reference's images that its images look less like the
    reference than, in the mean; about .5 where nothing changed."""

    received: Collection
    reference: Collection | None
    failures: Failures
    unlike: Mapping[str, float] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As JSON: of each kind the `MOST_ENTRIES` largest."""
        return {
            **_mix(self.received),
            "sources": _largest(self.received.sources),
            "source_unlike": _largest(self.unlike),
            "reference": _mix(self.reference) if self.reference is not None else None,
            "failures": self.failures.document(),
            "notes": list(self.notes),
        }


def examine(
    reference: Reference | None,
    window: Window,
    failures: Failures,
    settings: MonitorSettings,
    *,
    other_images: bool = False,
) -> Facts:
    """The facts of a window, with what is wrong about them and what is worth knowing.

    Args:
        settings: of fewer rows than `min_rows` nothing is said but what could not be read.
        other_images: the pixels show something else, not the same through another lens. Then a new mode or size is
            part of that, and is what to note beside it: a model can learn grey sketches, so they are no fault.
    """
    faults = [why for why in (unreadable(failures, settings.decode_failure_floor),) if why is not None]
    notes: list[str] = []
    unlike: dict[str, float] = {}
    if window.rows >= settings.min_rows:
        faults += _broken(reference, window)
        lost = _lost(reference, window) if reference is not None else {}
        notes += [why for why in lost.values() if other_images]
        faults += [why for why in lost.values() if not other_images]
        notes += _new(reference, window, without=lost) if reference is not None else []
        notes += _stopped(window.collection)
        if reference is not None:
            unlike, said = _sources(reference, window)
            notes += said
    known = reference.collection if reference is not None else None
    return Facts(window.collection, known, failures, unlike, tuple(faults), tuple(notes))


def _broken(reference: Reference | None, window: Window) -> list[str]:
    """What no healthy stream does."""
    faults, scores = [], window.scores
    repeated = window.collection.most_repeated
    if repeated >= MOST_REPEATED:
        faults.append(f"{repeated:.0%} of the window is one and the same image: a frozen camera, or a client in a loop")
    if not len(scores):
        return faults
    known = _property(reference, "contrast") if reference is not None else None
    if reference is not None and known is not None:
        contrast = scores.properties[:, reference.properties.index("contrast")]
        empty = float((contrast < _EMPTY_CONTRAST * np.quantile(known, 0.01)).mean())
        if empty >= MOST_EMPTY:
            faults.append(f"{empty:.0%} of the images show nothing (contrast near 0): a covered lens or no light")
    return faults + _damaged(scores)


def _damaged(scores: Scores) -> list[str]:
    outputs = {
        "probabilities": scores.probabilities,
        "embedding": scores.embedding,
        "properties": scores.properties,
        "confidence": scores.confidence[:, None],
    }
    faults = []
    for output, rows in outputs.items():
        damaged = float((~np.isfinite(rows)).any(axis=1).mean())
        if damaged >= MOST_DAMAGED:
            faults.append(f"{damaged:.0%} of the rows hold {output} that are not numbers: the recording is damaged")
    return faults


def _lost(reference: Reference, window: Window) -> dict[str, str]:
    """What was taken from the images before they came, by the fact that shows it. Only where the reference had it: of
    an image that is grey by itself, a file without colour loses nothing."""
    known, found = reference.collection, {}
    if known is None:
        return {}
    grey, grey_before = (_share_of(each.modes, _GREY.__contains__) for each in (window.collection, known))
    saturation = _property(reference, "saturation")
    coloured = saturation is not None and float(np.median(saturation)) >= _COLOURED
    if coloured and grey >= MOST_CHANGED and grey_before <= PRACTICALLY_NONE:
        found["modes"] = (
            f"{grey:.0%} of the images are files without colour ({_first(window.collection.modes)}), of the reference "
            f"images {grey_before:.0%}: look at the camera's mode (night, infrared) and at what the client converts to"
        )
    # Under half of what the network looks at, more than three quarters of its pixels would be made up. Any size above
    # may blur, which the sharpness shows, but none takes as much away for certain.
    small, small_before = (
        _share_of(each.sizes, lambda size: _short_side(size) * 2 < reference.side)
        for each in (window.collection, known)
    )
    if small >= MOST_CHANGED and small_before <= PRACTICALLY_NONE:
        found["sizes"] = (
            f"{small:.0%} of the images are less than half as large as the {reference.side} pixels a side that the "
            f"network looks at (most often {_first(window.collection.sizes)}), of the reference images "
            f"{small_before:.0%}: the client sends thumbnails in place of the images"
        )
    return found


def _new(reference: Reference, window: Window, *, without: Mapping[str, str]) -> list[str]:
    """Formats, modes and sizes that make up most of the window and that the reference lacks."""
    known, notes = reference.collection, []
    if known is None:
        return []
    kinds = (
        ("formats", window.collection.formats, known.formats),
        ("modes", window.collection.modes, known.modes),
        ("sizes", window.collection.sizes, known.sizes),
    )
    for kind, now, before in kinds:
        new = {
            each: share
            for each, share in now.items()
            if share >= LEAST_PART and before.get(each, 0.0) <= PRACTICALLY_NONE
        }
        if kind in without or sum(new.values()) < MOST_CHANGED:
            continue
        shares = ", ".join(f"{each} ({share:.0%} of the window)" for each, share in list(new.items())[:3])
        notes.append(f"{kind} that the reference lacks: {shares}; there it is mostly {_first(before)}")
    return notes


def _stopped(received: Collection) -> list[str]:
    """Sources that had a part in the window and none in its newest third."""
    return [
        f"the source {source!r} sent {share:.0%} of the window and none of its newest third: look whether it still runs"
        for source, share in _largest(received.sources).items()
        if source and share >= LEAST_PART and source not in received.newest_sources
    ]


def _sources(reference: Reference, window: Window) -> tuple[dict[str, float], list[str]]:
    """How unlike the reference the images of each source are, and whether some sources alone carry a drift."""
    names, rows = np.unique(np.array(window.sources, dtype=str), return_counts=True)
    order = np.argsort(-rows, kind="stable")[:MOST_ENTRIES]
    large = [str(names[at]) for at in order if rows[at] >= MIN_ROWS]
    if len(large) < 2:
        return {}, []
    sent_by = np.array(window.sources, dtype=str)
    drift = unlike_reference(reference.embedded, window.scores)
    unlike = {name: float(drift[sent_by == name].mean()) for name in large}
    loud = [name for name in large if unlike[name] >= _UNLIKE]
    others = ~np.isin(sent_by, loud)
    if not loud or others.sum() < MIN_ROWS or drift[others].mean() > _LIKE:
        return unlike, []
    said = ", ".join(
        f"{repr(name) if name else 'no named source'} ({(sent_by == name).mean():.0%} of the window)"
        for name in loud[:3]
    )
    return unlike, [
        f"what changed comes from {said}: images from there look less like the reference than {unlike[loud[0]]:.0%} of "
        f"the reference's own do, all others less than {drift[others].mean():.0%}"
    ]


def _property(reference: Reference, name: str) -> np.ndarray[Any, Any] | None:
    """The values of a property in the reference that are numbers; None where there are none."""
    if name not in reference.properties:
        return None
    values = reference.scores.properties[:, reference.properties.index(name)]
    values = values[np.isfinite(values)]
    return values if len(values) else None


def _share_of(shares: Mapping[str, float], rule: Callable[[str], bool]) -> float:
    return sum(share for each, share in shares.items() if rule(each))


def _short_side(size: str) -> int:
    width, _, height = size.partition("x")
    return min(int(width), int(height))


def _first(shares: Mapping[str, float]) -> str:
    each, share = next(iter(_largest(shares).items()))
    return f"{each}, {share:.0%}"


def _mix(found: Collection) -> dict[str, dict[str, float]]:
    return {"formats": _largest(found.formats), "modes": _largest(found.modes), "sizes": _largest(found.sizes)}


def _largest(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(numbers.items(), key=lambda each: -each[1])[:MOST_ENTRIES])
