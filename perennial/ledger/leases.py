"""Leases: one holder at a time, across processes and machines.

A living holder renews its lease every third of it; a dead one's runs out. One that could not renew it in time (stopped,
cut off from the database) may have lost it to another: it must ask, with `confirm`, in the transaction that counts.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from perennial.errors import LeaseHeld, LeaseLost, LedgerUnavailable
from perennial.ids import new_id
from perennial.ledger.connect import reading, writing
from perennial.ledger.schema import leases

logger = logging.getLogger(__name__)

#: A lease is renewed every third of its length; where that failed, every twelfth.
_BEATS: Final = 3
_BEATS_AFTER_FAILURE: Final = 12
_MOST_HOST: Final = 100  # characters


@dataclass(frozen=True, slots=True)
class Held:
    """Who holds a lease (machine, process and a random id), and until when unless it is renewed."""

    name: str
    holder: str
    until: datetime


class Lease:
    """A lease that this process holds."""

    def __init__(self, engine: sa.Engine, name: str, holder: str, seconds: float) -> None:
        self.name, self.holder = name, holder
        self._engine, self._seconds = engine, seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {name}", daemon=True)

    def check(self) -> None:
        """Raises LeaseLost if another process took the lease meanwhile."""
        with reading(self._engine) as connection:
            self.confirm(connection)

    def confirm(self, connection: sa.Connection) -> None:
        """The same inside a transaction of the caller's: until that ends nobody can take the lease."""
        query = sa.select(leases.c.holder).where(leases.c.name == self.name).with_for_update()
        if connection.execute(query).scalar_one_or_none() != self.holder:
            raise LeaseLost(
                f"{self.name} was taken over by another process, as this one did not renew its lease of "
                f"{self._seconds:g} s in time: it was stopped, or cut off from the database"
            )

    def _keep(self) -> None:
        pause = self._seconds / _BEATS
        while not self._done.wait(pause):
            pause = self._seconds / _BEATS
            try:
                if not self._renew():
                    logger.warning("the lease %s was taken over by another process", self.name)
                    return
            except LedgerUnavailable as error:
                logger.warning("the lease %s cannot be renewed just now: %s", self.name, error)
                pause = self._seconds / _BEATS_AFTER_FAILURE

    def _renew(self) -> bool:
        with writing(self._engine) as connection:
            until = _now(connection) + timedelta(seconds=self._seconds)
            renewed = connection.execute(sa.update(leases).where(self._is_ours()).values(until=until))
        return bool(renewed.rowcount)

    def _is_ours(self) -> sa.ColumnElement[bool]:
        return sa.and_(leases.c.name == self.name, leases.c.holder == self.holder)

    def _start(self) -> None:
        self._thread.start()

    def _give_back(self) -> None:
        self._done.set()
        self._thread.join()
        try:
            with writing(self._engine) as connection:
                connection.execute(sa.delete(leases).where(self._is_ours()))
        except LedgerUnavailable as error:
            # What it was held for is done. Nobody renews it any more, so it runs out by itself.
            logger.warning(
                "the lease %s cannot be given back; it runs out in %g s: %s", self.name, self._seconds, error
            )


@contextmanager
def held(engine: sa.Engine, name: str, seconds: float) -> Iterator[Lease]:
    """Hold a lease for the length of the block; a dead holder's is free after `seconds`.

    Raises:
        LeaseHeld: somebody else holds it; the message says who and until when.
    """
    lease = Lease(engine, name, f"{socket.gethostname()[:_MOST_HOST]} pid {os.getpid()} {new_id()}", seconds)
    insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    with writing(engine) as connection:
        now = _now(connection)
        ours = {"holder": lease.holder, "until": now + timedelta(seconds=seconds)}
        claim = insert(leases).values(name=name, **ours)
        connection.execute(claim.on_conflict_do_update(index_elements=["name"], set_=ours, where=leases.c.until < now))
        row = connection.execute(sa.select(leases).where(leases.c.name == name)).one_or_none()
    if row is None or row.holder != lease.holder:
        who = f" ({_who(row.holder)}) until {row.until:%Y-%m-%d %H:%M:%S} UTC, and longer while it lives" if row else ""
        raise LeaseHeld(f"{name} is held by another process{who}")
    lease._start()
    try:
        yield lease
    finally:
        lease._give_back()


def holders(engine: sa.Engine, prefix: str) -> list[Held]:
    """The leases whose name begins so and that somebody holds now."""
    query = sa.select(leases).where(leases.c.name.startswith(prefix, autoescape=True)).order_by(leases.c.name)
    with reading(engine) as connection:
        now = _now(connection)
        return [
            Held(row.name, _who(row.holder), row.until)
            for row in connection.execute(query.where(leases.c.until >= now))
        ]


def _who(holder: str) -> str:
    return holder.rpartition(" ")[0] or holder


def _now(connection: sa.Connection) -> datetime:
    """The time by the clock that all holders share: PostgreSQL's, else this machine's."""
    if connection.dialect.name == "postgresql":
        now: datetime = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        return now.astimezone(UTC)
    return datetime.now(UTC)
