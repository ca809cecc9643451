"""Retraining: champion and labelled captures in, a challenger out; it goes live only if it passes the gate.

request -> started -> (gate passed -> deployed or rolled out | gate refused | failed), each an event caused by the one
before, so a retrain that was killed can be told from one that ended: its request stays open and the next run takes it
up. Gate and deployment are written only while the lease is held.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa

from perennial.bundle import Bundle, fetch_bundle
from perennial.errors import InvalidSettings, LedgerUnavailable
from perennial.images import ImageLimits
from perennial.ledger import EventKind, checks, deployments, events, leases, models, rollouts
from perennial.ledger.events import Event
from perennial.ledger.leases import Lease
from perennial.ledger.requests import Trigger, open_request
from perennial.progress import Progress, Step, silent
from perennial.settings import Settings
from perennial.storage import Storage
from training import captures as labelled
from training import due, full_disk, rollout_start
from training.answers import recorded
from training.candidates import Choice
from training.captures import Captures
from training.challenger import Challenger, make_challenger
from training.datasets import Skipped
from training.fair_rows import labelling_of
from training.gate import GateDecision, evaluate, judge
from training.gate_rules import gate_limits
from training.meaning import ChangedClass, changed_before, changed_classes, inputs_unchanged
from training.paired import fewest_rows
from training.publish import publish
from training.situation import fresh_since, new_labels_of, note_schedule, read_situation, write_request

Outcome = Literal["promoted", "rolling_out", "refused", "waiting", "nothing_to_do"]

ACTOR: Final = "retrain"
_EXIT_CODES: Final[dict[Outcome, int]] = {
    "promoted": 0,
    "rolling_out": 0,
    "refused": 11,
    "waiting": 4,
    "nothing_to_do": 4,
}


@dataclass(frozen=True, slots=True)
class RetrainResult:
    """How a retrain ended. `version` is the challenger's (None if none was trained), `champion` the live model's
    before it; `labels` counts the fresh labelled captures; `new_classes` those that the champion does not know, each
    with its labelled captures; `seconds` is wall time."""

    outcome: Outcome
    name: str
    champion: str
    version: str | None
    why: str
    labels: int = 0
    new_classes: Mapping[str, int] | None = None
    gate: GateDecision | None = None
    candidates: Choice | None = None
    left_out: Mapping[str, int] | None = None
    skipped: tuple[Skipped, ...] = ()
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        return _EXIT_CODES[self.outcome]

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "outcome": self.outcome,
            "name": self.name,
            "champion": self.champion,
            "version": self.version,
            "why": self.why,
            "labels": self.labels,
            "new_classes": dict(self.new_classes or {}),
            "gate": self.gate.document() if self.gate else None,
            "candidates": self.candidates.document() if self.candidates else None,
            "left_out": dict(self.left_out or {}),
            "skipped": [asdict(skip) for skip in self.skipped],
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True, slots=True)
class _Run:
    """What one retrain works with. `request` is None where a person asks: it is written once the retrain starts."""

    engine: sa.Engine
    settings: Settings
    storage: Storage
    limits: ImageLimits
    champion: Bundle
    lease: Lease
    request: Event | None
    by_hand: bool
    why: str
    actor: str
    progress: Progress


def retrain(
    engine: sa.Engine,
    settings: Settings,
    *,
    if_due: bool,
    reason: str = "",
    actor: str = ACTOR,
    progress: Progress = silent,
) -> RetrainResult:
    """Train a challenger on the original data and the labelled captures, judge it, and deploy it if it is better.

    Args:
        if_due: only if a request is open, or schedule or labels call for one (`training.due`).
        reason: recorded with the events; the request's own unless given.
        actor: who asks, for the events: `watch`, or `cli:` and a person's name.

    Raises:
        NoLiveModel: there is nothing to retrain.
        LeaseHeld: another process is retraining this model.
        LeaseLost: another process took over, as this one was stopped or cut off for too long; nothing was deployed.
        WeightsChanged: the pretrained checkpoint is not the one the champion was trained from.
        InvalidDataset: the original data is gone or cannot be used.
        DiskFull, InvalidBundle, StorageUnavailable, LedgerUnavailable: see `perennial.errors`.
        Whatever is raised, the champion stays live; once a retrain has started, a `retrain_failed` event says why.
    """
    began = time.monotonic()
    name = settings.name
    deployments.live(engine, name)  # without a model there is no lease worth holding
    with leases.held(engine, lease_name(name), settings.retrain.lease) as lease:
        live = deployments.live(engine, name)
        if if_due:  # by hand it may be somebody whose settings know of no schedule
            note_schedule(engine, settings)
        decision = due.decide(read_situation(engine, settings, by_hand=not if_due), settings.retrain)
        if decision.trigger is None:
            why = f"no retrain of {name} is asked for: {decision.why}"
            return RetrainResult("nothing_to_do", name, live.version, None, why)
        request = open_request(engine, name)
        if request is None and decision.trigger is not Trigger.HAND:
            numbers = {"model_version": live.version, "actor": actor, **decision.numbers}
            request = write_request(engine, name, decision.trigger, decision.why, numbers)
        storage = Storage(settings.blobs_url)
        model = models.get(engine, name, live.version)
        run = _Run(
            engine=engine,
            settings=settings,
            storage=storage,
            limits=ImageLimits(settings.serve.max_bytes, settings.serve.max_pixels),
            champion=fetch_bundle(model.bundle_url, model.digest, storage, settings.cache_path),
            lease=lease,
            request=request,
            by_hand=not if_due,
            why=reason or decision.why,
            actor=actor,
            progress=progress,
        )
        return _retrain(run, began)


def lease_name(name: str) -> str:
    """The lease that lets one retrain of a model run at a time."""
    return f"retrain:{name}"


def _retrain(run: _Run, began: float) -> RetrainResult:
    settings, manifest = run.settings, run.champion.manifest
    captures = labelled.find(
        run.engine,
        manifest.name,
        manifest.version,
        window=settings.monitor.window,
        classes=manifest.classes,
        since=fresh_since(run.engine, manifest.name, run.request, by_hand=run.by_hand),
        new=new_labels_of(run.engine, settings, manifest.version),
    )
    captures = labelled.verified(captures, run.storage, run.limits, run.progress)
    captures, arriving = labelled.arriving(captures, manifest.classes, settings.retrain.new_class_labels)
    needed = labels_needed(settings)
    if len(captures.fresh) < needed:
        return _waiting(run, captures, arriving, needed, began)

    request = run.request
    if request is None:
        numbers = {"model_version": manifest.version, "labels": len(captures.fresh), "actor": run.actor}
        request = write_request(run.engine, manifest.name, Trigger.HAND, run.why, numbers)
    started = events.add(
        run.engine,
        manifest.name,
        EventKind.RETRAIN_STARTED,
        {
            "why": run.why,
            "actor": run.actor,
            "champion": manifest.version,
            "champion_digest": run.champion.digest,
            "pretrained_sha256": manifest.pretrained.sha256,
            "labels": len(captures.fresh),
            "older_labels": len(captures.older),
            "new_classes": arriving,
            "skipped": len(captures.skipped),
        },
        caused_by=request.id,
    )
    try:
        with full_disk.explained(run.settings):
            return _challenge(run, captures, arriving, started, began)
    except BaseException as error:
        detail = {
            "why": run.why, "actor": run.actor, "champion": manifest.version, "error": type(error).__name__,
            "reason": str(error),
        }  # fmt: skip
        try:
            events.add(run.engine, manifest.name, EventKind.RETRAIN_FAILED, detail, caused_by=started)
        except LedgerUnavailable as second:
            error.add_note(f"the failure could not be recorded either: {second}")
        raise


def _challenge(run: _Run, captures: Captures, arriving: Mapping[str, int], started: int, began: float) -> RetrainResult:
    settings, manifest = run.settings, run.champion.manifest
    changed = _changed(run, captures)
    before = changed_before(run.engine, manifest.name, models.lineage(run.engine, manifest.name, manifest.version))
    made = make_challenger(
        run.champion,
        captures,
        settings,
        changed=changed,
        changed_before=before,
        limits=run.limits,
        progress=run.progress,
    )
    fitted, material = made.fitted, made.material
    challenger = fitted.bundle
    run.lease.check()
    try:
        publish(challenger, run.engine, run.storage)
    except Exception:
        shutil.rmtree(challenger.path, ignore_errors=True)  # it has no second use, and its room may be what is missing
        raise
    unusable = {skip.location for skip in fitted.skipped}
    run.progress(Step("judging", 0, 0))
    decision = judge(
        evaluate(
            run.champion,
            challenger,
            fresh=[row for row in material.fresh if row.location not in unusable],
            old=[row for row in material.old if row.location not in unusable],
            changed=changed,
            changed_before=before,
            labelling=labelling_of(run.engine, manifest.version, captures.fresh, settings.monitor.window),
            # Of the challenger nothing is taken for known: what it answers to all these rows is what is judged.
            known={"champion": recorded(run.champion)},
            limits=run.limits,
            threads=settings.retrain_threads,
            progress=run.progress,
        ),
        gate_limits(settings.retrain, share=settings.retrain.fresh_holdout),
    )
    learnt = {label: count for label, count in arriving.items() if label in challenger.manifest.classes}
    outcome, why = _settle(run, challenger, decision, made, learnt, started, began)
    return RetrainResult(
        outcome=outcome,
        name=manifest.name,
        champion=manifest.version,
        version=challenger.manifest.version,
        why=why,
        labels=len(captures.fresh),
        new_classes=learnt,
        gate=decision,
        candidates=made.choice,
        left_out=material.left_out,
        skipped=captures.skipped + fitted.skipped,
        seconds=time.monotonic() - began,
    )


def _settle(
    run: _Run,
    challenger: Bundle,
    decision: GateDecision,
    made: Challenger,
    learnt: Mapping[str, int],
    started: int,
    began: float,
) -> tuple[Outcome, str]:
    """Write the gate's decision down and act on it."""
    name, version = challenger.manifest.name, challenger.manifest.version
    live = deployments.live(run.engine, name).version
    why = decision.why
    # Somebody may have promoted or rolled back meanwhile; then this was judged against the wrong model.
    overtaken = live != run.champion.manifest.version
    if overtaken:
        why = f"{live} went live while the challenger was trained, so it was judged against the wrong champion; " + why
    beside = rollouts.running(run.engine, name)
    if beside is not None:  # promoted by hand
        overtaken, why = True, f"{beside.challenger} began to go live in stages meanwhile; {why}"
    passed = decision.outcome == "pass" and not overtaken
    detail = {
        "version": version,
        "digest": challenger.digest,
        "champion": run.champion.manifest.version,
        "champion_digest": run.champion.digest,
        "data_fingerprint": challenger.manifest.dataset.fingerprint,
        "why": why,
        "actor": run.actor,
        "gate": decision.document(),
        "new_classes": dict(learnt),
        "candidates": made.choice.document(),
        "left_out": dict(made.material.left_out),
        "seconds": round(time.monotonic() - began, 2),
    }
    kind = EventKind.GATE_PASSED if passed else EventKind.GATE_REFUSED
    event = events.add(run.engine, name, kind, detail, caused_by=started, guard=run.lease.confirm)
    if not passed:
        return "waiting" if decision.outcome == "wait" and not overtaken else "refused", why
    if run.settings.rollout.stages:
        stages = rollout_start.begin(
            run.engine,
            run.settings,
            run.champion,
            challenger,
            decision,
            reason=run.why,
            actor=run.actor,
            caused_by=event,
            guard=run.lease.confirm,
        )
        return "rolling_out", f"{why}; {stages}"
    deployments.deploy(
        run.engine,
        name,
        version,
        reason=run.why,
        actor=run.actor,
        detail={"gate": why},
        caused_by=event,
        replaces=live,
        guard=run.lease.confirm,
    )
    return "promoted", why


def _changed(run: _Run, captures: Captures) -> tuple[ChangedClass, ...]:
    manifest = run.champion.manifest
    check = next(iter(checks.latest(run.engine, manifest.name, model_version=manifest.version)), None)
    if not inputs_unchanged(run.request, check):
        return ()
    answers = [(capture.predicted, capture.label) for capture in captures.fresh]
    return changed_classes(answers, manifest.per_class, alpha=run.settings.retrain.alpha)


def labels_needed(settings: Settings) -> int:
    """Labels below which a retrain is not worth it, or its gate could show nothing."""
    if not 0 < settings.retrain.fresh_holdout < 1:
        raise InvalidSettings(
            "retrain.fresh_holdout must be above 0 and below 1, or there is nothing to judge or train on"
        )
    judged = math.ceil(fewest_rows(settings.retrain.alpha) / settings.retrain.fresh_holdout)
    return max(settings.retrain.min_labels, judged)


def _waiting(run: _Run, captures: Captures, arriving: Mapping[str, int], needed: int, began: float) -> RetrainResult:
    why = (
        f"{len(captures.fresh)} fresh labelled captures of {run.champion.manifest.version}; a retrain needs {needed} "
        f"(retrain.min_labels is {run.settings.retrain.min_labels}): {needed - len(captures.fresh)} more"
    )
    if captures.skipped:
        why += f"; {len(captures.skipped)} could not be used, such as {captures.skipped[0].location}: "
        why += captures.skipped[0].reason
    return RetrainResult(
        outcome="waiting",
        name=run.champion.manifest.name,
        champion=run.champion.manifest.version,
        version=None,
        why=why,
        labels=len(captures.fresh),
        new_classes=arriving,
        skipped=captures.skipped,
        seconds=time.monotonic() - began,
    )
