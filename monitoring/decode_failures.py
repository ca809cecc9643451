"""Images that were sent and could not be read: how many, why, and from how many on it is a fault of collection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from monitoring.window import Window
from perennial.ledger import predictions, rejected_images

#: Fewer say nothing, whatever their share: a client that sends a few odd files is no broken camera.
LEAST_UNREADABLE: Final = 20

_LOOK_AT: Final = {
    "truncated-image": "files are cut off on their way, or where they are written; look at the client's connection and "
    "time-outs",
    "empty-image": "the client sends no bytes; look at its camera",
    "invalid-image": "what is sent is no image; look at what the client uploads",
    "unsupported-image-format": "the client sends a type that is not read here; let it send JPEG or PNG",
    "too-many-bytes": "files are larger than serve.max_bytes; let the client send smaller ones, or raise it",
    "too-many-pixels": "images are larger than serve.max_pixels; let the client send smaller ones, or raise it",
}


@dataclass(frozen=True, slots=True)
class Failures:
    """Images that could not be read since the window began (`since`, the full minute), by the slug of the problem.
    `uploads` is all that was sent in that time; 0 where nothing failed, for then it is not counted."""

    by_reason: Mapping[str, int] = field(default_factory=dict)
    uploads: int = 0
    since: datetime | None = None

    @property
    def images(self) -> int:
        return sum(self.by_reason.values())

    @property
    def share(self) -> float:
        return self.images / self.uploads if self.uploads else 0.0

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "images": self.images,
            "uploads": self.uploads,
            "share": self.share,
            "since": self.since.isoformat() if self.since is not None else None,
            "by_reason": dict(self.by_reason),
        }


NONE_FAILED: Final = Failures()


def read_failures(engine: sa.Engine, model_version: str, window: Window) -> Failures:
    """What could not be read of what was sent to a version since the window began, up to now: when nothing can be read
    any more, no row comes in to end a window."""
    since = window.start.replace(second=0, microsecond=0) if window.start is not None else None
    found = rejected_images.count_since(engine, model_version, since)
    if not found:
        return Failures(since=since)
    # Not the window's rows: those of a busy service are of seconds, and failures are counted by the minute.
    answered = predictions.count_since(engine, model_version, since) if since is not None else 0
    return Failures(found, answered + sum(found.values()), since)


def unreadable(failures: Failures, floor: float) -> str | None:
    """The fault in words; None where it is none: under this share of the uploads, or fewer than `LEAST_UNREADABLE`."""
    if failures.images < LEAST_UNREADABLE or failures.share < floor:
        return None
    ordered = sorted(failures.by_reason.items(), key=lambda each: -each[1])
    since = f" since {failures.since:%Y-%m-%d %H:%M} UTC" if failures.since is not None else ""
    reasons = ", ".join(f"{images:,} {reason}" for reason, images in ordered)
    return (
        f"{failures.share:.0%} of what was sent{since} could not be read, {failures.images:,} of "
        f"{failures.uploads:,} images ({reasons}): {_LOOK_AT.get(ordered[0][0], 'look at the client that sends')}"
    )
