"""Watches: the live model beside the one it replaced, on labelled images that came in since.

What the model before would have answered is kept, so that each image is looked at once; labels are read anew each time,
so that a corrected one counts as it is now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from perennial.comparable import comparable, draw
from perennial.ids import first_id
from perennial.intervals import accuracy_interval
from perennial.ledger import deployments, events
from perennial.ledger.connect import reading
from perennial.ledger.events import EventKind
from perennial.ledger.schema import labels, predictions, watched_rows

#: Who went back, where it was not a person.
ACTOR: Final = "watch"
#: So many of the live model's answers say how sure it is.
_MOST_ANSWERS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Watch:
    """A deployment that may still turn out to be worse: since when `version` is live in place of `before`, by which
    deployment and event."""

    deployment: int
    event: int
    version: str
    before: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Unseen:
    """A labelled prediction of the watched model that the model before has not answered yet."""

    prediction_id: str
    image_digest: str
    image_url: str
    answer: str
    confidence: float


@dataclass(frozen=True, slots=True)
class WatchedRow:
    """What both models say to one image, and how sure they are."""

    prediction_id: str
    image_digest: str
    live_answer: str
    live_confidence: float
    before_answer: str
    before_confidence: float


@dataclass(frozen=True, slots=True)
class Tally:
    """Of `labelled` images that both models have answered, `rows` are those that they can be compared on
    (`perennial.comparable`): how many of these each has right, and how many only one has."""

    labelled: int = 0
    rows: int = 0
    live: int = 0
    before: int = 0
    only_live: int = 0
    only_before: int = 0

    def document(self) -> dict[str, Any]:
        """As JSON; accuracies with their 95 % intervals."""
        return asdict(self) | {
            "live": accuracy_interval(self.live, self.rows).model_dump(),
            "before": accuracy_interval(self.before, self.rows).model_dump(),
        }


def open_watch(engine: sa.Engine, name: str) -> Watch | None:
    """The watch over the live deployment; None if there is none.

    The first model of a name has none to be compared with, and a version that was gone back to is not watched again, so
    that two models never go to and fro. A watch that was passed is over, and so is one whose version was replaced.
    """
    history = deployments.history(engine, name)
    if not history:
        return None
    first = len(history) - 1
    while first and history[first - 1].version == history[-1].version:  # deployed again while it was live
        first -= 1
    if first == 0:
        return None
    live, before = history[first], history[first - 1]
    passed = events.last(engine, name, (EventKind.WATCH_PASSED,))
    if passed is not None and passed.caused_by == live.event_id:
        return None
    [began] = events.by_id(engine, name, [live.event_id])
    if began.kind is EventKind.ROLLED_BACK:
        return None
    return Watch(live.id, live.event_id, live.version, before.version, live.at)


def add(connection: sa.Connection, deployment: int, rows: Sequence[WatchedRow]) -> None:
    """Keep what was answered, inside a transaction of the caller's. What is there already stays as it is."""
    if rows:
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        statement = insert(watched_rows).on_conflict_do_nothing()
        connection.execute(statement, [{"deployment_id": deployment, **asdict(row)} for row in rows])


def answers(engine: sa.Engine, watch: Watch) -> dict[str, tuple[str, float]]:
    """What the model before answers and how sure it is, by the digest of the image."""
    query = sa.select(
        watched_rows.c.image_digest, watched_rows.c.before_answer, watched_rows.c.before_confidence
    ).where(watched_rows.c.deployment_id == watch.deployment)
    with reading(engine) as connection:
        return {digest: (answer, confidence) for digest, answer, confidence in connection.execute(query)}


def unseen(engine: sa.Engine, watch: Watch, limit: int) -> list[Unseen]:
    """Labelled captures that the model before has not answered yet, those labelled first before the others."""
    given, row = _given_since(watch), predictions.c
    columns = (row.id, row.image_digest, row.image_url, row.label, row.confidence)
    query = (
        sa.select(*columns)
        .select_from(given.join(predictions, predictions.c.id == given.c.prediction_id))
        .where(*_new_ones_of(watch), predictions.c.image_url.is_not(None))
        .order_by(given.c.newest)
        .limit(limit)
    )
    with reading(engine) as connection:
        return [Unseen(*row) for row in connection.execute(query)]


def count_without_image(engine: sa.Engine, watch: Watch) -> int:
    """How many labelled predictions the model before can never answer, as their images were not captured, or are no
    longer kept."""
    given = _given_since(watch)
    query = (
        sa.select(sa.func.count())
        .select_from(given.join(predictions, predictions.c.id == given.c.prediction_id))
        .where(*_new_ones_of(watch), predictions.c.image_url.is_(None))
    )
    with reading(engine) as connection:
        return int(connection.execute(query).scalar_one())


def tally(engine: sa.Engine, watch: Watch, new: Sequence[WatchedRow] = ()) -> Tally:
    """How both models do by now, with `new` rows that are not kept yet. An image counts once, with the label that it
    was given last."""
    columns = [watched_rows.c[name] for name in WatchedRow.__dataclass_fields__]
    confidence = sa.select(predictions.c.confidence).where(
        predictions.c.model_version == watch.version, predictions.c.id >= first_id(watch.since)
    )
    with reading(engine) as connection:
        kept = connection.execute(sa.select(*columns).where(watched_rows.c.deployment_id == watch.deployment))
        rows = [*(WatchedRow(*row) for row in kept), *new]
        newest = confidence.order_by(predictions.c.id.desc()).limit(_MOST_ANSWERS)
        answered = connection.execute(newest).scalars().all() if rows else ()
    last = _last_labels(engine, [row.prediction_id for row in rows])
    by_image = {row.image_digest: row for row in sorted(rows, key=lambda row: last[row.prediction_id][0])}
    sure = [row.live_confidence for row in by_image.values()]
    fair = comparable(
        answered,
        sure,
        sure,
        [row.before_confidence for row in by_image.values()],
        [draw(str(watch.deployment), digest) for digest in by_image],
    )
    counted = [(row, last[row.prediction_id][1]) for row, counts in zip(by_image.values(), fair, strict=True) if counts]
    right = [(row.live_answer == label, row.before_answer == label) for row, label in counted]
    return Tally(
        labelled=len(by_image),
        rows=len(right),
        live=sum(live for live, _ in right),
        before=sum(before for _, before in right),
        only_live=sum(live and not before for live, before in right),
        only_before=sum(before and not live for live, before in right),
    )


def _given_since(watch: Watch) -> sa.Subquery:
    """Each labelled prediction since the watch began, and the number of its last label. From the labels to their
    predictions: those are few, and a version may have millions."""
    return (
        sa.select(labels.c.prediction_id, sa.func.max(labels.c.id).label("newest"))
        .where(labels.c.prediction_id >= first_id(watch.since))
        .group_by(labels.c.prediction_id)
        .subquery()
    )


def _new_ones_of(watch: Watch) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    seen = sa.exists().where(
        watched_rows.c.deployment_id == watch.deployment, watched_rows.c.prediction_id == predictions.c.id
    )
    return predictions.c.model_version == watch.version, ~seen


def _last_labels(engine: sa.Engine, ids: Sequence[str]) -> Mapping[str, tuple[int, str]]:
    """The number of each prediction's last label, and the label."""
    found: dict[str, tuple[int, str]] = {}
    with reading(engine) as connection:
        for start in range(0, len(ids), 500):
            newest = (
                sa.select(sa.func.max(labels.c.id))
                .where(labels.c.prediction_id.in_(ids[start : start + 500]))
                .group_by(labels.c.prediction_id)
            )
            query = sa.select(labels.c.prediction_id, labels.c.id, labels.c.label).where(labels.c.id.in_(newest))
            found.update({row.prediction_id: (row.id, row.label) for row in connection.execute(query)})
    return found
