"""Checks: what the monitor found, window by window."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from perennial.ledger import events
from perennial.ledger.connect import reading, writing
from perennial.ledger.events import EventKind
from perennial.ledger.schema import checks

_MOST_REPORTS: Final = 500  # in one go; what is left is taken by the next


@dataclass(frozen=True, slots=True)
class CheckRow:
    """`window` is {"rows", "start", "end"}; `detail` is the monitor's JSON document."""

    id: int
    at: datetime
    name: str
    model_version: str
    window: dict[str, Any]
    verdict: str
    detail: dict[str, Any]
    report_url: str | None


@dataclass(frozen=True, slots=True)
class Told:
    """What is shown of a check in a row of many: `accuracy` as its document has it, `scores` by family."""

    id: int
    at: datetime
    model_version: str
    verdict: str
    rows: int
    accuracy: dict[str, Any]
    scores: dict[str, float]


def record(
    engine: sa.Engine,
    *,
    name: str,
    model_version: str,
    window: Mapping[str, Any],
    verdict: str,
    detail: Mapping[str, Any],
    report_url: str | None,
    events_to_add: Sequence[tuple[EventKind, Mapping[str, Any]]] = (),
) -> int:
    """Write a check and the events it gives rise to, in one transaction; returns the check's id.

    Each event's detail gets the check's id as `check`.
    """
    with writing(engine) as connection:
        result = connection.execute(
            sa.insert(checks).values(
                at=datetime.now(UTC),
                name=name,
                model_version=model_version,
                window=dict(window),
                verdict=verdict,
                detail=dict(detail),
                report_url=report_url,
            )
        )
        key = result.inserted_primary_key
        assert key is not None
        for kind, event_detail in events_to_add:
            events.append(connection, name, kind, {**event_detail, "check": int(key[0])})
    return int(key[0])


def latest(engine: sa.Engine, name: str, limit: int = 1, *, model_version: str | None = None) -> list[CheckRow]:
    """A model's newest checks, newest first."""
    query = sa.select(checks).where(checks.c.name == name)
    if model_version is not None:
        query = query.where(checks.c.model_version == model_version)
    with reading(engine) as connection:
        rows = connection.execute(query.order_by(checks.c.id.desc()).limit(limit)).mappings()
        return [CheckRow(**row) for row in rows]


def windows(
    engine: sa.Engine, name: str, model_version: str, *, since: datetime, without_verdicts: Collection[str], limit: int
) -> list[dict[str, Any]]:
    """The windows of a version's checks since then, but for those with one of these verdicts, newest first."""
    query = sa.select(checks.c.window).where(
        checks.c.name == name,
        checks.c.model_version == model_version,
        checks.c.at >= since,
        checks.c.verdict.not_in(list(without_verdicts)),
    )
    with reading(engine) as connection:
        return list(connection.execute(query.order_by(checks.c.id.desc()).limit(limit)).scalars())


def verdicts(
    engine: sa.Engine, name: str, model_version: str, limit: int, *, before: int | None = None
) -> list[tuple[int, str, dict[str, Any]]]:
    """Id, verdict and window of a version's newest checks, newest first; `before` goes on where an earlier call
    ended."""
    query = sa.select(checks.c.id, checks.c.verdict, checks.c.window).where(
        checks.c.name == name, checks.c.model_version == model_version
    )
    if before is not None:
        query = query.where(checks.c.id < before)
    with reading(engine) as connection:
        return [
            (row.id, row.verdict, row.window)
            for row in connection.execute(query.order_by(checks.c.id.desc()).limit(limit))
        ]


def accuracies(
    engine: sa.Engine, name: str, model_version: str, limit: int
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The window of each of a version's newest checks, and what it said of accuracy, newest first. No more of it: a
    check's whole document is tens of kilobytes of JSON."""
    query = sa.select(checks.c.window, checks.c.detail["accuracy"].label("accuracy")).where(
        checks.c.name == name, checks.c.model_version == model_version
    )
    with reading(engine) as connection:
        rows = connection.execute(query.order_by(checks.c.id.desc()).limit(limit))
        return [(row.window, row.accuracy or {}) for row in rows]


def between(
    engine: sa.Engine, name: str, since: datetime, most: int, *, known: MutableMapping[int, Told] | None = None
) -> list[Told]:
    """A model's checks from a moment on, oldest first; of more than `most` evenly as many, the newest among them.

    Args:
        known: checks of before, by id, that need not be read again, as none ever changes; what is read is put there.
    """
    known = {} if known is None else known
    query = sa.select(checks.c.id).where(checks.c.name == name, checks.c.at >= since).order_by(checks.c.id)
    columns = checks.c
    told = sa.select(
        columns.id,
        columns.at,
        columns.model_version,
        columns.verdict,
        columns.window["rows"].label("rows"),
        columns.detail["accuracy"].label("accuracy"),
        columns.detail["scores"].label("scores"),
    )
    with reading(engine) as connection:
        ids = list(connection.execute(query).scalars())
        step = max(1, -(-len(ids) // most))
        chosen = ids[::-1][::step]
        unknown = [id for id in chosen if id not in known]
        for row in connection.execute(told.where(columns.id.in_(unknown))) if unknown else ():
            known[row.id] = Told(
                row.id, row.at, row.model_version, row.verdict, row.rows, row.accuracy or {}, row.scores or {}
            )
        return [known[id] for id in reversed(chosen) if id in known]


def count_by_verdict(engine: sa.Engine, name: str) -> dict[str, int]:
    """How many checks a model has had, by verdict."""
    query = sa.select(checks.c.verdict, sa.func.count()).where(checks.c.name == name).group_by(checks.c.verdict)
    with reading(engine) as connection:
        return {verdict: int(count) for verdict, count in connection.execute(query)}


def reports_beyond(engine: sa.Engine, name: str, keep: int) -> dict[int, str]:
    """The report URLs of a model's checks, by check, without those of the newest `keep` that have one."""
    query = (
        sa.select(checks.c.id, checks.c.report_url)
        .where(checks.c.name == name, checks.c.report_url.is_not(None))
        .order_by(checks.c.id.desc())
        .offset(keep)
        .limit(_MOST_REPORTS)
    )
    with reading(engine) as connection:
        return {row.id: row.report_url for row in connection.execute(query)}


def reports_before(engine: sa.Engine, name: str, moment: datetime, *, but: Collection[str]) -> dict[int, str]:
    """The report URLs of a model's checks of before a moment, by check; not of those with one of these verdicts."""
    query = (
        sa.select(checks.c.id, checks.c.report_url)
        .where(
            checks.c.name == name,
            checks.c.report_url.is_not(None),
            checks.c.at < moment,
            checks.c.verdict.not_in(but),
        )
        .order_by(checks.c.id)
        .limit(_MOST_REPORTS)
    )
    with reading(engine) as connection:
        return {row.id: row.report_url for row in connection.execute(query)}


def report_urls(engine: sa.Engine, name: str) -> set[str]:
    """The reports that a model's checks name."""
    query = sa.select(checks.c.report_url).where(checks.c.name == name, checks.c.report_url.is_not(None))
    with reading(engine) as connection:
        return set(connection.execute(query).scalars())


def forget_reports(engine: sa.Engine, ids: Sequence[int]) -> None:
    """Say that the reports of these checks are gone; the checks themselves stay."""
    with writing(engine) as connection:
        connection.execute(sa.update(checks).where(checks.c.id.in_(ids)).values(report_url=None))
