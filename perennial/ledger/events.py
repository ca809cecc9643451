"""Events: the audit trail. Append-only; each says what happened, with its numbers, and what caused it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from perennial.ledger.connect import reading, writing
from perennial.ledger.schema import events


class EventKind(StrEnum):
    CHECK_CHANGED = "check_changed"
    DRIFT_OPENED = "drift_opened"
    DRIFT_CLOSED = "drift_closed"
    SCHEDULE_CHANGED = "schedule_changed"
    RETRAIN_REQUESTED = "retrain_requested"
    RETRAIN_STARTED = "retrain_started"
    RETRAIN_FAILED = "retrain_failed"
    GATE_PASSED = "gate_passed"
    GATE_REFUSED = "gate_refused"
    ROLLOUT_STARTED = "rollout_started"
    ROLLOUT_ADVANCED = "rollout_advanced"
    ROLLOUT_STOPPED = "rollout_stopped"
    DEPLOYED = "deployed"
    ROLLED_BACK = "rolled_back"
    WATCH_PASSED = "watch_passed"
    SWAP_FAILED = "swap_failed"


@dataclass(frozen=True, slots=True)
class Event:
    id: int
    at: datetime
    name: str
    kind: EventKind
    detail: dict[str, Any]
    caused_by: int | None

    def document(self) -> dict[str, Any]:
        """As JSON, the same wherever an event is shown: `GET /v1/events`, `perennial events`, webhooks."""
        return {
            "id": self.id,
            "at": self.at.isoformat(),
            "kind": str(self.kind),
            "detail": self.detail,
            "caused_by": self.caused_by,
        }


def page(found: Sequence[Event], after_id: int) -> dict[str, Any]:
    """The document of a page of events, oldest first; its `after` asks for the next page."""
    return {"events": [event.document() for event in found], "after": found[-1].id if found else after_id}


#: Asked inside a transaction whether it may be committed; raises if not.
Guard = Callable[[sa.Connection], None]


def add(
    engine: sa.Engine,
    name: str,
    kind: EventKind,
    detail: Mapping[str, Any],
    *,
    caused_by: int | None = None,
    guard: Guard | None = None,
) -> int:
    """Append an event to a model's trail; returns its id. What `guard` raises keeps it from being written."""
    with writing(engine) as connection:
        if guard is not None:
            guard(connection)
        return append(connection, name, kind, detail, caused_by=caused_by)


def append(
    connection: sa.Connection,
    name: str,
    kind: EventKind,
    detail: Mapping[str, Any],
    *,
    caused_by: int | None = None,
) -> int:
    """The same inside a transaction of the caller's."""
    take_turn(connection, name)
    result = connection.execute(
        sa.insert(events).values(
            at=datetime.now(UTC), name=name, kind=str(kind), detail=dict(detail), caused_by=caused_by
        )
    )
    key = result.inserted_primary_key
    assert key is not None
    return int(key[0])


def take_turn(connection: sa.Connection, name: str) -> None:
    """Wait until no other transaction is adding to this model's trail.

    PostgreSQL gives ids before the commit: without turns, a reader that follows the ids could pass one by that is
    committed later. SQLite has one writer at a time anyhow.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(f"perennial:{name}"))))


def after(
    engine: sa.Engine,
    name: str,
    after_id: int = 0,
    *,
    kinds: Sequence[EventKind] | None = None,
    since: datetime | None = None,
    limit: int = 1000,
) -> list[Event]:
    """A model's events with an id above `after_id`, oldest first; with `since`, only those of that moment and later."""
    query = _query(name, kinds).where(events.c.id > after_id)
    if since is not None:
        query = query.where(events.c.at >= since)
    return _read(engine, query.order_by(events.c.id).limit(limit))


def by_id(
    engine: sa.Engine, name: str, ids: Collection[int], *, kinds: Sequence[EventKind] | None = None
) -> list[Event]:
    """A model's events with these ids, oldest first; with `kinds`, only those."""
    return _read(engine, _query(name, kinds).where(events.c.id.in_(list(ids))).order_by(events.c.id))


def last(engine: sa.Engine, name: str, kinds: Sequence[EventKind]) -> Event | None:
    """A model's newest event of one of these kinds."""
    found = newest(engine, name, 1, kinds=kinds)
    return found[0] if found else None


def newest(engine: sa.Engine, name: str, limit: int, *, kinds: Sequence[EventKind] | None = None) -> list[Event]:
    """A model's latest events, newest first."""
    return _read(engine, _query(name, kinds).order_by(events.c.id.desc()).limit(limit))


def count_by_kind(engine: sa.Engine, name: str) -> dict[EventKind, int]:
    """How many events of each kind a model has had."""
    query = sa.select(events.c.kind, sa.func.count()).where(events.c.name == name).group_by(events.c.kind)
    with reading(engine) as connection:
        return {EventKind(kind): int(count) for kind, count in connection.execute(query)}


def count_after_last(engine: sa.Engine, name: str, kind: EventKind, last: Sequence[EventKind]) -> int:
    """How many events of a kind a model has had since the last one of other kinds; all, if there was none of those."""
    mark = (
        sa.select(sa.func.max(events.c.id))
        .where(events.c.name == name, events.c.kind.in_([str(other) for other in last]))
        .scalar_subquery()
    )
    query = sa.select(sa.func.count()).where(
        events.c.name == name, events.c.kind == str(kind), events.c.id > sa.func.coalesce(mark, 0)
    )
    with reading(engine) as connection:
        return int(connection.execute(query).scalar_one())


def _query(name: str, kinds: Sequence[EventKind] | None = None) -> sa.Select[Any]:
    query = sa.select(events).where(events.c.name == name)
    return query if kinds is None else query.where(events.c.kind.in_([str(kind) for kind in kinds]))


def _read(engine: sa.Engine, query: sa.Select[Any]) -> list[Event]:
    with reading(engine) as connection:
        return [
            Event(row.id, row.at, row.name, EventKind(row.kind), row.detail, row.caused_by)
            for row in connection.execute(query)
        ]
