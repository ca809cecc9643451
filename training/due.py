"""Is a retrain asked for?"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import sqlalchemy as sa

from perennial.ledger import EventKind, events
from perennial.ledger.events import Event

_PAGE: Final = 1000


def open_request(engine: sa.Engine, name: str) -> Event | None:
    """The newest `retrain_requested` event, if it is still to be answered.

    It is answered by a retrain that came to an end, or by any deployment since. A retrain that only began was killed,
    as the caller holds the lease.
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
            ended = event.kind in (EventKind.GATE_REFUSED, EventKind.RETRAIN_FAILED)
            if ended and event.caused_by in runs:
                return None
        last = page[-1].id
    return request


def window_start(request: Event | None) -> datetime | None:
    """When the window of the check that asked began."""
    start = (request.detail.get("window") or {}).get("start") if request else None
    return datetime.fromisoformat(start) if start else None
