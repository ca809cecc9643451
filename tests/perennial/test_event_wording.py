"""Events in words: for people a verdict has spaces, and what somebody wrote stays as it was written."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from perennial import event_wording
from perennial.ledger.events import Event, EventKind

WHEN = datetime(2026, 3, 1, tzinfo=UTC)


def event(kind: EventKind, detail: dict[str, Any]) -> Event:
    return Event(id=1, at=WHEN, name="default", kind=kind, detail=detail, caused_by=None)


@pytest.mark.parametrize(
    ("kind", "detail", "what"),
    [
        (EventKind.CHECK_CHANGED, {"from": None, "to": "insufficient_data"}, "no check to insufficient data on v1"),
        (EventKind.CHECK_CHANGED, {"from": "ok", "to": "sensor_shift"}, "ok to sensor shift on v1"),
        (EventKind.DRIFT_OPENED, {"verdict": "concept_drift"}, "concept drift on v1"),
        (EventKind.DRIFT_CLOSED, {"verdict": "ok", "opened_on": "v0"}, "ok on v1, which began on v0"),
    ],
)
def test_verdicts_are_told_with_spaces(kind: EventKind, detail: dict[str, Any], what: str) -> None:
    assert event_wording.what(event(kind, {"model_version": "v1", **detail})) == what


@pytest.mark.parametrize(
    ("cause", "why"),
    [
        ({"cause": "sensor_shift", "why": "all are darker (brightness_mean)"}, "all are darker (brightness_mean)"),
        ({"cause": "sensor_shift"}, "sensor shift"),
        ("prior_shift", "prior shift"),
        ("more of rolled-in_scale", "more of rolled-in_scale"),
    ],
)
def test_a_cause_is_told_by_its_sentence_or_else_by_its_name(cause: Any, why: str) -> None:
    assert event_wording.why(event(EventKind.DRIFT_OPENED, {"causes": [cause]})) == why
