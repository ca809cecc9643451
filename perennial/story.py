"""A model's story out of the ledger: what it was made of, who asked for it, how it was judged, when it was live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final, Literal

import sqlalchemy as sa

from perennial.bundle import Estimate
from perennial.ledger import EventKind, deployments, events, models, watches
from perennial.ledger.deployments import Deployment
from perennial.ledger.events import Event
from perennial.ledger.models import Model

Status = Literal["live", "replaced", "rolled back", "refused", "waiting", "never live"]

#: Where an event says which model it is about.
_ROLES: Final = ("version", "champion", "replaces", "model_version")
_GATES: Final = (EventKind.GATE_PASSED, EventKind.GATE_REFUSED)


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asked for the model and why: the first event that led to it, or the only one there is."""

    at: datetime
    who: str
    why: str
    event: int


@dataclass(frozen=True, slots=True)
class Relative:
    """A model that this one descends from. `accuracy` is on its own held-out images."""

    version: str
    created_at: datetime
    strategy: str
    accuracy: Estimate | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """One decision of the gate about the model as challenger. `gate` is the decision with every number, as
    `perennial retrain --json` has it; `seconds` what the retrain took until then, where it was one."""

    event: int
    at: datetime
    passed: bool
    champion: str
    why: str
    actor: str
    seconds: float | None
    gate: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ending:
    """What ended a time in which a model was live: another version (`by`) was deployed, or gone back to."""

    at: datetime
    how: Literal["replaced", "rolled back"]
    by: str
    why: str
    actor: str
    event: int


@dataclass(frozen=True, slots=True)
class Period:
    """A time in which the model was live. `how` it began: it was `deployed`, or `rolled back to`."""

    began: datetime
    how: Literal["deployed", "rolled back to"]
    why: str
    actor: str
    event: int
    ended: Ending | None

    def seconds(self, now: datetime) -> float:
        """How long it lasted, or has lasted by now."""
        return ((self.ended.at if self.ended else now) - self.began).total_seconds()


@dataclass(frozen=True, slots=True)
class Comparison:
    """The model beside the one it replaced, on labelled images of a time in which it was live. `outcome` is `open`
    while more are looked at; `event` is what ended it. `numbers` are `rows`, `live` and `before` (accuracies),
    `only_live` and `only_before` (rows that just one of them has right)."""

    outcome: Literal["open", "passed", "rolled back"]
    compared_with: str
    at: datetime
    event: int | None
    numbers: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Story:
    """`lineage` are the models it descends from, newest first; `descendants` the versions made from it as champion;
    `events` every event about it, and those that led to them, oldest first."""

    model: Model
    status: Status
    at: datetime
    asked: Asked | None
    lineage: tuple[Relative, ...]
    descendants: tuple[str, ...]
    judgements: tuple[Judgement, ...]
    periods: tuple[Period, ...]
    comparisons: tuple[Comparison, ...]
    deployments: tuple[Deployment, ...]
    events: tuple[Event, ...]

    @property
    def live_seconds(self) -> float:
        """How long it was live, all periods together."""
        return sum(period.seconds(self.at) for period in self.periods)

    def document(self) -> dict[str, Any]:
        """As JSON, but for moments, which are datetimes."""
        return {
            "version": self.model.version,
            "live": self.status == "live",
            "status": self.status,
            "digest": self.model.digest,
            "bundle_url": self.model.bundle_url,
            "asked": asdict(self.asked) if self.asked else None,
            "lineage": [relative.version for relative in self.lineage],
            "descendants": list(self.descendants),
            "manifest": self.model.manifest.model_dump(mode="json"),
            "judgements": [asdict(judgement) for judgement in self.judgements],
            "periods": [asdict(period) | {"seconds": period.seconds(self.at)} for period in self.periods],
            "live_seconds": self.live_seconds,
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "deployments": [asdict(entry) for entry in self.deployments],
            "events": [asdict(event) for event in self.events],
        }


def tell(engine: sa.Engine, name: str, version: str) -> Story:
    """All that the ledger knows of a version.

    Raises:
        UnknownModel: there is no such version.
    """
    model = models.get(engine, name, version)
    known = {other.version: other for other in models.all_of(engine, name)}
    history = deployments.history(engine, name)
    told = _events_about(engine, name, version)
    judgements = tuple(_judgement(event) for event in told if event.kind in _GATES and _is_of(event, version))
    by_id = {event.id: event for event in told}
    periods = _periods(engine, name, history, version)
    return Story(
        model=model,
        status=_status(periods, judgements),
        at=datetime.now(UTC),
        asked=_asked(by_id, version),
        lineage=tuple(
            Relative(other.version, other.created_at, other.manifest.strategy, other.manifest.metrics.get("accuracy"))
            for other in (known[each] for each in models.lineage(engine, name, version)[1:] if each in known)
        ),
        descendants=tuple(other.version for other in known.values() if other.parent == version),
        judgements=judgements,
        periods=periods,
        comparisons=_comparisons(engine, name, version, told),
        deployments=tuple(entry for entry in history if entry.version == version),
        events=tuple(told),
    )


def _events_about(engine: sa.Engine, name: str, version: str) -> list[Event]:
    """The events that name the version, and those that led to one in which it was the challenger."""
    found: dict[int, Event] = {}
    last = 0
    while page := events.after(engine, name, last):
        found |= {event.id: event for event in page if version in (event.detail.get(role) for role in _ROLES)}
        last = page[-1].id
    wanted = {event.caused_by for event in found.values() if _is_of(event, version)}
    while missing := {number for number in wanted if number is not None and number not in found}:
        causes = events.by_id(engine, name, missing)
        if not causes:
            break
        found |= {event.id: event for event in causes}
        wanted = {event.caused_by for event in causes}
    return sorted(found.values(), key=lambda event: event.id)


def _is_of(event: Event, version: str) -> bool:
    """Is the event about the version as challenger, or as what was deployed?"""
    return bool(event.detail.get("version") == version)


def _asked(found: Mapping[int, Event], version: str) -> Asked | None:
    first = next((event for event in found.values() if _is_of(event, version)), None)
    if first is None:
        return None
    while first.caused_by is not None and first.caused_by in found:
        first = found[first.caused_by]
    # A check's request has no actor of its own.
    who = "monitor" if first.kind is EventKind.RETRAIN_REQUESTED else "unknown"
    why = first.detail.get("why") or first.detail.get("reason") or ""
    if first.kind is EventKind.DEPLOYED and first.detail.get("actor") in ("train", "import"):
        who = f"perennial {first.detail['actor']}"
    elif first.detail.get("actor"):
        who = str(first.detail["actor"])
    return Asked(first.at, who, str(why), first.id)


def _judgement(event: Event) -> Judgement:
    detail = event.detail
    seconds = detail.get("seconds")
    return Judgement(
        event=event.id,
        at=event.at,
        passed=event.kind is EventKind.GATE_PASSED,
        champion=str(detail.get("champion") or ""),
        why=str(detail.get("why") or ""),
        actor=str(detail.get("actor") or ""),
        seconds=float(seconds) if isinstance(seconds, int | float) else None,
        gate=detail.get("gate") or {},
    )


def _periods(engine: sa.Engine, name: str, history: Sequence[Deployment], version: str) -> tuple[Period, ...]:
    """One for each run of deployments of the version: deployed again while it is live, it goes on being live."""
    deployed = events.by_id(engine, name, [entry.event_id for entry in history])
    undone = {event.id for event in deployed if event.kind is EventKind.ROLLED_BACK}
    runs = [next(same) for _, same in groupby(history, key=lambda entry: entry.version)]
    return tuple(
        Period(
            entry.at,
            "rolled back to" if entry.event_id in undone else "deployed",
            entry.reason,
            entry.actor,
            entry.event_id,
            None if following is None else _ending(following, following.event_id in undone),
        )
        for entry, following in zip(runs, [*runs, None][1:], strict=True)
        if entry.version == version
    )


def _comparisons(engine: sa.Engine, name: str, version: str, told: Sequence[Event]) -> tuple[Comparison, ...]:
    found = []
    for event in told:
        watch = event.detail.get("watch")
        if isinstance(watch, Mapping) and watch.get("version") == version:
            outcome: Literal["passed", "rolled back"] = (
                "rolled back" if event.kind is EventKind.ROLLED_BACK else "passed"
            )
            found.append(Comparison(outcome, str(watch.get("compared_with")), event.at, event.id, watch))
    watched = watches.open_watch(engine, name)
    if watched is not None and watched.version == version:
        tally = watches.tally(engine, watched)
        if tally.rows:
            found.append(Comparison("open", watched.before, datetime.now(UTC), None, tally.document()))
    return tuple(found)


def _ending(by: Deployment, undone: bool) -> Ending:
    return Ending(by.at, "rolled back" if undone else "replaced", by.version, by.reason, by.actor, by.event_id)


def _status(periods: Sequence[Period], judgements: Sequence[Judgement]) -> Status:
    if periods:
        last = periods[-1]
        if last.ended is None:
            return "live"
        return last.ended.how
    if judgements and not judgements[-1].passed:
        return "waiting" if judgements[-1].gate.get("outcome") == "wait" else "refused"
    return "never live"
