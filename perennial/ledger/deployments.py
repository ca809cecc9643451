"""Deployments: which model was live when, and why. The live model is the last row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from perennial.errors import NoLiveModel, NothingToDo, Overtaken
from perennial.ledger import events, models
from perennial.ledger.connect import reading, writing
from perennial.ledger.events import EventKind
from perennial.ledger.schema import deployments
from perennial.ledger.schema import events as event_rows


@dataclass(frozen=True, slots=True)
class Deployment:
    id: int
    at: datetime
    name: str
    version: str
    reason: str
    actor: str
    event_id: int


def deploy(
    engine: sa.Engine,
    name: str,
    version: str,
    *,
    reason: str,
    actor: str,
    detail: Mapping[str, Any] | None = None,
    caused_by: int | None = None,
    kind: EventKind = EventKind.DEPLOYED,
    replaces: str | None = None,
    guard: events.Guard | None = None,
) -> Deployment:
    """Make a version live. Event and deployment are one transaction.

    Args:
        replaces: the version that must still be live: what the new one was judged against.
        guard: asked inside the transaction; what it raises keeps the version from going live.

    Raises:
        Overtaken: another version went live meanwhile.
        UnknownModel: there is no such version of that name.
    """
    models.get(engine, name, version)
    at = datetime.now(UTC)
    with writing(engine) as connection:
        events.take_turn(connection, name)
        if guard is not None:
            guard(connection)
        before = _last(connection, name)
        if replaces is not None and (before is None or before.version != replaces):
            raise Overtaken(
                f"{before.version if before else 'nothing'} is live now, but {version} was judged against {replaces}; "
                "nothing was changed: judge it again"
            )
        event_id = events.append(
            connection,
            name,
            kind,
            {
                "version": version,
                "replaces": before.version if before else None,
                "reason": reason,
                "actor": actor,
                **(detail or {}),
            },
            caused_by=caused_by,
        )
        result = connection.execute(
            sa.insert(deployments).values(
                at=at, name=name, version=version, reason=reason, actor=actor, event_id=event_id
            )
        )
        key = result.inserted_primary_key
        assert key is not None
    return Deployment(int(key[0]), at, name, version, reason, actor, event_id)


def roll_back(engine: sa.Engine, name: str, *, reason: str, actor: str) -> Deployment:
    """Go back to the version that was live before the live one; going back again goes further back.

    Raises:
        NothingToDo: there is nothing to go back to.
    """
    # Undoing is a step back along the versions that were live, so a rolled-back one is not returned to.
    path: list[str] = []
    for deployment in history(engine, name):
        if deployment.version in path:
            path = path[: path.index(deployment.version) + 1]
        else:
            path.append(deployment.version)
    if len(path) < 2:
        raise NothingToDo(f"{name} has no earlier version to go back to")
    return deploy(engine, name, path[-2], reason=reason, actor=actor, kind=EventKind.ROLLED_BACK, replaces=path[-1])


def live(engine: sa.Engine, name: str) -> Deployment:
    """The live deployment.

    Raises:
        NoLiveModel: nothing has been deployed yet.
    """
    with reading(engine) as connection:
        found = _last(connection, name)
    if found is None:
        raise NoLiveModel(f"no model named {name!r} is live; train one: perennial train DATA --name {name}")
    return found


def history(engine: sa.Engine, name: str) -> list[Deployment]:
    """Every deployment of that name, oldest first."""
    with reading(engine) as connection:
        query = sa.select(deployments).where(deployments.c.name == name).order_by(deployments.c.id)
        return [Deployment(**row) for row in connection.execute(query).mappings()]


def count_rollbacks(engine: sa.Engine, name: str) -> dict[str, int]:
    """How often each actor went back to an earlier version."""
    query = (
        sa.select(deployments.c.actor, sa.func.count())
        .join(event_rows, event_rows.c.id == deployments.c.event_id)
        .where(deployments.c.name == name, event_rows.c.kind == str(EventKind.ROLLED_BACK))
        .group_by(deployments.c.actor)
    )
    with reading(engine) as connection:
        return {actor: int(count) for actor, count in connection.execute(query)}


def _last(connection: sa.Connection, name: str) -> Deployment | None:
    query = sa.select(deployments).where(deployments.c.name == name).order_by(deployments.c.id.desc()).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Deployment(**row)
