"""How many predictions were recorded, by minute and version: what came in over a month is a few thousand rows, not
millions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from perennial.ledger.connect import reading
from perennial.ledger.schema import models, rejected_images, traffic


def add(connection: sa.Connection, recorded: Iterable[tuple[str, datetime]]) -> None:
    """Count predictions, each with its version and moment, in the transaction that records them."""
    counted = Counter((at.replace(second=0, microsecond=0), version) for version, at in recorded)
    if not counted:
        return
    # In one order everywhere: two processes that lock the same rows in different orders would wait for each other.
    connection.execute(
        _adding(connection.dialect.name),
        [{"at": at, "model_version": version, "answered": counted[at, version]} for at, version in sorted(counted)],
    )


@cache  # building it takes longer than executing it
def _adding(dialect: str) -> sa.Insert:
    statement = (postgresql.insert if dialect == "postgresql" else sqlite.insert)(traffic)
    return statement.on_conflict_do_update(
        index_elements=[traffic.c.at, traffic.c.model_version],
        set_={"answered": traffic.c.answered + statement.excluded.answered},
    )


def answered(
    engine: sa.Engine, versions: Collection[str], start: datetime, bucket: timedelta, buckets: int
) -> list[int]:
    """Predictions of these versions in each of `buckets` spans of time from `start` on. A span is whole minutes."""
    query = sa.select(traffic.c.at, sa.func.sum(traffic.c.answered)).where(
        traffic.c.at >= start, traffic.c.model_version.in_(list(versions))
    )
    return _in_buckets(engine, query.group_by(traffic.c.at), start, bucket, buckets)


def per_minute(engine: sa.Engine, name: str, since: datetime) -> dict[datetime, int]:
    """Predictions of every version of a model by the minute (UTC) in which they were made, from the minute of `since`
    on. Minutes without any are left out."""
    versions = sa.select(models.c.version).where(models.c.name == name)
    query = sa.select(traffic.c.at, sa.func.sum(traffic.c.answered)).where(
        traffic.c.at >= since.replace(second=0, microsecond=0), traffic.c.model_version.in_(versions)
    )
    with reading(engine) as connection:
        return {at: int(count) for at, count in connection.execute(query.group_by(traffic.c.at))}


def rejected(
    engine: sa.Engine, versions: Collection[str], start: datetime, bucket: timedelta, buckets: int
) -> list[int]:
    """The same of images that could not be read."""
    at = rejected_images.c.at
    query = sa.select(at, sa.func.sum(rejected_images.c.images)).where(
        at >= start, rejected_images.c.model_version.in_(list(versions))
    )
    return _in_buckets(engine, query.group_by(at), start, bucket, buckets)


def span(hours: int, most: int, now: datetime | None = None) -> tuple[datetime, timedelta, int]:
    """The last `hours` as at most `most` spans of as many minutes each: where they start, how long each is and how many
    there are. They start at multiples of their length, so that a picture of them does not tremble."""
    minutes = -(-hours * 60 // most)
    bucket = timedelta(minutes=minutes)
    epoch = datetime(2000, 1, 1, tzinfo=UTC)
    end = epoch + ((now or datetime.now(UTC)) - epoch) // bucket * bucket + bucket
    buckets = hours * 60 // minutes
    return end - buckets * bucket, bucket, buckets


def _in_buckets(
    engine: sa.Engine, query: sa.Select[Any], start: datetime, bucket: timedelta, buckets: int
) -> list[int]:
    found = [0] * buckets
    with reading(engine) as connection:
        for at, count in connection.execute(query):
            place = (at - start) // bucket
            if place < buckets:  # it was counted by a clock that was ahead
                found[place] += int(count)
    return found
