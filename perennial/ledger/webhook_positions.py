"""How far each webhook has been told of a model's events. A webhook is known here by the sha256 of its URL."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from perennial.ledger import events
from perennial.ledger.connect import reading, writing
from perennial.ledger.schema import events as event_rows
from perennial.ledger.schema import webhook_positions


@dataclass(frozen=True, slots=True)
class Position:
    """`event_id` is the last event that needs no more sending; the one after it was tried `attempts` times in vain, and
    is not to be tried again before `retry_at`."""

    event_id: int
    attempts: int
    retry_at: datetime | None


def position(engine: sa.Engine, name: str, webhook: str) -> Position:
    """Where a webhook is. One that is new begins after the newest event, so that nobody is told the past."""
    query = sa.select(webhook_positions.c.event_id, webhook_positions.c.attempts, webhook_positions.c.retry_at).where(
        *_of(name, webhook)
    )
    with reading(engine) as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        with writing(engine) as connection:
            events.take_turn(connection, name)
            newest = connection.execute(
                sa.select(sa.func.max(event_rows.c.id)).where(event_rows.c.name == name)
            ).scalar()
            connection.execute(
                insert(webhook_positions)
                .values(name=name, webhook=webhook, event_id=newest or 0, attempts=0)
                .on_conflict_do_nothing()
            )
            row = connection.execute(query).one()
    return Position(row.event_id, row.attempts, row.retry_at)


def advance(engine: sa.Engine, name: str, webhook: str, before: Position, event_id: int) -> None:
    """Note that everything up to this event needs no more sending, unless the webhook has moved on meanwhile."""
    _update(engine, name, webhook, before, {"event_id": event_id, "attempts": 0, "retry_at": None})


def put_off(engine: sa.Engine, name: str, webhook: str, before: Position, until: datetime) -> None:
    """Note that the event after `before` was tried in vain once more."""
    _update(engine, name, webhook, before, {"attempts": before.attempts + 1, "retry_at": until})


def _update(engine: sa.Engine, name: str, webhook: str, before: Position, values: dict[str, object]) -> None:
    # A sender that overslept its lease must not set back what another one has done since.
    unmoved = webhook_positions.c.event_id == before.event_id
    with writing(engine) as connection:
        connection.execute(sa.update(webhook_positions).where(*_of(name, webhook), unmoved).values(**values))


def _of(name: str, webhook: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return webhook_positions.c.name == name, webhook_positions.c.webhook == webhook
