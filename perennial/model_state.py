"""One sentence on a model: whether somebody has to do something, out of its latest check and events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from perennial import schedule
from perennial.ledger import EventKind
from perennial.ledger.checks import CheckRow
from perennial.ledger.deployments import Deployment
from perennial.ledger.events import Event
from perennial.overview_document import ModelState, State, Tone
from perennial.settings import Settings

#: No check for so many times its interval (or two of its scheduled times): nobody is looking.
_STALE: Final = 3.0
#: A retrain is under way from the first of these to one of the others.
_RETRAINING: Final = EventKind.RETRAIN_STARTED
_ENDED: Final = (EventKind.GATE_PASSED, EventKind.GATE_REFUSED, EventKind.RETRAIN_FAILED)
_TONES: Final[dict[ModelState, Tone]] = {"healthy": "good", "drifting": "bad"}


def state(
    live: Deployment | None,
    check: CheckRow | None,
    newest: Sequence[Event],
    settings: Settings,
    now: datetime,
    *,
    busy: bool,
) -> State:
    """One sentence that says whether somebody has to do something, with what it is made of.

    Args:
        check: the latest one of the live version.
        newest: the latest events, newest first.
        busy: whether anything has come in lately; a model that nobody asks need not be checked.
    """
    if live is None:
        sentence = f"No model named {settings.name!r} is live yet: perennial train DATA"
        return State("caution", "none", None, False, sentence)
    found: ModelState = (check.detail.get("state") or "healthy") if check is not None else "unchecked"
    last = check.at if check is not None else live.at
    stale = busy and now > _overdue(settings, last)
    since = _since(found, live, newest)
    started = next((event for event in newest if event.kind in (_RETRAINING, *_ENDED)), None)
    if started is not None and started.kind is _RETRAINING:
        found, since = "retraining", started.at
    tone = _TONES.get(found, "caution")
    if stale:
        tone = "bad"
    said = {
        "healthy": "Healthy",
        "suspected": "Drift suspected",
        "drifting": f"Drifting ({check.verdict})" if check is not None else "Drifting",
        "retraining": "Retraining",
        "unchecked": "Serving, not checked yet",
    }[found]
    parts = [f"{said} since {since:%d %b, %H:%M} UTC", *_accuracy_words(check)]
    if check is not None:
        parts.append(f"last check {ago((now - check.at).total_seconds())}")
    if stale:
        parts.append("nobody is checking: is `perennial watch` running?")
    return State(tone, found, since.isoformat(), stale, "; ".join(parts) + ("" if stale else "."))


def _overdue(settings: Settings, last: datetime) -> datetime:
    """When a check should have come at the latest, after one at that moment."""
    if not settings.monitor.schedule:
        return last + timedelta(seconds=_STALE * settings.monitor.interval)
    due = schedule.first_after(settings.monitor.schedule, last)
    return schedule.first_after(settings.monitor.schedule, due)


def ago(seconds: float) -> str:
    """`just now`, `3 min ago`, `5 h ago`, `12 days ago`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "just now"
    if minutes < 90:
        return f"{minutes} min ago"
    hours = round(minutes / 60)
    return f"{hours} h ago" if hours < 48 else f"{round(hours / 24)} days ago"


def _since(found: str, live: Deployment, newest: Sequence[Event]) -> datetime:
    kinds = (EventKind.DRIFT_OPENED,) if found == "drifting" else (EventKind.DRIFT_CLOSED, EventKind.CHECK_CHANGED)
    if found == "unchecked":
        return live.at
    moment = next((event.at for event in newest if event.kind in kinds), live.at)
    return max(moment, live.at)


def _accuracy_words(check: CheckRow | None) -> list[str]:
    accuracy = (check.detail.get("accuracy") or {}) if check is not None else {}
    by_labels, estimated = accuracy.get("labels"), accuracy.get("estimated")
    if by_labels:
        return [f"accuracy {by_labels['value']:.2f} by {accuracy.get('labelled', 0):,} labels"]
    if estimated:
        return [f"accuracy {estimated['value']:.2f}, estimated"]
    return ["accuracy not known"]
