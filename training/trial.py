"""A retrain that is called for: a challenger is made, judged beside the champion, and what follows is written down."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping

from perennial.bundle import Bundle
from perennial.errors import InvalidSettings, LedgerUnavailable
from perennial.ledger import EventKind, checks, deployments, events, models, rollouts
from perennial.ledger.requests import Trigger
from perennial.progress import Step
from perennial.settings import Settings
from training import captures as labelled
from training import full_disk, rollout_start
from training.answers import recorded
from training.captures import Captures
from training.challenger import Challenger, make_challenger
from training.fair_rows import labelling_of
from training.gate import GateDecision, evaluate, judge
from training.gate_rules import gate_limits
from training.meaning import ChangedClass, changed_before, changed_classes, inputs_unchanged
from training.paired import fewest_rows
from training.publish import publish
from training.retrain_run import Outcome, RetrainResult, Run
from training.situation import fresh_since, new_labels_of, write_request


def hold(run: Run, began: float) -> RetrainResult:
    """Train a challenger, judge it beside the champion and act on the verdict; or say which labels are lacking.

    Args:
        began: when the retrain did, on the monotonic clock.

    Raises:
        What `training.retrain.retrain` raises.
    """
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


def _challenge(run: Run, captures: Captures, arriving: Mapping[str, int], started: int, began: float) -> RetrainResult:
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
    run: Run,
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


def _changed(run: Run, captures: Captures) -> tuple[ChangedClass, ...]:
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


def _waiting(run: Run, captures: Captures, arriving: Mapping[str, int], needed: int, began: float) -> RetrainResult:
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
