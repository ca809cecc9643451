"""Requests for a retrain: events that say why, by which trigger, and that stay open until they are answered."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import sqlalchemy as sa

from perennial.errors import LeaseLost
from perennial.ledger import events
from perennial.ledger.events import Event, EventKind

#: What the cooldown counts from: all that a retrain writes, from its start to its end, and a model that was undone.
COOLS_DOWN_FROM: Final = (
    EventKind.RETRAIN_STARTED, EventKind.GATE_PASSED, EventKind.GATE_REFUSED, EventKind.RETRAIN_FAILED,
    EventKind.ROLLED_BACK,
)  # fmt: skip
_PAGE: Final = 1000


class Trigger(StrEnum):
    """What asks for a retrain."""

    DRIFT = "drift"
    SCHEDULE = "schedule"
    LABELS = "labels"
    HAND = "hand"


def open_request(engine: sa.Engine, name: str) -> Event | None:
    """The newest `retrain_requested` event, if it is still to be answered.

    It is answered by a retrain that came to an end, or by any deployment since. A retrain that only began runs now, or
    was killed; one that lost its lease left the request to the process that took it over.
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
            ended = event.kind is EventKind.GATE_REFUSED or (
                event.kind is EventKind.RETRAIN_FAILED and event.detail.get("error") != LeaseLost.__name__
            )
            if ended and event.caused_by in runs:
                return None
        last = page[-1].id
    return request


def trigger_of(request: Event) -> Trigger:
    """What wrote a request; before there were others, a check did."""
    return Trigger(request.detail.get("trigger", Trigger.DRIFT))
