"""When to retrain, as a table of cases; and what the ledger makes of it over time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perennial.bundle import Estimate
from perennial.ledger.requests import Trigger
from perennial.settings_sections import RetrainSettings
from training.due import decide
from training.situation import Situation

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)  # a Wednesday
HOUR = timedelta(hours=1)
NIGHTLY: dict[str, Any] = {"schedule": "0 3 * * *"}
EVERY_100: dict[str, Any] = {"every_labels": 100}
#: A retrain on 45 labels came to .61, where the model before drift had .97.
LOST: dict[str, Any] = {
    "accuracy": Estimate(value=0.61, low=0.55, high=0.68),
    "accuracy_before": 0.97,
    "learnt_labels": 45,
    "last_started": NOW - 48 * HOUR,
}

CASES: list[tuple[str, dict[str, Any], dict[str, Any], Trigger | None, str]] = [
    ("nothing is set and nobody asks", {}, {}, None, "retrain.schedule is not set; labels: retrain.every_labels is 0"),
    ("the check's own words", {"check": "could be chance"}, {}, None, "drift: could be chance"),
    ("a check asked", {"open_trigger": Trigger.DRIFT, "open_why": "0.9 -> 0.6"}, {}, Trigger.DRIFT, "0.9 -> 0.6"),
    ("drift is switched off", {"check": "lost"}, {"on_drift": False}, None, "retrain.on_drift is off"),
    (
        "what was asked for before it was switched off stays",
        {"open_trigger": Trigger.DRIFT, "open_why": "0.9 -> 0.6"},
        {"on_drift": False},
        Trigger.DRIFT,
        "0.9 -> 0.6",
    ),
    ("by hand", {"by_hand": True}, {}, Trigger.HAND, "by hand"),
    ("by hand, amid the cooldown", {"by_hand": True, "last_retrain": NOW - HOUR / 4}, {}, Trigger.HAND, "by hand"),
    (
        "by hand, while a request is open: it is that one's turn",
        {"by_hand": True, "open_trigger": Trigger.LABELS, "open_why": "120 new"},
        {},
        Trigger.LABELS,
        "120 new",
    ),
    (
        "a request that a killed retrain left, amid the cooldown that it began",
        {"open_trigger": Trigger.SCHEDULE, "open_why": "at three", "last_retrain": NOW - HOUR / 4},
        NIGHTLY,
        Trigger.SCHEDULE,
        "at three",
    ),
    ("before the scheduled time", {"schedule_since": NOW - HOUR}, NIGHTLY, None, "due on 2026-03-05 03:00 UTC"),
    (
        "at the scheduled time",
        {"now": NOW.replace(hour=3), "schedule_since": NOW.replace(hour=2)},
        NIGHTLY,
        Trigger.SCHEDULE,
        "scheduled for 2026-03-04 03:00 UTC",
    ),
    (
        "nine hours late, as nothing ran",
        {"schedule_since": NOW - 30 * HOUR},
        NIGHTLY,
        Trigger.SCHEDULE,
        "scheduled for 2026-03-04 03:00 UTC",
    ),
    (
        "a week of scheduled times missed is one retrain",
        {"schedule_since": NOW - 24 * 7 * HOUR},
        NIGHTLY,
        Trigger.SCHEDULE,
        "scheduled for 2026-02-26 03:00 UTC",
    ),
    ("made up for", {"schedule_since": NOW - HOUR / 60}, NIGHTLY, None, "due on 2026-03-05 03:00 UTC"),
    ("a schedule not seen before begins now", {"schedule_since": None}, NIGHTLY, None, "due on 2026-03-05 03:00 UTC"),
    ("weekdays by name", {"schedule_since": NOW}, {"schedule": "30 2 * * sun"}, None, "due on 2026-03-08 02:30 UTC"),
    (
        "the cooldown holds back the schedule",
        {"schedule_since": NOW - 10 * HOUR, "last_retrain": NOW - HOUR / 4},
        NIGHTLY,
        None,
        "less than retrain.cooldown ago: wait 2700 s more",
    ),
    ("too few new labels", {"new_labels": 99}, EVERY_100, None, "99 new labels: 1 fewer than retrain.every_labels"),
    ("as many new labels as are asked for", {"new_labels": 100}, EVERY_100, Trigger.LABELS, "100 new labels"),
    (
        "labels since the last retrain",
        {"new_labels": 250, "last_started": NOW - 48 * HOUR, "last_retrain": NOW - 47 * HOUR},
        EVERY_100,
        Trigger.LABELS,
        "250 new labels since the last retrain (2026-03-02 12:00 UTC)",
    ),
    (
        "the cooldown holds back the labels",
        {"new_labels": 100, "last_retrain": NOW},
        EVERY_100,
        None,
        "wait 3600 s more",
    ),
    (
        "a retrain dated by a clock that was a day ahead is no cooldown",
        {"new_labels": 100, "last_retrain": NOW + 24 * HOUR},
        EVERY_100,
        Trigger.LABELS,
        "100 new labels",
    ),
    (
        "not all was won back, and the labels have doubled",
        {**LOST, "new_labels": 45},
        {},
        Trigger.LABELS,
        "45 new labels since the last retrain (2026-03-02 12:00 UTC), as many as it had: the last retrain has not won "
        "back all that was lost, 0.610 of 0.970 by labels",
    ),
    (
        "not all was won back, but the labels have not doubled",
        {**LOST, "new_labels": 44},
        {},
        None,
        "0.610 of 0.970 by labels; it had 45 labels, 44 new labels",
    ),
    (
        "nor is it asked for where that is switched off",
        {**LOST, "new_labels": 45},
        {"until_recovered": False},
        None,
        "retrain.every_labels is 0",
    ),
    (
        "nearly all was won back",
        {**LOST, "new_labels": 500, "accuracy": Estimate(value=0.94, low=0.92, high=0.955)},
        {},
        None,
        "retrain.every_labels is 0",
    ),
    (
        "what is missing could be chance",
        {**LOST, "new_labels": 500, "accuracy": Estimate(value=0.9, low=0.7, high=0.98)},
        {},
        None,
        "retrain.every_labels is 0",
    ),
    (
        "a model that no retrain made has nothing to win back",
        {**LOST, "new_labels": 500, "accuracy_before": None},
        {},
        None,
        "retrain.every_labels is 0",
    ),
    (
        "the gate waits for labels, and a check asks again",
        {"open_trigger": Trigger.DRIFT, "open_why": "0.9 -> 0.6", "awaited_labels": 120, "new_labels": 119},
        {},
        None,
        "the gate of the last retrain waits for 120 more labels: 1 are still missing",
    ),
    (
        "the labels that the gate waited for have come",
        {"open_trigger": Trigger.DRIFT, "open_why": "0.9 -> 0.6", "awaited_labels": 120, "new_labels": 120},
        {},
        Trigger.DRIFT,
        "0.9 -> 0.6",
    ),
    (
        "the model has lost more since the gate that waits looked at it",
        {
            "open_trigger": Trigger.DRIFT,
            "open_why": "0.9 -> 0.6",
            "awaited_labels": 500,
            "awaited_accuracy": 0.77,
            "accuracy": Estimate(value=0.57, low=0.44, high=0.68),
        },
        {},
        Trigger.DRIFT,
        "0.9 -> 0.6",
    ),
    (
        "it may not have: the gate is waited for",
        {
            "open_trigger": Trigger.DRIFT,
            "open_why": "0.9 -> 0.6",
            "awaited_labels": 500,
            "awaited_accuracy": 0.67,
            "accuracy": Estimate(value=0.57, low=0.44, high=0.68),
        },
        {},
        None,
        "the gate of the last retrain waits for 500 more labels",
    ),
    (
        "a person need not wait for them",
        {"by_hand": True, "awaited_labels": 120},
        {},
        Trigger.HAND,
        "by hand",
    ),
    (
        "schedule and labels at once are one retrain",
        {"new_labels": 100, "schedule_since": NOW - 10 * HOUR},
        {**NIGHTLY, **EVERY_100},
        Trigger.SCHEDULE,
        "scheduled for",
    ),
]


@pytest.mark.parametrize(
    ("situation", "settings", "trigger", "why"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_what_calls_for_a_retrain(
    situation: dict[str, Any], settings: dict[str, Any], trigger: Trigger | None, why: str
) -> None:
    decision = decide(Situation(**{"now": NOW, **situation}), RetrainSettings(cooldown=3600, **settings))
    assert decision.trigger == trigger
    assert decision.due is (trigger is not None)
    assert why in decision.why
    assert [asked.trigger for asked in decision.asked] == list(Trigger)
    if trigger is not None:
        assert trigger in {asked.trigger for asked in decision.asked if asked.fires}
