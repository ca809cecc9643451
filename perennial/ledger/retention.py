"""What retention asks of the ledger and removes from it. Every write is a short transaction, bounded in rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from perennial.ledger import leases
from perennial.ledger.connect import reading, writing
from perennial.ledger.schema import deployments, labels, models, predictions, rejected_images, shadow_answers, traffic

#: Rows in one transaction: a service that writes to the same SQLite file waits for as long as one takes.
MOST_ROWS: Final = 2000
#: What a row takes beside its vectors and its URL: ids, numbers, short texts.
_FIXED_BYTES: Final = 300
#: What is counted by the minute, of images that could not be read and of those that were answered, and what a count
#: takes.
REJECTIONS, TRAFFIC = rejected_images, traffic
COUNT_BYTES: Final = 100


@dataclass(frozen=True, slots=True)
class Expired:
    """Which predictions may go: those from before `before` (None: none may) that have no label; those with one from
    before `labelled_before` (None: they stay). `windows` maps a version to the first id of its monitor's window; from
    there on its rows stay whatever their age."""

    before: datetime | None
    labelled_before: datetime | None
    windows: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Removed:
    """Rows removed, the bytes in them (without indexes), and the moment of the last of them (None: there were none)."""

    rows: int
    bytes: int
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Use:
    """When an image was last predicted on, and whether any of its predictions has a label."""

    at: datetime
    labelled: bool


def oldest_of_newest(engine: sa.Engine, count: int) -> datetime | None:
    """The moment of the oldest of the newest `count` predictions; None if there are no more than that."""
    query = sa.select(predictions.c.at).order_by(predictions.c.at.desc()).offset(count - 1).limit(2)
    with reading(engine) as connection:
        found = connection.execute(query).scalars().all()
    return found[0] if len(found) == 2 else None


def window_starts(engine: sa.Engine, window: int) -> dict[str, str]:
    """For every live version, whichever model's: the id of the first row of its monitor's window.

    A window is of one precision; where several are served, as many rows stay as fill one of each.
    """
    newest = sa.select(sa.func.max(deployments.c.id)).group_by(deployments.c.name)
    live = sa.select(models.c.version, models.c.manifest).join(
        deployments, sa.and_(deployments.c.version == models.c.version, deployments.c.name == models.c.name)
    )
    found: dict[str, str] = {}
    with reading(engine) as connection:
        for version, manifest in connection.execute(live.where(deployments.c.id.in_(newest))).all():
            rows = window * max(1, len(manifest.get("precisions", ())))
            newest_ids = sa.select(predictions.c.id).where(predictions.c.model_version == version)
            ids = newest_ids.order_by(predictions.c.id.desc()).limit(rows).subquery()
            first = connection.execute(sa.select(sa.func.min(ids.c.id))).scalar()
            if first is not None:
                found[version] = first
    return found


def count_expired(engine: sa.Engine, expired: Expired) -> Removed:
    """What `delete_expired` would remove if it were called until nothing is left."""
    if expired.before is None:
        return Removed(0, 0, None)
    query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(_bytes()), 0), sa.func.max(predictions.c.at)).where(
        _is_expired(expired)
    )
    with reading(engine) as connection:
        rows, size, until = connection.execute(query).one()
    return Removed(int(rows), int(size), until)


def delete_expired(engine: sa.Engine, expired: Expired, since: datetime | None = None) -> Removed:
    """Delete the oldest `MOST_ROWS` expired predictions.

    Args:
        since: look at no older ones; the `until` of the call before, which spares looking again at those that stayed.
    """
    if expired.before is None:
        return Removed(0, 0, None)
    query = sa.select(predictions.c.id, predictions.c.at, _bytes().label("size")).where(_is_expired(expired))
    if since is not None:
        query = query.where(predictions.c.at >= since)
    with writing(engine) as connection:
        found = connection.execute(query.order_by(predictions.c.at).limit(MOST_ROWS)).all()
        if not found:
            return Removed(0, 0, None)
        ids = [row.id for row in found]
        connection.execute(sa.delete(predictions).where(predictions.c.id.in_(ids)))
        connection.execute(sa.delete(shadow_answers).where(shadow_answers.c.prediction_id.in_(ids)))
    return Removed(len(found), sum(row.size for row in found), found[-1].at)


def count_expired_counts(engine: sa.Engine, table: sa.Table, expired: Expired) -> int:
    """What `delete_expired_counts` would remove if it were called until nothing is left."""
    if expired.before is None:
        return 0
    query = sa.select(sa.func.count()).select_from(table).where(table.c.at < expired.before)
    with reading(engine) as connection:
        return int(connection.execute(query).scalar_one())


def delete_expired_counts(engine: sa.Engine, table: sa.Table, expired: Expired) -> int:
    """Delete the oldest expired rows of `REJECTIONS` or `TRAFFIC`, minute by minute, about `MOST_ROWS` of them; returns
    how many."""
    if expired.before is None:
        return 0
    at = table.c.at
    oldest = sa.select(at).where(at < expired.before).order_by(at).limit(MOST_ROWS).subquery()
    with writing(engine) as connection:
        last = connection.execute(sa.select(sa.func.max(oldest.c.at))).scalar()
        if last is None:
            return 0
        return connection.execute(sa.delete(table).where(at <= last)).rowcount


def uses(engine: sa.Engine, digests: Sequence[str], expired: Expired) -> dict[str, Use]:
    """Of these images, those that a row names which stays, and their last use."""
    labelled = sa.case((_has_label(), 1), else_=0)
    query = (
        sa.select(predictions.c.image_digest, sa.func.max(predictions.c.at), sa.func.max(labelled))
        .where(predictions.c.image_url.is_not(None), predictions.c.image_digest.in_(digests))
        .group_by(predictions.c.image_digest)
    )
    if expired.before is not None:
        query = query.where(sa.not_(_is_expired(expired)))
    with reading(engine) as connection:
        return {digest: Use(at, bool(has_label)) for digest, at, has_label in connection.execute(query)}


def names_images(engine: sa.Engine) -> bool:
    """Does any row name an image?"""
    query = sa.select(predictions.c.image_digest).where(predictions.c.image_url.is_not(None)).limit(1)
    with reading(engine) as connection:
        return connection.execute(query).first() is not None


def named(engine: sa.Engine, digests: Sequence[str]) -> set[str]:
    """Of these images, those that a row names."""
    query = (
        sa.select(predictions.c.image_digest)
        .where(predictions.c.image_url.is_not(None), predictions.c.image_digest.in_(digests))
        .distinct()
    )
    with reading(engine) as connection:
        return set(connection.execute(query).scalars())


def forget_images(engine: sa.Engine, digests: Sequence[str]) -> int:
    """Say in at most `MOST_ROWS` rows that name one of these images that it was not kept; returns in how many."""
    some = (
        sa.select(predictions.c.id)
        .where(predictions.c.image_url.is_not(None), predictions.c.image_digest.in_(digests))
        .limit(MOST_ROWS)
    )
    with writing(engine) as connection:
        ids = connection.execute(some).scalars().all()
        if ids:
            connection.execute(sa.update(predictions).where(predictions.c.id.in_(ids)).values(image_url=None))
    return len(ids)


def retraining(engine: sa.Engine) -> bool:
    """Is any model being retrained now? Its labelled captures are being read."""
    return bool(leases.holders(engine, "retrain:"))


def _is_expired(expired: Expired) -> sa.ColumnElement[bool]:
    assert expired.before is not None
    rule = predictions.c.at < expired.before
    if expired.labelled_before is None:
        rule &= ~_has_label()
    elif expired.labelled_before < expired.before:
        rule &= sa.or_(predictions.c.at < expired.labelled_before, ~_has_label())
    for version, first in expired.windows.items():
        rule &= sa.or_(predictions.c.model_version != version, predictions.c.id < first)
    return rule


def _has_label() -> sa.ColumnElement[bool]:
    return sa.exists().where(labels.c.prediction_id == predictions.c.id)


def _bytes() -> sa.ColumnElement[Any]:
    columns = predictions.c
    lengths = (sa.func.length(column) for column in (columns.probabilities, columns.embedding, columns.properties))
    total: sa.ColumnElement[Any] = sa.literal(_FIXED_BYTES) + sa.func.coalesce(sa.func.length(columns.image_url), 0)
    for length in lengths:
        total = total + length
    return total
