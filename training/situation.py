"""What the decision to retrain rests on, as the ledger has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from perennial import schedule
from perennial.bundle import Estimate
from perennial.ledger import EventKind, checks, deployments, events, models, new_classes, predictions, rollouts
from perennial.ledger.events import Event
from perennial.ledger.new_classes import NewLabels
from perennial.ledger.requests import COOLS_DOWN_FROM, Trigger, open_request, trigger_of
from perennial.settings import Settings

#: Verdicts of checks that say of no change.
_CALM: Final = ("ok", "insufficient_data")
_WINDOWS: Final = 100  # of a drift that are looked at


@dataclass(frozen=True, slots=True)
class Situation:
    """What the decision rests on.

    `open_trigger` is None where no request is open; `open_why` is what it says. `by_hand`: a person asks now. `check`
    is what the latest check, of `checked_at`, says of a retrain (empty: there was none). `schedule_since`: nothing
    scheduled up to then is made up for (None: the schedule is not known to the ledger yet). `new_labels`: labelled
    captures of the live model whose label was given since `last_started`, the start of the last retrain, which had
    `learnt_labels` and whose gate waits for `awaited_labels` more, as the live model had `awaited_accuracy` on the
    fresh images it judged on. `accuracy`: the live model's by labels, in the latest check; `accuracy_before`: the
    highest that a model it descends from had on its held-out images. `last_retrain`: the last sign of one, or of a
    rollback. `rolling_out`: the challenger that goes live in stages now.
    """

    now: datetime
    by_hand: bool = False
    open_trigger: Trigger | None = None
    open_why: str = ""
    check: str = ""
    checked_at: datetime | None = None
    schedule_since: datetime | None = None
    new_labels: int = 0
    learnt_labels: int = 0
    awaited_labels: int = 0
    awaited_accuracy: float | None = None
    accuracy: Estimate | None = None
    accuracy_before: float | None = None
    last_started: datetime | None = None
    last_retrain: datetime | None = None
    rolling_out: str | None = None


def read_situation(
    engine: sa.Engine, settings: Settings, *, by_hand: bool = False, now: datetime | None = None
) -> Situation:
    """The situation as the ledger has it.

    Raises:
        NoLiveModel: there is nothing to retrain.
        LedgerUnavailable: see `perennial.errors`.
    """
    name, now = settings.name, now or datetime.now(UTC)
    live = deployments.live(engine, name)
    request = open_request(engine, name)
    started = events.last(engine, name, (EventKind.RETRAIN_STARTED,))
    last = events.last(engine, name, COOLS_DOWN_FROM)
    check = next(iter(checks.latest(engine, name, model_version=live.version)), None)
    since = started.at if started is not None else None
    before = _accuracy_before(engine, name, live.version) if settings.retrain.until_recovered else None
    awaited, seen = _awaited(live.version, last)
    new_labels = 0
    if settings.retrain.every_labels > 0 or before is not None or awaited:
        new = new_labels_of(engine, settings, live.version).classes
        new_labels = predictions.count_labelled_captures(engine, [live.version], labelled_since=since, new=new)
    beside = rollouts.running(engine, name)
    return Situation(
        now=now,
        by_hand=by_hand,
        open_trigger=trigger_of(request) if request is not None else None,
        open_why=str(request.detail.get("why") or "the monitor asked for it") if request is not None else "",
        check=str((check.detail.get("retrain") or {}).get("why", "")) if check is not None else "",
        checked_at=check.at if check is not None else None,
        schedule_since=_schedule_since(engine, settings, since),
        new_labels=new_labels,
        learnt_labels=sum(started.detail.get(key, 0) for key in ("labels", "older_labels")) if started else 0,
        awaited_labels=awaited,
        awaited_accuracy=seen,
        accuracy=_accuracy(check.detail) if check is not None else None,
        accuracy_before=before,
        last_started=since,
        last_retrain=last.at if last is not None else None,
        rolling_out=beside.challenger if beside is not None else None,
    )


def note_schedule(engine: sa.Engine, settings: Settings) -> None:
    """Write down that another schedule is in force, if so: from then on its times are kept."""
    wanted, known = settings.retrain.schedule, _known_schedule(engine, settings.name)
    if wanted != (known.detail["schedule"] if known is not None else ""):
        detail = {"schedule": wanted, "before": known.detail["schedule"] if known is not None else ""}
        if wanted:
            detail["next"] = schedule.first_after(wanted, datetime.now(UTC)).isoformat()
        events.add(engine, settings.name, EventKind.SCHEDULE_CHANGED, detail)


def write_request(engine: sa.Engine, name: str, trigger: Trigger, why: str, numbers: Mapping[str, Any]) -> Event:
    """Ask for a retrain. The caller holds the lease and has seen that no request is open."""
    detail = {"why": why, "trigger": str(trigger), **numbers}
    [written] = events.after(engine, name, events.add(engine, name, EventKind.RETRAIN_REQUESTED, detail) - 1, limit=1)
    return written


def new_labels_of(engine: sa.Engine, settings: Settings, version: str) -> NewLabels:
    """The labels that are no class of a version, and which of them are to be."""
    classes = models.get(engine, settings.name, version).manifest.classes
    return new_classes.find(engine, settings.name, classes, settings.retrain.new_class_labels)


def fresh_since(engine: sa.Engine, name: str, request: Event | None, *, by_hand: bool) -> datetime | None:
    """From when on the live model's captures are fresh: since the drift began that called for a retrain, or else since
    the window of the check that asked.

    After a rollback nothing before it is, unless a person asks: on those labels the gate let through what had to be
    undone, and would let it through again.
    """
    live = deployments.live(engine, name)
    asked = _drift_began(engine, name, live.version, request) if request else None
    [went_live] = events.by_id(engine, name, [live.event_id])
    if by_hand or went_live.kind is not EventKind.ROLLED_BACK:
        return asked
    return max(asked, live.at) if asked is not None else live.at


def _drift_began(engine: sa.Engine, name: str, version: str, request: Event) -> datetime | None:
    """When the first window began of those that alarmed, or in which accuracy was lost, one after the other up to the
    one that asked.

    So a gate that could not decide has the more to judge on the longer the drift lasts.
    """
    start = (request.detail.get("window") or {}).get("start")
    if not start:
        return None
    began = datetime.fromisoformat(start)
    for check in checks.latest(engine, name, _WINDOWS, model_version=version):
        if check.verdict in _CALM and not _lost(check.detail):
            break
        began = min(began, datetime.fromisoformat(check.window["start"]))
    return began


def _lost(check: Mapping[str, Any]) -> bool:
    """Did a check find accuracy lost? Where the right answers change and the images do not, nothing else alarms."""
    rose = (check.get("accuracy") or {}).get("errors_rose")
    return bool(rose) or bool((check.get("retrain") or {}).get("due"))


def _awaited(version: str, last: Event | None) -> tuple[int, float | None]:
    """How many labels the last gate waits for, where nothing has become of that retrain since, and how good it found
    the live model on fresh images."""
    if last is None or last.kind is not EventKind.GATE_REFUSED or last.detail.get("champion") != version:
        return 0, None
    gate = last.detail.get("gate") or {}
    champion = (gate.get("fresh") or {}).get("champion")
    # With fewer it could decide nothing, however they are chosen.
    awaited = int(gate.get("more_random_labels") or gate.get("more_labels") or 0)
    return awaited, champion["value"] if champion else None


def _accuracy(check: Mapping[str, Any]) -> Estimate | None:
    found = (check.get("accuracy") or {}).get("labels")
    return Estimate(value=found["value"], low=found["low"], high=found["high"]) if found else None


def _accuracy_before(engine: sa.Engine, name: str, version: str) -> float | None:
    """None where the model descends from no other."""
    _, *before = models.lineage(engine, name, version)
    found = [models.get(engine, name, each).manifest.metrics.get("accuracy") for each in before]
    return max((one.value for one in found if one is not None), default=None)


def _known_schedule(engine: sa.Engine, name: str) -> Event | None:
    return events.last(engine, name, (EventKind.SCHEDULE_CHANGED,))


def _schedule_since(engine: sa.Engine, settings: Settings, started: datetime | None) -> datetime | None:
    known = _known_schedule(engine, settings.name)
    if known is None or known.detail["schedule"] != settings.retrain.schedule:
        return None
    # Whatever asked for it: a request or a retrain since a scheduled time is that time's.
    asked = events.last(engine, settings.name, (EventKind.RETRAIN_REQUESTED,))
    return max(moment for moment in (known.at, asked.at if asked else None, started) if moment is not None)
