"""When to retrain: what was asked for and not yet answered, a schedule, new labels, a person. One pure function.

Drift asks by itself: `perennial monitor` writes the request. Schedule and labels are looked at here, so that they work
with `perennial watch` and with `perennial retrain --if-due` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from perennial import schedule
from perennial.ledger import deployments, predictions
from perennial.ledger.requests import Trigger, open_request
from perennial.settings import Settings
from perennial.settings_sections import RetrainSettings
from training.situation import Situation, fresh_since, new_labels_of, note_schedule, read_situation


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
    lasts). A gate that waits for labels holds back all but a person until they have come, for before that it could not
    decide either; unless the live model has become worse than that gate found it, by more than chance.
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
    if missing > 0 and firing and not situation.by_hand and not _fell_further(situation, settings):
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


def is_worth_a_try(engine: sa.Engine, settings: Settings) -> bool:
    """Is a retrain called for, with labels enough? What the watcher asks before it starts one."""
    note_schedule(engine, settings)
    if not decide(read_situation(engine, settings), settings.retrain).due:
        return False
    name = settings.name
    live, start = deployments.live(engine, name), fresh_since(engine, name, open_request(engine, name), by_hand=False)
    # Every image of a class that arrives is fresh, whenever it came.
    fresh = predictions.count_labelled_captures(engine, [live.version], since=start)
    fresh += sum(new_labels_of(engine, settings, live.version).classes.values())
    return fresh >= settings.retrain.min_labels


def _drift(situation: Situation, settings: RetrainSettings) -> Asked:
    fires = situation.open_trigger is Trigger.DRIFT
    if fires:
        return Asked(Trigger.DRIFT, True, situation.open_why)
    if not settings.on_drift:
        return Asked(Trigger.DRIFT, False, "retrain.on_drift is off")
    if not situation.check:
        return Asked(Trigger.DRIFT, False, "no check of the live model yet; `perennial monitor` makes one")
    # Labels that came since may say otherwise.
    at = f" of {situation.checked_at:%Y-%m-%d %H:%M} UTC" if situation.checked_at is not None else ""
    return Asked(Trigger.DRIFT, False, f"{situation.check} (so the check{at}; `perennial monitor` looks anew)")


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


def _fell_further(situation: Situation, settings: RetrainSettings) -> bool:
    """Has the live model lost more since the gate that waits looked at it? What it reckoned with is out of date."""
    now, seen = situation.accuracy, situation.awaited_accuracy
    if now is None or seen is None:
        return False
    return now.high < seen and seen - now.value >= settings.accuracy_drop


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


def _cooldown_left(situation: Situation, cooldown: float) -> float:
    if situation.last_retrain is None:
        return 0.0
    waited = (situation.now - situation.last_retrain).total_seconds()
    # Two clocks may differ a little; a retrain that lies further ahead was dated by one that was wrong since.
    if not -cooldown < waited < cooldown:
        return 0.0
    return cooldown - max(0.0, waited)
