"""Labels: what people or other systems say the right answer was. Append-only; the last one of a prediction wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from perennial.ledger.connect import reading, writing
from perennial.ledger.schema import labels, predictions


@dataclass(frozen=True, slots=True)
class Feedback:
    """`known`: the label is a class of the model that answered; where not, see `perennial.ledger.new_classes`."""

    prediction_id: str
    label: str
    source: str | None = None
    known: bool = True


def add(engine: sa.Engine, feedback: Sequence[Feedback], *, at: datetime | None = None) -> int:
    """Commit labels in one transaction; returns how many changed something.

    A label that is already a prediction's last is not written again, so sending feedback twice is harmless.
    The caller has checked that the predictions exist.
    """
    at = at or datetime.now(UTC)
    # The last label given for a prediction within one call wins, as it would over several calls.
    wanted = {item.prediction_id: item for item in feedback}
    ids = list(wanted)
    with writing(engine) as connection:
        current: dict[str, str] = {}
        for start in range(0, len(ids), 500):
            newest = (
                sa.select(sa.func.max(labels.c.id))
                .where(labels.c.prediction_id.in_(ids[start : start + 500]))
                .group_by(labels.c.prediction_id)
            )
            query = sa.select(labels.c.prediction_id, labels.c.label).where(labels.c.id.in_(newest))
            current.update({row.prediction_id: row.label for row in connection.execute(query)})
        rows = [
            {
                "prediction_id": item.prediction_id, "at": at, "label": item.label, "source": item.source,
                "known": item.known,
            }
            for item in wanted.values()
            if current.get(item.prediction_id) != item.label
        ]  # fmt: skip
        if rows:
            connection.execute(sa.insert(labels), rows)
    return len(rows)


def order(engine: sa.Engine, prediction_ids: Sequence[str]) -> dict[str, int]:
    """For each prediction that has a label, a number that is higher the later its last label was given."""
    found: dict[str, int] = {}
    with reading(engine) as connection:
        for start in range(0, len(prediction_ids), 500):
            query = (
                sa.select(labels.c.prediction_id, sa.func.max(labels.c.id).label("newest"))
                .where(labels.c.prediction_id.in_(prediction_ids[start : start + 500]))
                .group_by(labels.c.prediction_id)
            )
            found.update({row.prediction_id: row.newest for row in connection.execute(query)})
    return found


def labelling(
    engine: sa.Engine, model_version: str, first: str, last: str, *, limit: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """How sure a version was in its answers from one id to another, and which of them have a label and an image; of the
    newest `limit`, newest first."""
    has_label = sa.exists().where(labels.c.prediction_id == predictions.c.id)
    query = (
        sa.select(predictions.c.confidence, sa.and_(predictions.c.image_url.is_not(None), has_label))
        .where(predictions.c.model_version == model_version, predictions.c.id.between(first, last))
        .order_by(predictions.c.id.desc())
        .limit(limit)
    )
    with reading(engine) as connection:
        found = connection.execute(query).all()
    return np.array([row[0] for row in found], np.float64), np.array([row[1] for row in found], np.bool_)
