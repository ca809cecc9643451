"""When to retrain: what was asked for and not yet answered, a schedule, new labels, a person. One pure function.

Drift asks by itself: `perennial monitor` writes the request. Schedule and labels are looked at here, so that they work
with `perennial watch` and with `perennial retrain --if-due` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from perennial import schedule
from perennial.ledger import EventKind, checks, deployments, events, predictions
from perennial.ledger.events import Event
from perennial.ledger.requests import COOLS_DOWN_FROM, Trigger, open_request, trigger_of
from perennial.settings import Settings
from perennial.settings_sections import RetrainSettings

#: Verdicts of checks that say of no change.
_CALM: Final = ("ok", "insufficient_data")
_WINDOWS: Final = 100  # of a drift that are looked at


@dataclass(frozen=True, slots=True)
class Situation:
    """What the decision rests on.

    `open_trigger` is None where no request is open; `open_why` is what it says. `by_hand`: a person asks now. `check`
    is what the latest check says of a retrain (empty: there was none). `schedule_since`: nothing scheduled up to then
    is made up for (None: the schedule is not known to the ledger yet). `new_labels`: labelled captures of the live
    model whose label was given since `last_started`, the start of the last retrain. `last_retrain`: the last sign of
    one, or of a rollback.
    """

    now: datetime
    by_hand: bool = False
    open_trigger: Trigger | None = None
    open_why: str = ""
    check: str = ""
    schedule_since: datetime | None = None
    new_labels: int = 0
    last_started: datetime | None = None
    last_retrain: datetime | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """Whether one trigger calls for a retrain, why (not), and its numbers."""

    trigger: Trigger
    fires: bool
    why: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """`trigger` is what calls for a retrain, None if nothing does; `cooldown_left` is in seconds; `numbers` are those
    of the trigger."""

    trigger: Trigger | None
    why: str
    asked: tuple[Asked, ...]
    cooldown_left: float
    numbers: Mapping[str, Any]

    @property
    def due(self) -> bool:
        return self.trigger is not None


def decide(situation: Situation, settings: RetrainSettings) -> Decision:
    """Is a retrain called for, by what, and why (not)?

    A request that is open comes first, then a person, the schedule, the labels. The cooldown holds back the last two
    (and a check asks for no retrain while it lasts).
    """
    left = _cooldown_left(situation, settings.cooldown)
    asked = (
        _drift(situation, settings),
        _scheduled(situation, settings.schedule),
        _labels(situation, settings.every_labels),
        Asked(Trigger.HAND, situation.by_hand, "asked for by hand" if situation.by_hand else "nobody asks by hand"),
    )
    firing = {one.trigger: one for one in asked if one.fires}
    if situation.open_trigger is not None:
        return Decision(situation.open_trigger, situation.open_why, asked, left, {})
    if Trigger.HAND in firing:
        return Decision(Trigger.HAND, "by hand", asked, left, {})
    for trigger in (Trigger.SCHEDULE, Trigger.LABELS):
        if trigger in firing and left <= 0:
            found = firing[trigger]
            return Decision(trigger, found.why, asked, left, found.numbers)
    why = "; ".join(f"{one.trigger}: {one.why}" for one in asked if one.trigger is not Trigger.HAND)
    if firing:
        why = f"the last retrain or rollback was less than retrain.cooldown ago: wait {left:.0f} s more; {why}"
    return Decision(None, why, asked, left, {})


def read(engine: sa.Engine, settings: Settings, *, by_hand: bool = False, now: datetime | None = None) -> Situation:
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
    counted = settings.retrain.every_labels > 0
    return Situation(
        now=now,
        by_hand=by_hand,
        open_trigger=trigger_of(request) if request is not None else None,
        open_why=str(request.detail.get("why") or "the monitor asked for it") if request is not None else "",
        check=str((check.detail.get("retrain") or {}).get("why", "")) if check is not None else "",
        schedule_since=_schedule_since(engine, settings, since),
        new_labels=predictions.count_labelled_captures(engine, [live.version], labelled_since=since) if counted else 0,
        last_started=since,
        last_retrain=last.at if last is not None else None,
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


def is_worth_a_try(engine: sa.Engine, settings: Settings) -> bool:
    """Is a retrain called for, with labels enough? What the watcher asks before it starts one."""
    note_schedule(engine, settings)
    if not decide(read(engine, settings), settings.retrain).due:
        return False
    name = settings.name
    live, start = deployments.live(engine, name), fresh_since(engine, name, open_request(engine, name), by_hand=False)
    fresh = predictions.count_labelled_captures(engine, [live.version], since=start)
    return fresh >= settings.retrain.min_labels


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
    """When the first window began of those that alarmed one after the other, up to the one that asked.

    So a gate that could not decide has the more to judge on the longer the drift lasts.
    """
    start = (request.detail.get("window") or {}).get("start")
    if not start:
        return None
    began = datetime.fromisoformat(start)
    for check in checks.latest(engine, name, _WINDOWS, model_version=version):
        if check.verdict in _CALM:
            break
        began = min(began, datetime.fromisoformat(check.window["start"]))
    return began


def _drift(situation: Situation, settings: RetrainSettings) -> Asked:
    fires = situation.open_trigger is Trigger.DRIFT
    if fires:
        return Asked(Trigger.DRIFT, True, situation.open_why)
    if not settings.on_drift:
        return Asked(Trigger.DRIFT, False, "retrain.on_drift is off")
    return Asked(
        Trigger.DRIFT, False, situation.check or "no check of the live model yet; `perennial monitor` makes one"
    )


def _scheduled(situation: Situation, expression: str) -> Asked:
    trigger = Trigger.SCHEDULE
    if situation.open_trigger is trigger:
        return Asked(trigger, True, situation.open_why)
    if not expression:
        return Asked(trigger, False, "retrain.schedule is not set")
    since = situation.schedule_since
    due = schedule.first_after(expression, since or situation.now)
    if due > situation.now:
        return Asked(trigger, False, f"the next one is due on {due:%Y-%m-%d %H:%M} UTC ({expression})")
    why = f"scheduled for {due:%Y-%m-%d %H:%M} UTC ({expression})"
    return Asked(trigger, True, why, {"schedule": expression, "scheduled": due.isoformat()})


def _labels(situation: Situation, every: int) -> Asked:
    trigger, found, since = Trigger.LABELS, situation.new_labels, situation.last_started
    if situation.open_trigger is trigger:
        return Asked(trigger, True, situation.open_why)
    if not every:
        return Asked(trigger, False, "retrain.every_labels is 0")
    why = f"{found} new labels" + (f" since the last retrain ({since:%Y-%m-%d %H:%M} UTC)" if since else "")
    numbers = {"labels": found, "every_labels": every, "since": since.isoformat() if since else None}
    if found < every:
        return Asked(trigger, False, f"{why}: {every - found} fewer than retrain.every_labels", numbers)
    return Asked(trigger, True, f"{why}: retrain.every_labels is {every}", numbers)


def _cooldown_left(situation: Situation, cooldown: float) -> float:
    if situation.last_retrain is None:
        return 0.0
    waited = (situation.now - situation.last_retrain).total_seconds()
    # Two clocks may differ a little; a retrain that lies further ahead was dated by one that was wrong since.
    if not -cooldown < waited < cooldown:
        return 0.0
    return cooldown - max(0.0, waited)


def _known_schedule(engine: sa.Engine, name: str) -> Event | None:
    return events.last(engine, name, (EventKind.SCHEDULE_CHANGED,))


def _schedule_since(engine: sa.Engine, settings: Settings, started: datetime | None) -> datetime | None:
    known = _known_schedule(engine, settings.name)
    if known is None or known.detail["schedule"] != settings.retrain.schedule:
        return None
    # Whatever asked for it: a request or a retrain since a scheduled time is that time's.
    asked = events.last(engine, settings.name, (EventKind.RETRAIN_REQUESTED,))
    return max(moment for moment in (known.at, asked.at if asked else None, started) if moment is not None)
