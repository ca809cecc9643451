"""Everything at a glance, out of the ledger: what is live, what came in, what the checks found, what happened.

Read for a page that many people leave open beside a database of millions of predictions: nothing here looks at each of
them, and of a long document (a manifest, a check, a gate's decision) only the parts that are shown are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from perennial import event_wording
from perennial import overview_document as document
from perennial.bundle import Estimate
from perennial.intervals import accuracy_interval
from perennial.ledger import (
    EventKind,
    checks,
    deployments,
    events,
    models,
    new_classes,
    rollout_progress,
    rollouts,
    traffic,
    watches,
)
from perennial.ledger.checks import CheckRow
from perennial.ledger.deployments import Deployment
from perennial.ledger.events import Event
from perennial.ledger.rollouts import Rollout
from perennial.model_state import state
from perennial.settings import Settings

MOST_HOURS: Final = 720
_BUCKETS: Final = 240
_CHECKS: Final = 200
_MODELS: Final = 30
_EVENTS: Final = 40
_DEPLOYMENTS: Final = 100
_CLASSES: Final = 1000
_MOST_KNOWN: Final = 4000


@dataclass(slots=True)
class Unchanging:
    """What was read before and never changes: of long documents the parts that are shown. Bounded."""

    checks: dict[int, checks.Told] = field(default_factory=dict)
    models: dict[str, models.Card] = field(default_factory=dict)

    def bound(self) -> None:
        if len(self.checks) > _MOST_KNOWN:
            self.checks.clear()
        if len(self.models) > _MOST_KNOWN:
            self.models.clear()


def read(
    engine: sa.Engine,
    settings: Settings,
    hours: int,
    now: datetime | None = None,
    known: Unchanging | None = None,
) -> dict[str, Any]:
    """`perennial.overview_document.Overview` of the last `hours`, as JSON has it.

    Args:
        known: what an earlier reading of the same ledger left here; most of the time goes into reading it.

    Raises:
        LedgerUnavailable: the database does not answer.
    """
    name, now, known = settings.name, now or datetime.now(UTC), known or Unchanging()
    known.bound()
    history = deployments.history(engine, name)
    live = history[-1] if history else None
    cards = models.cards(engine, name, _MODELS, also=[live.version] if live else [], known=known.models)
    live_card = next((card for card in cards if live is not None and card.version == live.version), None)
    start, bucket, buckets = traffic.span(hours, _BUCKETS, now)
    versions = models.versions(engine, name)
    check = next(iter(checks.latest(engine, name, model_version=live.version)), None) if live else None
    newest = events.newest(engine, name, _EVENTS)
    answered = traffic.answered(engine, versions, start, bucket, buckets)
    rejected = traffic.rejected(engine, versions, start, bucket, buckets)
    running = rollouts.running(engine, name)
    undone = _undone(engine, name, history)
    return document.plain(
        document.Overview(
            name=name,
            at=now.isoformat(),
            state=state(live, check, newest, settings, now, busy=any(answered[-2:])),
            live=_live(live, live_card) if live is not None and live_card is not None else None,
            traffic=document.Traffic(start.isoformat(), int(bucket.total_seconds()), answered, rejected),
            checks=[_listed_check(row) for row in checks.between(engine, name, start, _CHECKS, known=known.checks)],
            deployments=[_listed_deployment(entry, undone) for entry in history if entry.at >= start][-_DEPLOYMENTS:],
            check=_check(check) if check is not None else None,
            watch=_watch(engine, settings) if settings.retrain.watch_labels else None,
            rollout=_rollout(engine, settings, running) if running is not None else None,
            new_labels=_new_labels(engine, settings, live_card.classes if live_card else ()),
            models=[_listed_model(card, _status(card.version, history, undone, newest, running)) for card in cards],
            events=[_listed_event(event) for event in newest],
        )
    )


def _live(live: Deployment, card: models.Card) -> document.LiveModel:
    classes = list(card.classes[:_CLASSES])
    return document.LiveModel(
        live.version, live.at.isoformat(), live.reason, live.actor, card.backbone, classes, _estimate(card.accuracy)
    )


def _estimate(found: Mapping[str, Any] | None) -> Estimate | None:
    return Estimate(value=found["value"], low=found["low"], high=found["high"]) if found else None


def _listed_check(row: checks.Told) -> document.ListedCheck:
    accuracy = row.accuracy
    return document.ListedCheck(
        id=row.id,
        at=row.at.isoformat(),
        version=row.model_version,
        verdict=row.verdict,
        rows=row.rows,
        labelled=accuracy.get("labelled", 0),
        accuracy_labels=_estimate(accuracy.get("labels")),
        accuracy_estimated=_estimate(accuracy.get("estimated")),
        withheld=accuracy.get("withheld"),
        scores=dict(row.scores),
    )


def _listed_deployment(entry: Deployment, undone: frozenset[int]) -> document.ListedDeployment:
    back = entry.event_id in undone
    return document.ListedDeployment(entry.id, entry.at.isoformat(), entry.version, entry.reason, entry.actor, back)


def _listed_event(event: Event) -> document.ListedEvent:
    said = event_wording
    return document.ListedEvent(event.id, event.at.isoformat(), event.kind, said.what(event), said.why(event))


def _check(row: CheckRow) -> document.LatestCheck:
    detail = row.detail
    retrain = detail.get("retrain")
    return document.LatestCheck(
        id=row.id,
        at=row.at.isoformat(),
        version=row.model_version,
        verdict=row.verdict,
        state=detail.get("state"),
        causes=[
            document.Cause(each["cause"], each["why"], list(each.get("columns", ())))
            for each in detail.get("causes", ())
        ],
        window=document.CheckedWindow(row.window["rows"], row.window.get("start"), row.window.get("end")),
        families={
            name: document.FamilyScore(
                found.get("score"), bool(found.get("alarm")), found.get("floor"), found.get("skipped")
            )
            for name, found in detail.get("families", {}).items()
        },
        accuracy=_accuracies(detail["accuracy"]) if detail.get("accuracy") else None,
        retrain=document.RetrainAdvice(retrain["due"], retrain["why"]) if retrain else None,
        report=row.report_url is not None,
        examples=[_example(row.model_version, each) for each in detail.get("examples", ())],
    )


def _accuracies(found: Mapping[str, Any]) -> document.Accuracies:
    return document.Accuracies(
        labels=_estimate(found.get("labels")),
        labelled=found.get("labelled", 0),
        estimated=_estimate(found.get("estimated")),
        reference=_estimate(found.get("reference")),
        withheld=found.get("withheld"),
    )


def _example(version: str, found: Mapping[str, Any]) -> document.Example:
    stands_out = found.get("stands_out")
    return document.Example(
        prediction_id=found["prediction_id"],
        why=found["why"],
        drift=found["drift"],
        predicted=found["predicted"],
        confidence=found["confidence"],
        label=found.get("label"),
        stands_out=(stands_out[0], stands_out[1]) if stands_out else None,
        image=f"/v1/images/{found['prediction_id']}",
        nearest=[
            document.Neighbour(
                each["digest"], each["label"], each["predicted"], f"/v1/references/{version}/{each['digest']}"
            )
            for each in found.get("nearest", ())
        ],
    )


def _watch(engine: sa.Engine, settings: Settings) -> document.OpenWatch | None:
    watch = watches.open_watch(engine, settings.name)
    if watch is None:
        return None
    tally = watches.tally(engine, watch)
    return document.OpenWatch(
        compared_with=watch.before,
        of=settings.retrain.watch_labels,
        labelled=tally.labelled,
        rows=tally.rows,
        live=accuracy_interval(tally.live, tally.rows),
        before=accuracy_interval(tally.before, tally.rows),
        only_live=tally.only_live,
        only_before=tally.only_before,
    )


def _rollout(engine: sa.Engine, settings: Settings, running: Rollout) -> document.OpenRollout:
    needed = settings.rollout.rows
    progress = rollout_progress.read(engine, running, needed)
    return document.OpenRollout(
        version=running.challenger,
        champion=running.champion,
        stage=event_wording.stage_title(running.current),
        number=running.stage + 1,
        stages=len(running.stages),
        share=running.share,
        since=running.at.isoformat(),
        answered=progress.answered,
        of=needed,
        agreed=progress.agreed,
        faults=progress.faults,
    )


def _new_labels(engine: sa.Engine, settings: Settings, classes: Sequence[str]) -> document.NewLabels:
    needed = settings.retrain.new_class_labels
    if not classes or not needed:
        return document.NewLabels({}, needed, [])
    found = new_classes.find(engine, settings.name, classes, needed)
    return document.NewLabels(dict(found.images), found.at_least, list(found.classes))


def _undone(engine: sa.Engine, name: str, history: Sequence[Deployment]) -> frozenset[int]:
    """The events by which somebody went back."""
    ids = [entry.event_id for entry in history[-_DEPLOYMENTS:]]
    return frozenset(event.id for event in events.by_id(engine, name, ids, kinds=[EventKind.ROLLED_BACK]))


def _listed_model(card: models.Card, status: document.Status) -> document.ListedModel:
    return document.ListedModel(
        version=card.version,
        created_at=card.created_at.isoformat(),
        parent=card.parent,
        live=status == "live",
        status=status,
        strategy=card.strategy,
        accuracy=_estimate(card.accuracy),
        why=card.why,
    )


def _status(
    version: str,
    history: Sequence[Deployment],
    undone: frozenset[int],
    newest: Sequence[Event],
    running: Rollout | None,
) -> document.Status:
    """In a word, as far as the latest events tell; a model's story (`perennial models show`) has all of it."""
    if running is not None and running.challenger == version:
        return "rolling out"
    places = [at for at, entry in enumerate(history) if entry.version == version]
    if places:
        if places[-1] == len(history) - 1:
            return "live"
        return "rolled back" if history[places[-1] + 1].event_id in undone else "replaced"
    last = next((event for event in newest if event.detail.get("version") == version), None)
    if last is not None and last.kind is EventKind.GATE_REFUSED:
        return "waiting" if (last.detail.get("gate") or {}).get("outcome") == "wait" else "refused"
    return "stopped" if last is not None and last.kind is EventKind.ROLLOUT_STOPPED else "never live"
