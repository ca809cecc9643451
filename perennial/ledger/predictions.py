"""Predictions: written by the service, read by the monitor and by retraining.

Where a label is asked for, one that is no class of the model that answered counts only if it is among `new`; with None
every label counts (`perennial.ledger.new_classes`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects import postgresql, sqlite

from perennial.ids import first_id
from perennial.ledger import traffic
from perennial.ledger.connect import reading, writing
from perennial.ledger.schema import labels, predictions


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answered prediction. Vectors are float32: `probabilities` [K], `embedding` [E], `properties` [P]."""

    id: str
    at: datetime
    model_version: str
    precision: str
    label: str
    confidence: float
    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32]
    properties: NDArray[np.float32]
    width: int
    height: int
    format: str
    mode: str
    bytes: int
    image_digest: str
    image_url: str | None
    source: str | None
    latency_ms: float


@dataclass(frozen=True, slots=True)
class LabelledPrediction:
    """A prediction and its last label (None where there is none)."""

    prediction: Prediction
    true_label: str | None


@dataclass(frozen=True, slots=True)
class Span:
    """Of some predictions: how many, the ids of the first and the last one, and the moments between which they lie."""

    rows: int
    first: str | None
    last: str | None
    start: datetime | None
    end: datetime | None


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """A prediction's answer and its last label."""

    image_digest: str
    answered: str
    true_label: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a version answered, without vectors. `true_label` is its last label, where labels were asked for."""

    id: str
    model_version: str
    image_digest: str
    label: str
    confidence: float
    latency_ms: float
    true_label: str | None = None


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """A prediction that nobody has labelled, with its captured image."""

    id: str
    at: datetime
    image_digest: str
    label: str
    confidence: float


def record(engine: sa.Engine, rows: Sequence[Prediction]) -> None:
    """Write predictions in one transaction, and count them. A row whose id is there already is left as it is."""
    if not rows:
        return
    with writing(engine) as connection:
        written = connection.execute(_inserting(engine.dialect.name), [_fields(row) for row in rows])
        traffic.add(connection, ((row.model_version, row.at) for row in written))


@cache  # building it takes as long as executing it
def _inserting(dialect: str) -> sa.sql.dml.ReturningInsert[Any]:
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = insert(predictions).on_conflict_do_nothing(index_elements=["id"])
    return statement.returning(predictions.c.model_version, predictions.c.at)


def latest(
    engine: sa.Engine,
    model_version: str,
    limit: int,
    *,
    precision: str | None = None,
    sample: int | None = None,
    new: Collection[str] | None = (),
) -> list[LabelledPrediction]:
    """The latest `limit` predictions of a version, oldest first, each with its last label; with `sample` so many of
    them at most, drawn at random by the database."""
    newest = _newest(model_version, limit, precision, predictions.c.id)
    if sample is not None and sample < limit:
        newest = sa.select(newest.c.id).order_by(sa.func.random()).limit(sample).subquery()
    rows = sa.select(predictions, last_label(predictions.c.id, new)).join(newest, newest.c.id == predictions.c.id)
    return _labelled(engine, rows.order_by(predictions.c.id))


def received_within(
    engine: sa.Engine,
    model_version: str,
    spans: Sequence[tuple[datetime, datetime]],
    *,
    precision: str,
    sample: int,
    without: Sequence[tuple[str, str]] = (),
    new: Collection[str] | None = (),
) -> list[LabelledPrediction]:
    """A version's predictions that came in within one of these spans of time, oldest first, each with its last label;
    of more than `sample` so many, drawn at random by the database. Those from one id to another of `without` are left
    out."""
    drawn = (
        sa.select(predictions.c.id)
        .where(
            predictions.c.model_version == model_version,
            predictions.c.precision == precision,
            sa.or_(*(predictions.c.at.between(start, end) for start, end in spans)),
            *(~predictions.c.id.between(first, last) for first, last in without),
        )
        .order_by(sa.func.random())
        .limit(sample)
        .subquery()
    )
    rows = sa.select(predictions, last_label(predictions.c.id, new)).join(drawn, drawn.c.id == predictions.c.id)
    return _labelled(engine, rows.order_by(predictions.c.id))


def span(engine: sa.Engine, model_version: str, limit: int, *, precision: str | None = None) -> Span:
    """What the latest `limit` predictions of a version span."""
    newest = _newest(model_version, limit, precision, predictions.c.id, predictions.c.at)
    of = sa.func
    query = sa.select(of.count(), of.min(newest.c.id), of.max(newest.c.id), of.min(newest.c.at), of.max(newest.c.at))
    with reading(engine) as connection:
        rows, first, last, start, end = connection.execute(query).one()
    return Span(int(rows), first, last, start, end)


def labelled_answers(
    engine: sa.Engine,
    model_version: str,
    limit: int,
    *,
    precision: str | None = None,
    new: Collection[str] | None = (),
) -> list[LabelledAnswer]:
    """Of the latest `limit` predictions of a version those that have a label, oldest first."""
    columns = (predictions.c.id, predictions.c.image_digest, predictions.c.label)
    newest = _newest(model_version, limit, precision, *columns)
    rows = sa.select(newest.c.image_digest, newest.c.label, last_label(newest.c.id, new))
    with reading(engine) as connection:
        found = connection.execute(rows.where(_has_label(newest.c.id)).order_by(newest.c.id))
        return [LabelledAnswer(*row) for row in found if row.true_label is not None]


def labelled_answers_between(
    engine: sa.Engine, model_version: str, first: str, last: str, *, new: Collection[str] | None = ()
) -> list[LabelledAnswer]:
    """Of a version's predictions from one id to another those that have a label, oldest first."""
    rows = sa.select(predictions.c.image_digest, predictions.c.label, last_label(predictions.c.id, new)).where(
        predictions.c.model_version == model_version,
        predictions.c.id.between(first, last),
        _has_label(predictions.c.id),
    )
    with reading(engine) as connection:
        found = connection.execute(rows.order_by(predictions.c.id))
        return [LabelledAnswer(*row) for row in found if row.true_label is not None]


def answers_between(engine: sa.Engine, model_version: str, first: str, last: str | None, *, limit: int) -> list[Answer]:
    """What a version answered from one id up to, but not with, another (None: to the last), oldest first, at most
    `limit` of them."""
    query = sa.select(*_answer_columns()).where(*_between([model_version], first, last))
    with reading(engine) as connection:
        rows = connection.execute(query.order_by(predictions.c.id).limit(limit)).mappings()
        return [Answer(**row) for row in rows]


def labelled_between(
    engine: sa.Engine, model_versions: Sequence[str], first: str, last: str | None, *, limit: int
) -> list[Answer]:
    """The same of several versions, of those that have a label, in the order in which they were first labelled: more
    labels change nothing about the order of the earlier ones."""
    given = (
        sa.select(labels.c.prediction_id, sa.func.min(labels.c.id).label("given"))
        .where(labels.c.prediction_id >= first)
        .group_by(labels.c.prediction_id)
        .subquery()
    )
    query = (
        sa.select(*_answer_columns(), last_label(predictions.c.id, None))
        .join(given, given.c.prediction_id == predictions.c.id)
        .where(*_between(model_versions, first, last))
        .order_by(given.c.given)
        .limit(limit)
    )
    with reading(engine) as connection:
        return [Answer(**row) for row in connection.execute(query).mappings()]


def labelled_captures(
    engine: sa.Engine,
    model_versions: Sequence[str],
    *,
    since: datetime | None = None,
    limit: int | None = None,
) -> list[LabelledPrediction]:
    """Predictions of these versions that have a label and a captured image, oldest first; with `limit` the newest.
    Every label counts."""
    rows = sa.select(predictions, last_label(predictions.c.id, None)).where(
        predictions.c.model_version.in_(model_versions),
        predictions.c.image_url.is_not(None),
        _has_label(predictions.c.id),
    )
    if since is not None:
        rows = rows.where(predictions.c.at >= since)
    rows = rows.order_by(predictions.c.id.desc())
    if limit is not None:
        rows = rows.limit(limit)
    return _labelled(engine, rows)[::-1]


def labelled_without_image(
    engine: sa.Engine, model_version: str, *, since: datetime | None = None, limit: int
) -> dict[str, str]:
    """The newest predictions of a version that have a label and no captured image, or none any more: their ids, each
    with its image's digest."""
    rows = sa.select(predictions.c.id, predictions.c.image_digest).where(
        predictions.c.model_version == model_version,
        predictions.c.image_url.is_(None),
        sa.exists().where(labels.c.prediction_id == predictions.c.id),
    )
    if since is not None:
        rows = rows.where(predictions.c.at >= since)
    with reading(engine) as connection:
        found = connection.execute(rows.order_by(predictions.c.id.desc()).limit(limit))
        return {row.id: row.image_digest for row in found}


def count_labelled_captures(
    engine: sa.Engine,
    model_versions: Sequence[str],
    *,
    since: datetime | None = None,
    labelled_since: datetime | None = None,
    new: Collection[str] | None = (),
) -> int:
    """How many predictions of these versions have a label and a captured image: of those made at `since` or later,
    with a label given later than `labelled_since`."""
    # From the labels to their predictions: those are few, and a version may have millions.
    given = sa.select(labels.c.prediction_id).distinct()
    if new is not None:
        given = given.where(_counts(labels, new))
    labelled = (given if labelled_since is None else given.where(labels.c.at > labelled_since)).subquery()
    query = (
        sa.select(sa.func.count())
        .select_from(labelled.join(predictions, labelled.c.prediction_id == predictions.c.id))
        .where(predictions.c.model_version.in_(model_versions), predictions.c.image_url.is_not(None))
    )
    if since is not None:
        query = query.where(predictions.c.at >= since)
    with reading(engine) as connection:
        return int(connection.execute(query).scalar_one())


def unlabelled(engine: sa.Engine, model_version: str, window: int) -> list[Unlabelled]:
    """Of the latest `window` predictions of a version those with a captured image and without any label, oldest
    first."""
    newest = _newest(model_version, window, None, predictions.c.id)
    of = predictions.c
    query = (
        sa.select(of.id, of.at, of.image_digest, of.label, of.confidence)
        .join(newest, newest.c.id == of.id)
        .where(of.image_url.is_not(None), ~_has_label(of.id))
        .order_by(of.id)
    )
    with reading(engine) as connection:
        return [Unlabelled(**row) for row in connection.execute(query).mappings()]


def image_url(engine: sa.Engine, prediction_id: str) -> str | None:
    """Where a prediction's captured image lies; None if there is no such prediction or no image of it."""
    query = sa.select(predictions.c.image_url).where(predictions.c.id == prediction_id)
    with reading(engine) as connection:
        return connection.execute(query).scalar()


def known(engine: sa.Engine, ids: Sequence[str]) -> dict[str, str]:
    """Of these ids, those in the ledger, each with its model version."""
    found: dict[str, str] = {}
    with reading(engine) as connection:
        for start in range(0, len(ids), 500):
            query = sa.select(predictions.c.id, predictions.c.model_version).where(
                predictions.c.id.in_(ids[start : start + 500])
            )
            found.update({row.id: row.model_version for row in connection.execute(query)})
    return found


def count(engine: sa.Engine, model_version: str | None = None) -> int:
    query = sa.select(sa.func.count()).select_from(predictions)
    if model_version is not None:
        query = query.where(predictions.c.model_version == model_version)
    with reading(engine) as connection:
        return int(connection.execute(query).scalar_one())


def count_since(engine: sa.Engine, model_version: str, since: datetime) -> int:
    """How many predictions of a version were made at this moment or later."""
    # By the ids, which sort by time: of a version's moments there is no index.
    query = (
        sa.select(sa.func.count())
        .select_from(predictions)
        .where(predictions.c.model_version == model_version, predictions.c.id >= first_id(since))
    )
    with reading(engine) as connection:
        return int(connection.execute(query).scalar_one())


def _newest(model_version: str, limit: int, precision: str | None, *columns: sa.Column[Any]) -> sa.Subquery:
    """These columns of the latest `limit` predictions of a version."""
    query = sa.select(*columns).where(predictions.c.model_version == model_version)
    if precision is not None:
        query = query.where(predictions.c.precision == precision)
    return query.order_by(predictions.c.id.desc()).limit(limit).subquery()


def _answer_columns() -> list[sa.Column[Any]]:
    of = predictions.c
    return [of.id, of.model_version, of.image_digest, of.label, of.confidence, of.latency_ms]


def _between(model_versions: Sequence[str], first: str, last: str | None) -> list[sa.ColumnElement[bool]]:
    within = [predictions.c.model_version.in_(model_versions), predictions.c.id >= first]
    return within if last is None else [*within, predictions.c.id < last]


def _has_label(prediction_id: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    return sa.exists().where(labels.c.prediction_id == prediction_id)


def _counts(table: sa.FromClause, new: Collection[str]) -> sa.ColumnElement[bool]:
    return sa.or_(table.c.known, table.c.label.in_(new)) if new else table.c.known


def last_label(prediction_id: sa.ColumnElement[str], new: Collection[str] | None) -> sa.Label[Any]:
    """Of each prediction the last label as a column `true_label`; null where that one does not count, as it is neither
    a class nor `new` (None: every label counts)."""
    return (
        sa.select(labels.c.label if new is None else sa.case((_counts(labels, new), labels.c.label)))
        .where(labels.c.prediction_id == prediction_id)
        .order_by(labels.c.id.desc())
        .limit(1)
        .scalar_subquery()
        .label("true_label")
    )


def _labelled(engine: sa.Engine, query: sa.Select[Any]) -> list[LabelledPrediction]:
    with reading(engine) as connection:
        result = []
        for row in connection.execute(query).mappings():
            fields = dict(row)
            true_label = fields.pop("true_label")
            result.append(LabelledPrediction(Prediction(**fields), true_label))
        return result


def _fields(row: Prediction) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Prediction.__dataclass_fields__}
