"""Retraining: champion and labelled captures in, a challenger out; it goes live only if it passes the gate.

request -> started -> (gate passed -> deployed or rolled out | gate refused | failed), each an event caused by the one
before, so a retrain that was killed can be told from one that ended: its request stays open and the next run takes it
up. Gate and deployment are written only while the lease is held.

Here it is decided whether there is one at all. A schedule asks so every few minutes, so what a retrain itself needs
(`training.trial`, with torch) is loaded only once it is called for.
"""

from __future__ import annotations

import time
from typing import Final

import sqlalchemy as sa

from perennial.bundle import fetch_bundle
from perennial.images import ImageLimits
from perennial.ledger import deployments, leases, models
from perennial.ledger.requests import Trigger, open_request
from perennial.progress import Progress, silent
from perennial.settings import Settings
from perennial.storage import Storage
from training import due
from training.retrain_run import RetrainResult, Run
from training.situation import note_schedule, read_situation, write_request

ACTOR: Final = "retrain"


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
        run = Run(
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
        from training import trial

        return trial.hold(run, began)


def lease_name(name: str) -> str:
    """The lease that lets one retrain of a model run at a time."""
    return f"retrain:{name}"
