"""Everything at a glance, out of the ledger: what is live, what came in, what the checks found, what happened.

Read for a page that many people leave open beside a database of millions of predictions: nothing here looks at each of
them, and of a long document (a manifest, a check, a gate's decision) only the parts that are shown are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from perennial import event_wording, schedule
from perennial.ledger import (
    EventKind,
    checks,
    deployments,
    events,
    models,
    new_classes,
    rollouts,
    traffic,
    watches,
)
from perennial.ledger.checks import CheckRow
from perennial.ledger.deployments import Deployment
from perennial.ledger.events import Event
from perennial.settings import Settings

MOST_HOURS: Final = 720
_BUCKETS: Final = 240
_CHECKS: Final = 200
_MODELS: Final = 30
_EVENTS: Final = 40
_DEPLOYMENTS: Final = 100
_CLASSES: Final = 1000
#: No check for so many times its interval (or two of its scheduled times): nobody is looking.
_STALE: Final = 3.0
#: A retrain is under way from the first of these to one of the others.
_RETRAINING: Final = EventKind.RETRAIN_STARTED
_ENDED: Final = (EventKind.GATE_PASSED, EventKind.GATE_REFUSED, EventKind.RETRAIN_FAILED)


def read(engine: sa.Engine, settings: Settings, hours: int, now: datetime | None = None) -> dict[str, Any]:
    """The overview as JSON (docs/http.md lists its fields), of the last `hours`.

    Raises:
        LedgerUnavailable: the database does not answer.
    """
    name, now = settings.name, now or datetime.now(UTC)
    history = deployments.history(engine, name)
    live = history[-1] if history else None
    cards = models.cards(engine, name, _MODELS, also=[live.version] if live else [])
    live_card = next((card for card in cards if live is not None and card.version == live.version), None)
    start, bucket, buckets = traffic.span(hours, _BUCKETS, now)
    versions = models.versions(engine, name)
    check = next(iter(checks.latest(engine, name, model_version=live.version)), None) if live else None
    newest = events.newest(engine, name, _EVENTS)
    answered = traffic.answered(engine, versions, start, bucket, buckets)
    rolled_out = rollouts.running(engine, name)
    undone = _undone(engine, name, history)
    return {
        "name": name,
        "at": now.isoformat(),
        "state": state(live, check, newest, settings, now, busy=any(answered[-2:])),
        "live": _live(live, live_card) if live is not None and live_card is not None else None,
        "traffic": {
            "start": start.isoformat(),
            "bucket_seconds": int(bucket.total_seconds()),
            "answered": answered,
            "rejected": traffic.rejected(engine, versions, start, bucket, buckets),
        },
        "checks": [_check_in_short(row) for row in checks.between(engine, name, start, _CHECKS)],
        "deployments": [
            {
                "id": entry.id,
                "at": entry.at.isoformat(),
                "version": entry.version,
                "reason": entry.reason,
                "actor": entry.actor,
                "rolled_back": entry.event_id in undone,
            }
            for entry in history
            if entry.at >= start
        ][-_DEPLOYMENTS:],
        "check": _check(check) if check is not None else None,
        "watch": _watch(engine, settings) if settings.retrain.watch_labels else None,
        "rollout": {
            "version": rolled_out.challenger,
            "stage": event_wording.stage_title(rolled_out.current),
            "since": rolled_out.at.isoformat(),
        }
        if rolled_out is not None
        else None,
        "new_labels": _new_labels(engine, settings, live_card.classes if live_card else ()),
        "models": [_model(card, live, history, undone, newest) for card in cards],
        "events": [
            {
                "id": event.id,
                "at": event.at.isoformat(),
                "kind": str(event.kind),
                "what": event_wording.what(event),
                "why": event_wording.why(event),
            }
            for event in newest
        ],
    }


def state(
    live: Deployment | None,
    check: CheckRow | None,
    newest: Sequence[Event],
    settings: Settings,
    now: datetime,
    *,
    busy: bool,
) -> dict[str, Any]:
    """One sentence that says whether somebody has to do something, with what it is made of.

    Args:
        check: the latest one of the live version.
        newest: the latest events, newest first.
        busy: whether anything has come in lately; a model that nobody asks need not be checked.
    """
    if live is None:
        sentence = f"No model named {settings.name!r} is live yet: perennial train DATA"
        return {"tone": "caution", "model_state": "none", "since": None, "stale": False, "sentence": sentence}
    found = (check.detail.get("state") or "healthy") if check is not None else "unchecked"
    last = check.at if check is not None else live.at
    stale = busy and now > _overdue(settings, last)
    since = _since(found, live, newest)
    started = next((event for event in newest if event.kind in (_RETRAINING, *_ENDED)), None)
    if started is not None and started.kind is _RETRAINING:
        found, since = "retraining", started.at
    tone = {"healthy": "good", "drifting": "bad"}.get(found, "caution")
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
    return {
        "tone": tone,
        "model_state": found,
        "since": since.isoformat(),
        "stale": stale,
        "sentence": "; ".join(parts) + ("" if stale else "."),
    }


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


def _live(live: Deployment, card: models.Card) -> dict[str, Any]:
    return {
        "version": live.version,
        "deployed_at": live.at.isoformat(),
        "reason": live.reason,
        "actor": live.actor,
        "backbone": card.backbone,
        "classes": list(card.classes[:_CLASSES]),
        "accuracy_held_out": card.accuracy,
    }


def _check_in_short(row: checks.Told) -> dict[str, Any]:
    accuracy = row.accuracy
    return {
        "id": row.id,
        "at": row.at.isoformat(),
        "version": row.model_version,
        "verdict": row.verdict,
        "rows": row.rows,
        "labelled": accuracy.get("labelled", 0),
        "accuracy_labels": accuracy.get("labels"),
        "accuracy_estimated": accuracy.get("estimated"),
        "withheld": accuracy.get("withheld"),
        "scores": dict(row.scores),
    }


def _check(row: CheckRow) -> dict[str, Any]:
    detail = row.detail
    return {
        "id": row.id,
        "at": row.at.isoformat(),
        "version": row.model_version,
        "verdict": row.verdict,
        "state": detail.get("state"),
        "causes": detail.get("causes", []),
        "window": row.window,
        "families": {
            family: {key: found.get(key) for key in ("score", "alarm", "floor", "skipped")}
            for family, found in detail.get("families", {}).items()
        },
        "accuracy": detail.get("accuracy"),
        "retrain": detail.get("retrain"),
        "report": row.report_url is not None,
        "examples": [_example(row.model_version, each) for each in detail.get("examples", [])],
    }


def _example(version: str, found: Mapping[str, Any]) -> dict[str, Any]:
    nearest = [
        {**neighbour, "image": f"/v1/references/{version}/{neighbour['digest']}"}
        for neighbour in found.get("nearest", [])
    ]
    rest = {key: value for key, value in found.items() if key not in ("image_url", "nearest")}
    return {**rest, "image": f"/v1/images/{found['prediction_id']}", "nearest": nearest}


def _watch(engine: sa.Engine, settings: Settings) -> dict[str, Any] | None:
    watch = watches.open_watch(engine, settings.name)
    if watch is None:
        return None
    tally = watches.tally(engine, watch)
    return {"compared_with": watch.before, "of": settings.retrain.watch_labels, **tally.document()}


def _new_labels(engine: sa.Engine, settings: Settings, classes: Sequence[str]) -> dict[str, Any]:
    needed = settings.retrain.new_class_labels
    if not classes or not needed:
        return {"images": {}, "needed": needed, "classes": []}
    found = new_classes.find(engine, settings.name, classes, needed)
    return {"images": dict(found.images), "needed": found.at_least, "classes": list(found.classes)}


def _undone(engine: sa.Engine, name: str, history: Sequence[Deployment]) -> frozenset[int]:
    """The events by which somebody went back."""
    ids = [entry.event_id for entry in history[-_DEPLOYMENTS:]]
    return frozenset(event.id for event in events.by_id(engine, name, ids) if event.kind is EventKind.ROLLED_BACK)


def _model(
    card: models.Card,
    live: Deployment | None,
    history: Sequence[Deployment],
    undone: frozenset[int],
    newest: Sequence[Event],
) -> dict[str, Any]:
    return {
        "version": card.version,
        "created_at": card.created_at.isoformat(),
        "parent": card.parent,
        "live": live is not None and live.version == card.version,
        "status": _status(card.version, history, undone, newest),
        "strategy": card.strategy,
        "accuracy": card.accuracy,
        "why": card.why,
    }


def _status(version: str, history: Sequence[Deployment], undone: frozenset[int], newest: Sequence[Event]) -> str:
    """In a word, as far as the latest events tell; a model's story (`perennial models show`) has all of it."""
    places = [at for at, entry in enumerate(history) if entry.version == version]
    if places:
        if places[-1] == len(history) - 1:
            return "live"
        return "rolled back" if history[places[-1] + 1].event_id in undone else "replaced"
    last = next((event for event in newest if event.detail.get("version") == version), None)
    if last is None:
        return "never live"
    if last.kind is EventKind.GATE_REFUSED:
        return "waiting" if (last.detail.get("gate") or {}).get("outcome") == "wait" else "refused"
    return {EventKind.ROLLOUT_STARTED: "rolling out", EventKind.ROLLOUT_ADVANCED: "rolling out"}.get(
        last.kind, "stopped" if last.kind is EventKind.ROLLOUT_STOPPED else "never live"
    )
