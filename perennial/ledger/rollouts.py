"""Rollouts: challengers that go live in stages. A row for each stage that one came to and one for its end.

The newest row of a name says where it stands. A rollout ends by itself when any version is deployed, in the same
transaction, so there is never one beside a champion that it was not judged against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import sqlalchemy as sa

from perennial.errors import Overtaken
from perennial.ledger import events
from perennial.ledger.connect import reading, writing
from perennial.ledger.events import EventKind
from perennial.ledger.schema import deployments, rollouts

SHADOW: Final = "shadow"

Stage = Literal["shadow"] | float
State = Literal["running", "stopped", "done"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """Where a rollout stands, or stood: since `at` at stage `stages[stage]`. `started` is the event that began it, its
    identity; `share` that part of the traffic which the challenger answers (0 in the shadow)."""

    id: int
    at: datetime
    name: str
    started: int
    champion: str
    challenger: str
    stages: tuple[Stage, ...]
    stage: int
    share: float
    state: State
    event_id: int

    @property
    def current(self) -> Stage:
        return self.stages[self.stage]

    @property
    def is_last(self) -> bool:
        """Is all of the traffic next?"""
        return self.stage + 1 == len(self.stages)


def start(
    engine: sa.Engine,
    name: str,
    *,
    champion: str,
    challenger: str,
    stages: Sequence[Stage],
    reason: str,
    actor: str,
    detail: Mapping[str, Any] | None = None,
    caused_by: int | None = None,
    guard: events.Guard | None = None,
) -> Rollout:
    """Begin with the first stage. Event and row are one transaction.

    Args:
        champion: the version that must be live: what the challenger was judged against.
        guard: asked inside the transaction; what it raises keeps the rollout from beginning.

    Raises:
        Overtaken: another version went live meanwhile, or another challenger is being rolled out.
    """
    with writing(engine) as connection:
        events.take_turn(connection, name)
        if guard is not None:
            guard(connection)
        live = _live_version(connection, name)
        if live != champion:
            raise Overtaken(f"{live} is live now, but {challenger} was judged against {champion}: judge it again")
        before = _newest(connection, name)
        if before is not None and before.state == "running":
            raise Overtaken(f"{before.challenger} is being rolled out; end that first: perennial rollout stop")
        said = {"version": challenger, "champion": champion, "stage": stages[0], "stages": list(stages)}
        said |= {"reason": reason, "actor": actor, **(detail or {})}
        event = events.append(connection, name, EventKind.ROLLOUT_STARTED, said, caused_by=caused_by)
        row = {"name": name, "started": event, "champion": champion, "challenger": challenger, "stages": list(stages)}
        return _write(connection, row, 0, "running", event)


def advance(engine: sa.Engine, rollout: Rollout, *, why: str, actor: str, detail: Mapping[str, Any]) -> Rollout:
    """Go on to the next stage; after the last one, deploy instead.

    Raises:
        Overtaken: it has moved on, or ended, since it was read.
    """
    with writing(engine) as connection:
        _confirm(connection, rollout)
        following = rollout.stage + 1
        said = _about(rollout) | {"stage": rollout.stages[following], "why": why, "actor": actor, **detail}
        event = events.append(connection, rollout.name, EventKind.ROLLOUT_ADVANCED, said, caused_by=rollout.event_id)
        return _write(connection, _same(rollout), following, "running", event)


def stop(
    engine: sa.Engine, rollout: Rollout, *, why: str, actor: str, detail: Mapping[str, Any] | None = None
) -> Rollout:
    """End it: the champion answers everything again. Whoever is first says why.

    Raises:
        Overtaken: it has moved on, or ended, since it was read.
    """
    with writing(engine) as connection:
        _confirm(connection, rollout)
        return _stop(connection, rollout, rollout.event_id, {"why": why, "actor": actor, **(detail or {})})


def end_by_deployment(connection: sa.Connection, name: str, version: str, event: int, *, why: str, actor: str) -> None:
    """Inside the transaction in which a version goes live: a rollout that runs is done if that is its challenger, and
    else stopped."""
    running_one = _newest(connection, name)
    if running_one is None or running_one.state != "running":
        return
    if version == running_one.challenger:
        _write(connection, _same(running_one), running_one.stage, "done", event)
    else:
        _stop(connection, running_one, event, {"why": why, "actor": actor})


def running(engine: sa.Engine, name: str) -> Rollout | None:
    """The rollout that runs now."""
    found = newest(engine, name)
    return found if found is not None and found.state == "running" else None


def newest(engine: sa.Engine, name: str) -> Rollout | None:
    """The last row: of the rollout that runs, or else of the last one that ended."""
    with reading(engine) as connection:
        return _newest(connection, name)


def rows_of(engine: sa.Engine, name: str, started: int) -> list[Rollout]:
    """A rollout's rows, oldest first."""
    query = sa.select(rollouts).where(rollouts.c.name == name, rollouts.c.started == started).order_by(rollouts.c.id)
    with reading(engine) as connection:
        return [_rollout(dict(row)) for row in connection.execute(query).mappings()]


def _newest(connection: sa.Connection, name: str) -> Rollout | None:
    query = sa.select(rollouts).where(rollouts.c.name == name).order_by(rollouts.c.id.desc()).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _rollout(dict(row))


def _live_version(connection: sa.Connection, name: str) -> str | None:
    query = sa.select(deployments.c.version).where(deployments.c.name == name).order_by(deployments.c.id.desc())
    return connection.execute(query.limit(1)).scalar()


def _confirm(connection: sa.Connection, rollout: Rollout) -> None:
    events.take_turn(connection, rollout.name)
    now = _newest(connection, rollout.name)
    if now is None or now.id != rollout.id or now.state != "running":
        raise Overtaken(f"the rollout of {rollout.challenger} has moved on or ended meanwhile; look again")


def _stop(connection: sa.Connection, rollout: Rollout, caused_by: int, said: Mapping[str, Any]) -> Rollout:
    detail = _about(rollout) | {"stage": rollout.current, **said}
    event = events.append(connection, rollout.name, EventKind.ROLLOUT_STOPPED, detail, caused_by=caused_by)
    return _write(connection, _same(rollout), rollout.stage, "stopped", event)


def _about(rollout: Rollout) -> dict[str, Any]:
    return {"version": rollout.challenger, "champion": rollout.champion, "rollout": rollout.started}


def _same(rollout: Rollout) -> dict[str, Any]:
    return {
        "name": rollout.name,
        "started": rollout.started,
        "champion": rollout.champion,
        "challenger": rollout.challenger,
        "stages": list(rollout.stages),
    }


def _write(connection: sa.Connection, same: Mapping[str, Any], stage: int, state: State, event: int) -> Rollout:
    current = same["stages"][stage]
    share = 0.0 if current == SHADOW or state == "stopped" else 1.0 if state == "done" else float(current)
    row = {**same, "at": datetime.now(UTC), "stage": stage, "share": share, "state": state, "event_id": event}
    key = connection.execute(sa.insert(rollouts).values(row)).inserted_primary_key
    assert key is not None
    return _rollout({"id": int(key[0]), **row})


def _rollout(row: Mapping[str, Any]) -> Rollout:
    return Rollout(**{**row, "stages": tuple(row["stages"])})
