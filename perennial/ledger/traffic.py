"""How many predictions were answered, minute by minute."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa

from perennial.ids import first_id
from perennial.ledger.connect import reading
from perennial.ledger.schema import models, predictions


def per_minute(engine: sa.Engine, name: str, since: datetime) -> dict[datetime, int]:
    """Predictions of every version of a model since a moment, by the minute (UTC) in which they were made. Minutes
    without any are left out."""
    if engine.dialect.name == "postgresql":
        minute = sa.func.to_char(sa.func.timezone("UTC", predictions.c.at), "YYYY-MM-DD HH24:MI")
    else:
        minute = sa.func.strftime("%Y-%m-%d %H:%M", predictions.c.at)
    versions = sa.select(models.c.version).where(models.c.name == name)
    query = (
        sa.select(minute.label("minute"), sa.func.count().label("count"))
        # By the ids, which sort by time: of a version's moments there is no index.
        .where(predictions.c.model_version.in_(versions), predictions.c.id >= first_id(since))
        .group_by("minute")
    )
    with reading(engine) as connection:
        return {
            datetime.strptime(at, "%Y-%m-%d %H:%M").replace(tzinfo=UTC): count
            for at, count in connection.execute(query)
        }
