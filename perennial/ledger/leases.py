"""Leases: one holder at a time, across processes and machines; a dead holder's lease runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from perennial.errors import LeaseHeld
from perennial.ids import new_id
from perennial.ledger.connect import reading, writing
from perennial.ledger.schema import leases


@contextmanager
def held(engine: sa.Engine, name: str, seconds: float) -> Iterator[None]:
    """Hold a lease for the length of the block, at most `seconds`.

    Raises:
        LeaseHeld: somebody else holds it; the message says until when.
    """
    holder = new_id()
    now = datetime.now(UTC)
    insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    until = now + timedelta(seconds=seconds)
    claim = (
        insert(leases)
        .values(name=name, holder=holder, until=until)
        .on_conflict_do_update(
            index_elements=["name"], set_={"holder": holder, "until": until}, where=leases.c.until < now
        )
    )
    with writing(engine) as connection:
        connection.execute(claim)
    with reading(engine) as connection:
        row = connection.execute(sa.select(leases).where(leases.c.name == name)).one_or_none()
    if row is None or row.holder != holder:
        when = f" until {row.until:%Y-%m-%d %H:%M:%S} UTC at the latest" if row else ""
        raise LeaseHeld(f"{name} is held by another process{when}")
    try:
        yield
    finally:
        with writing(engine) as connection:
            connection.execute(sa.delete(leases).where(leases.c.name == name, leases.c.holder == holder))
