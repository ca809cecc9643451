"""Requests for a retrain: events that say why, by which trigger, and that stay open until they are answered."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import sqlalchemy as sa

from perennial.errors import LeaseLost
from perennial.ledger import events
from perennial.ledger.events import Event, EventKind

#: What the cooldown counts from: all that a retrain writes, from its start to its end, that of its challenger's rollout
#: included, and a model that was undone.
COOLS_DOWN_FROM: Final = (
    EventKind.RETRAIN_STARTED, EventKind.GATE_PASSED, EventKind.GATE_REFUSED, EventKind.RETRAIN_FAILED,
    EventKind.ROLLOUT_STARTED, EventKind.ROLLOUT_ADVANCED, EventKind.ROLLOUT_STOPPED, EventKind.ROLLED_BACK,
)  # fmt: skip
#: What follows from a start and is no end yet.
_STEPS: Final = (EventKind.GATE_PASSED, EventKind.ROLLOUT_STARTED, EventKind.ROLLOUT_ADVANCED)
_PAGE: Final = 1000


class Trigger(StrEnum):
    """What asks for a retrain."""

    DRIFT = "drift"
    SCHEDULE = "schedule"
    LABELS = "labels"
    HAND = "hand"


def open_request(engine: sa.Engine, name: str) -> Event | None:
    """The newest `retrain_requested` event, if it is still to be answered.

    It is answered by a retrain that came to an end, or by any deployment since; one whose challenger goes live in
    stages ends with these. A retrain that only began runs now, or was killed; one that lost its lease left the request
    to the process that took it over.
    """
    request = events.last(engine, name, [EventKind.RETRAIN_REQUESTED])
    if request is None:
        return None
    runs: set[int] = set()
    last = request.id
    while page := events.after(engine, name, last, limit=_PAGE):
        for event in page:
            if event.kind in (EventKind.DEPLOYED, EventKind.ROLLED_BACK):
                return None
            if event.kind is EventKind.RETRAIN_STARTED and event.caused_by == request.id:
                runs.add(event.id)
            if event.kind in _STEPS and event.caused_by in runs:
                runs.add(event.id)
            ended = event.kind in (EventKind.GATE_REFUSED, EventKind.ROLLOUT_STOPPED) or (
                event.kind is EventKind.RETRAIN_FAILED and event.detail.get("error") != LeaseLost.__name__
            )
            if ended and event.caused_by in runs:
                return None
        last = page[-1].id
    return request


def trigger_of(request: Event) -> Trigger:
    """What wrote a request; before there were others, a check did."""
    return Trigger(request.detail.get("trigger", Trigger.DRIFT))
