"""Images that were sent and could not be read: how many by minute, version and reason, never a row an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from perennial.ledger.connect import reading, writing
from perennial.ledger.schema import rejected_images


@dataclass(frozen=True, slots=True)
class RejectedImages:
    """`images` that were refused while a version was live, in the minute that begins `at`, for one `reason`: the slug
    of the problem (`perennial.errors.InvalidImage` and its kinds)."""

    model_version: str
    at: datetime
    reason: str
    images: int


def add(engine: sa.Engine, rows: Sequence[RejectedImages]) -> None:
    """Add these to what was counted before, in one transaction. Any number of processes may."""
    if not rows:
        return
    insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    statement = insert(rejected_images)
    columns = rejected_images.c
    statement = statement.on_conflict_do_update(
        index_elements=[columns.model_version, columns.at, columns.reason],
        set_={"images": columns.images + statement.excluded.images},
    )
    # In one order everywhere: two processes that lock the same rows in different orders would wait for each other.
    ordered = sorted(rows, key=lambda row: (row.model_version, row.at, row.reason))
    with writing(engine) as connection:
        connection.execute(
            statement, [{name: getattr(row, name) for name in RejectedImages.__dataclass_fields__} for row in ordered]
        )


def count_since(engine: sa.Engine, model_version: str, since: datetime | None) -> dict[str, int]:
    """How many of a version's were refused in the minutes that begin at `since` or later (None: ever), by reason."""
    columns = rejected_images.c
    query = sa.select(columns.reason, sa.func.sum(columns.images)).where(columns.model_version == model_version)
    if since is not None:
        query = query.where(columns.at >= since)
    with reading(engine) as connection:
        return {reason: int(images) for reason, images in connection.execute(query.group_by(columns.reason))}
