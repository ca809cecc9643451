"""What a challenger answered beside the champion, unseen, or failed to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from perennial.ledger.connect import reading, writing
from perennial.ledger.predictions import last_label
from perennial.ledger.schema import labels, predictions, shadow_answers


@dataclass(frozen=True, slots=True)
class ShadowAnswer:
    """A challenger's answer to the image of a prediction. Where it failed, `fault` says how and the rest is None.
    `latency_ms` is its inference alone, `champion_ms` that of the model that was asked."""

    prediction_id: str
    version: str
    at: datetime
    label: str | None = None
    confidence: float | None = None
    latency_ms: float | None = None
    champion_ms: float | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Shadowed:
    """A shadow answer beside the prediction that was given, and its last label (None where there is none)."""

    shadow: ShadowAnswer
    image_digest: str
    answered: str
    confidence: float
    true_label: str | None


def record(engine: sa.Engine, rows: Sequence[ShadowAnswer]) -> None:
    """Write them in one transaction. One that is there already is left as it is."""
    if not rows:
        return
    insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    statement = insert(shadow_answers).on_conflict_do_nothing(index_elements=["prediction_id", "version"])
    with writing(engine) as connection:
        connection.execute(statement, [asdict(row) for row in rows])


def between(
    engine: sa.Engine, version: str, first: str, last: str | None, *, limit: int, labelled: bool = False
) -> list[Shadowed]:
    """A version's shadow answers to predictions from one id up to, but not with, another (None: to the last), oldest
    first, at most `limit` of them; those whose prediction has not arrived are left out, and with `labelled`
    those that have no label."""
    query = (
        sa.select(
            shadow_answers,
            predictions.c.image_digest,
            predictions.c.label.label("answered"),
            predictions.c.confidence.label("sure"),
            last_label(predictions.c.id, None),
        )
        .join(predictions, predictions.c.id == shadow_answers.c.prediction_id)
        .where(shadow_answers.c.version == version, shadow_answers.c.prediction_id >= first)
        .order_by(shadow_answers.c.prediction_id)
        .limit(limit)
    )
    if last is not None:
        query = query.where(shadow_answers.c.prediction_id < last)
    if labelled:
        query = query.where(sa.exists().where(labels.c.prediction_id == predictions.c.id))
    found = []
    with reading(engine) as connection:
        for row in connection.execute(query).mappings():
            answer = ShadowAnswer(**{name: row[name] for name in ShadowAnswer.__dataclass_fields__})
            found.append(Shadowed(answer, row["image_digest"], row["answered"], row["sure"], row["true_label"]))
    return found
