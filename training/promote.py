"""Promotion by hand: the same gate, for a model that is there already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from perennial.bundle import Bundle, fetch_bundle
from perennial.errors import InvalidParameter, NoLiveModel, NothingToDo, Overtaken
from perennial.images import ImageLimits
from perennial.ledger import EventKind, checks, deployments, events, models, rollouts
from perennial.ledger.deployments import Deployment
from perennial.progress import Progress, silent
from perennial.settings import Settings
from perennial.storage import Storage
from training import captures as labelled
from training import rollout_start
from training.datasets import Row
from training.fair_rows import labelling_of
from training.gate import GateDecision, evaluate, judge
from training.gate_rules import gate_limits
from training.material import original_data, pinned_rows, trained_on
from training.meaning import changed_before, changed_classes, inputs_unchanged
from training.near_copies import near_copies


@dataclass(frozen=True, slots=True)
class PromoteResult:
    """`champion` is what was live before (None: nothing was); `gate` is None where none was held."""

    outcome: Literal["promoted", "rolling_out", "refused"]
    name: str
    version: str
    champion: str | None
    why: str
    forced: bool
    gate: GateDecision | None

    @property
    def passed(self) -> bool:
        return self.outcome != "refused"

    @property
    def exit_code(self) -> int:
        return 0 if self.passed else 11

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "outcome": self.outcome,
            "name": self.name,
            "version": self.version,
            "champion": self.champion,
            "why": self.why,
            "forced": self.forced,
            "gate": self.gate.document() if self.gate else None,
        }


def promote(
    engine: sa.Engine,
    settings: Settings,
    version: str,
    *,
    reason: str = "",
    force: bool = False,
    at_once: bool = False,
    actor: str,
    progress: Progress = silent,
) -> PromoteResult:
    """Make a version live if it passes the gate against the live one; in stages, where `rollout.stages` has any.

    They are judged on the champion's original held-out rows and on the live version's newest labelled captures, without
    any row that either was trained on. Without a live model there is nothing to be better than.

    Args:
        force: deploy without the gate, at once; the event says so.
        at_once: without stages.

    Raises:
        InvalidParameter: `force` without a reason.
        UnknownModel: there is no such version.
        NothingToDo: it is live already.
        Overtaken: another challenger is being rolled out.
        InvalidBundle, InvalidDataset, StorageUnavailable: see `perennial.errors`.
    """
    if force and not reason.strip():
        raise InvalidParameter("--force needs --reason: it is what the audit trail will say")
    name = settings.name
    storage = Storage(settings.blobs_url)
    challenger = _bundle(engine, settings, storage, version)
    try:
        live: Deployment | None = deployments.live(engine, name)
    except NoLiveModel:
        live = None
    if live is not None and live.version == version:
        raise NothingToDo(f"{version} is live already")
    if live is None or force:
        why = "no model was live" if live is None else f"forced, without the gate: {reason}"
        detail: Mapping[str, Any] = {"forced": force, "gate": None}
        deployments.deploy(engine, name, version, reason=reason or why, actor=actor, detail=detail)
        return PromoteResult("promoted", name, version, live.version if live else None, why, force, None)

    in_stages = bool(settings.rollout.stages) and not at_once
    running = rollouts.running(engine, name)
    if in_stages and running is not None:
        raise Overtaken(f"{running.challenger} is being rolled out; end that first: perennial rollout stop")
    champion = _bundle(engine, settings, storage, live.version)
    decision = _judge(engine, settings, storage, champion, challenger, progress)
    passed = decision.outcome == "pass"
    event = events.add(
        engine,
        name,
        EventKind.GATE_PASSED if passed else EventKind.GATE_REFUSED,
        {
            "version": version,
            "digest": challenger.digest,
            "champion": live.version,
            "champion_digest": champion.digest,
            "why": decision.why,
            "actor": actor,
            "gate": decision.document(),
        },
    )
    if not passed:
        return PromoteResult("refused", name, version, live.version, decision.why, False, decision)
    why = reason or "promoted by hand"
    if in_stages:
        stages = rollout_start.begin(
            engine, settings, champion, challenger, decision, reason=why, actor=actor, caused_by=event
        )
        why = f"{decision.why}; {stages}"
        return PromoteResult("rolling_out", name, version, live.version, why, False, decision)
    deployments.deploy(
        engine, name, version, reason=why, actor=actor, detail={"forced": False}, caused_by=event, replaces=live.version
    )
    return PromoteResult("promoted", name, version, live.version, decision.why, False, decision)


def _bundle(engine: sa.Engine, settings: Settings, storage: Storage, version: str) -> Bundle:
    model = models.get(engine, settings.name, version)
    return fetch_bundle(model.bundle_url, model.digest, storage, settings.cache_path)


def _judge(
    engine: sa.Engine, settings: Settings, storage: Storage, champion: Bundle, challenger: Bundle, progress: Progress
) -> GateDecision:
    manifest = champion.manifest
    limits = ImageLimits(settings.serve.max_bytes, settings.serve.max_pixels)
    pinned = pinned_rows(champion)
    seen = trained_on(pinned) | trained_on(pinned_rows(challenger))
    held_out = {digest for digest, row in pinned.items() if row.split == "test"}
    found = labelled.find(
        engine,
        manifest.name,
        manifest.version,
        window=settings.monitor.window,
        classes={*manifest.classes, *challenger.manifest.classes},
    )
    everything = labelled.verified(found, storage, limits, progress).fresh
    original = original_data(champion, settings, limits, progress)
    rows = [Row(capture.url, capture.label, capture.digest, "test", origin="capture") for capture in everything]
    copies = near_copies(rows, original, limits, progress)
    known = {copies.group(row.digest) for row in rows if row.digest in seen | copies.of_trained}
    captures = [one for one in everything if copies.group(one.digest) not in known]
    check = next(iter(checks.latest(engine, manifest.name, model_version=manifest.version)), None)
    changed = (
        changed_classes(
            [(capture.predicted, capture.label) for capture in captures],
            manifest.per_class,
            alpha=settings.retrain.alpha,
        )
        if inputs_unchanged(None, check)
        else ()
    )
    # What changed its meaning on the way to the champion is judged by fresh rows alone, as the retrain did.
    before = changed_before(engine, manifest.name, models.lineage(engine, manifest.name, manifest.version))
    left_out = {change.label for change in changed} | set(before)
    captured = {capture.digest for capture in captures}
    # Ten pictures of one scene are one answer.
    once = {copies.group(row.digest): row for row in rows if row.digest in captured}
    return judge(
        evaluate(
            champion,
            challenger,
            fresh=list(once.values()),
            old=[
                row
                for row in original.of("test")
                if row.digest in held_out
                and row.digest not in seen
                and row.digest not in captured
                and row.label not in left_out
            ],
            changed=changed,
            changed_before=before,
            labelling=labelling_of(engine, manifest.version, everything, settings.monitor.window),
            limits=limits,
            threads=settings.train.threads,
            progress=progress,
        ),
        gate_limits(settings.retrain),
    )
