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
from perennial.bundle import Estimate
from perennial.ledger import EventKind, checks, deployments, events, models, new_classes, predictions, rollouts
from perennial.ledger.events import Event
from perennial.ledger.new_classes import NewLabels
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
    model whose label was given since `last_started`, the start of the last retrain, which had `learnt_labels`
    and whose gate waits for `awaited_labels` more. `accuracy`: the live model's by labels, in the latest check;
    `accuracy_before`: the highest that a model it descends from had on its held-out images. `last_retrain`: the last
    sign of one, or of a rollback. `rolling_out`: the challenger that goes live in stages now.
    """

    now: datetime
    by_hand: bool = False
    open_trigger: Trigger | None = None
    open_why: str = ""
    check: str = ""
    schedule_since: datetime | None = None
    new_labels: int = 0
    learnt_labels: int = 0
    awaited_labels: int = 0
    accuracy: Estimate | None = None
    accuracy_before: float | None = None
    last_started: datetime | None = None
    last_retrain: datetime | None = None
    rolling_out: str | None = None


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

    None is while a challenger goes live in stages: it may be the answer. Else a request that is open comes first, then
    a person, the schedule, the labels. The cooldown holds back the last two (and a check asks for no retrain while it
    lasts). A gate that waits for labels holds back all but a person until they have come: before that it could not
    decide either.
    """
    left = _cooldown_left(situation, settings.cooldown)
    asked = (
        _drift(situation, settings),
        _scheduled(situation, settings.schedule),
        _labels(situation, settings),
        Asked(Trigger.HAND, situation.by_hand, "asked for by hand" if situation.by_hand else "nobody asks by hand"),
    )
    firing = {one.trigger: one for one in asked if one.fires}
    if situation.rolling_out is not None:
        why = f"{situation.rolling_out} is being rolled out; wait for its end, or make one: perennial rollout stop"
        return Decision(None, why, asked, left, {})
    missing = situation.awaited_labels - situation.new_labels
    if missing > 0 and firing and not situation.by_hand:
        awaited = situation.awaited_labels
        why = f"the gate of the last retrain waits for {awaited} more labels: {missing} are still missing"
        return Decision(None, why, asked, left, {})
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
    before = _accuracy_before(engine, name, live.version) if settings.retrain.until_recovered else None
    awaited = _awaited_labels(engine, name, live.version, last)
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
        schedule_since=_schedule_since(engine, settings, since),
        new_labels=new_labels,
        learnt_labels=sum(started.detail.get(key, 0) for key in ("labels", "older_labels")) if started else 0,
        awaited_labels=awaited,
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


def is_worth_a_try(engine: sa.Engine, settings: Settings) -> bool:
    """Is a retrain called for, with labels enough? What the watcher asks before it starts one."""
    note_schedule(engine, settings)
    if not decide(read(engine, settings), settings.retrain).due:
        return False
    name = settings.name
    live, start = deployments.live(engine, name), fresh_since(engine, name, open_request(engine, name), by_hand=False)
    # Every image of a class that arrives is fresh, whenever it came.
    fresh = predictions.count_labelled_captures(engine, [live.version], since=start)
    fresh += sum(new_labels_of(engine, settings, live.version).classes.values())
    return fresh >= settings.retrain.min_labels


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


def _labels(situation: Situation, settings: RetrainSettings) -> Asked:
    trigger, every, since = Trigger.LABELS, settings.every_labels, situation.last_started
    if situation.open_trigger is trigger:
        return Asked(trigger, True, situation.open_why)
    found = f"{situation.new_labels} new labels" + (
        f" since the last retrain ({since:%Y-%m-%d %H:%M} UTC)" if since else ""
    )
    numbers = {"labels": situation.new_labels, "every_labels": every, "since": since.isoformat() if since else None}
    if every and situation.new_labels >= every:
        return Asked(trigger, True, f"{found}: retrain.every_labels is {every}", numbers)
    loss = _unrecovered(situation, settings)
    if loss:
        had = situation.learnt_labels
        if situation.new_labels >= had:
            return Asked(trigger, True, f"{found}, as many as it had: {loss}", {**numbers, "learnt_labels": had})
        return Asked(trigger, False, f"{loss}; it had {had} labels, {found}", numbers)
    if not every:
        return Asked(trigger, False, "retrain.every_labels is 0")
    return Asked(trigger, False, f"{found}: {every - situation.new_labels} fewer than retrain.every_labels", numbers)


def _unrecovered(situation: Situation, settings: RetrainSettings) -> str:
    """What a retrain on few labels has not won back; empty if nothing.

    What labels are worth falls off as a power of their number (Hestness et al., 2017), so that it is tried again each
    time they have doubled: a handful of retrains, however many labels there come to be.
    """
    now, before = situation.accuracy, situation.accuracy_before
    if not settings.until_recovered or now is None or before is None or not situation.learnt_labels:
        return ""
    if before - now.value < settings.accuracy_drop or now.high >= before:
        return ""
    return f"the last retrain has not won back all that was lost, {now.value:.3f} of {before:.3f} by labels"


def _awaited_labels(engine: sa.Engine, name: str, version: str, last: Event | None) -> int:
    """How many labels the last gate waits for, where nothing has become of that retrain since."""
    if last is None or last.kind is not EventKind.GATE_REFUSED or last.detail.get("champion") != version:
        return 0
    gate = last.detail.get("gate") or {}
    # With fewer it could decide nothing, however they are chosen.
    return int(gate.get("more_random_labels") or gate.get("more_labels") or 0)


def _accuracy(check: Mapping[str, Any]) -> Estimate | None:
    found = (check.get("accuracy") or {}).get("labels")
    return Estimate(value=found["value"], low=found["low"], high=found["high"]) if found else None


def _accuracy_before(engine: sa.Engine, name: str, version: str) -> float | None:
    """None where the model descends from no other."""
    _, *before = models.lineage(engine, name, version)
    found = [models.get(engine, name, each).manifest.metrics.get("accuracy") for each in before]
    return max((one.value for one in found if one is not None), default=None)


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
