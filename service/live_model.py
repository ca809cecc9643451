"""The model that a worker serves, and the thread that swaps it when another one is deployed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import sqlalchemy as sa

from perennial.errors import LeaseHeld, LedgerUnavailable, NoLiveModel, PerennialError
from perennial.ledger import EventKind, deployments, events, leases, rollouts
from perennial.ledger.deployments import Deployment
from perennial.ledger.rollouts import Rollout
from perennial.settings import Settings
from perennial.storage import Storage
from service import metrics
from service.challenger import Challenger, Challengers
from service.inference import Inference
from service.loaded_model import LoadedModel, load
from service.problems import logger

_LONGEST_RETRY_SECONDS: Final = 60.0
_EVENT_LEASE_SECONDS: Final = 30.0
_FALL_BACKS: Final = 3  # earlier versions tried when a worker starts on a broken one


@dataclass(frozen=True, slots=True)
class LiveModel(LoadedModel):
    """The model of a deployment, and the challenger that is shown some of its traffic, if there is one. A request takes
    it once, so it ends on the models it began with."""

    deployment: Deployment
    challenger: Challenger | None = None

    @property
    def refusing(self) -> str:
        """The version that an image which cannot be read counts for: the challenger has its share of these, too."""
        challenger = self.challenger
        if challenger is not None and random.random() < challenger.rollout.share:  # noqa: S311 - nobody gains by it
            return challenger.model.version
        return self.version

    @classmethod
    def of(cls, loaded: LoadedModel, deployment: Deployment) -> LiveModel:
        return cls(loaded.version, loaded.bundle, loaded.model, loaded.classes, loaded.precision, deployment)


class LiveModels:
    """Holds the live model and its challenger, and follows the deployments and rollouts.

    On failure the old model stays (a worker that has none yet takes the newest earlier one that loads), one
    `swap_failed` event is recorded for the failed deployment, and loading is tried again at growing intervals.
    """

    def __init__(
        self, engine: Callable[[], sa.Engine], storage: Storage, settings: Settings, inference: Inference
    ) -> None:
        self._engine = engine
        self._storage = storage
        self._settings = settings
        self._inference = inference
        self._challengers = Challengers(storage, settings, inference)
        self._live: LiveModel | None = None
        self._failed: Deployment | None = None
        self._why = ""
        self._reported = False
        self._failures = 0
        self._retry_at = 0.0
        self._away = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="live-model", daemon=True)

    @property
    def current(self) -> LiveModel | None:
        return self._live

    def get(self) -> LiveModel:
        """Raises NoLiveModel until one is loaded."""
        live = self._live
        if live is None:
            name = self._settings.name
            if self._failed is not None:
                raise NoLiveModel(f"version {self._failed.version} of {name!r} is deployed but cannot be loaded")
            raise NoLiveModel(f"no model named {name!r} is live yet; train one: perennial train DATA --name {name}")
        return live

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Look once whether another deployment is live, and swap to it. Does not raise."""
        try:
            engine = self._engine()
            # First the rollout: if it ends with its challenger live, that is known by then.
            rollout = rollouts.running(engine, self._settings.name)
            deployment = deployments.live(engine, self._settings.name)
            self._inference.forget_unused()
            if self._away:
                self._away = False
                logger.info("the ledger is back")
            self._turn_to(engine, deployment)
            self._accompany(engine, rollout)
        except NoLiveModel:
            return
        except LedgerUnavailable as error:
            if not self._away:
                self._away = True
                logger.warning("the live model cannot be looked up, serving goes on: %s", error)
        except Exception:  # noqa: BLE001 - this thread must outlive any surprise, or no model would be swapped again
            logger.exception("looking for the live model failed")

    def _follow(self) -> None:
        while not self._stop.wait(self._settings.serve.swap_interval):
            self.look()

    def _turn_to(self, engine: sa.Engine, deployment: Deployment) -> None:
        live = self._live
        if live is not None and live.deployment.id == deployment.id:
            self._failed = None  # a failed one was rolled back
            return
        if live is not None and live.version == deployment.version:
            self._live, self._failed = replace(live, deployment=deployment), None
            return
        if self._failed is not None and self._failed.id == deployment.id:
            if not self._reported:
                self._report(engine, deployment)
            if time.monotonic() < self._retry_at:
                return
        else:
            self._failures = 0
        started = time.monotonic()
        try:
            fresh = LiveModel.of(self._loaded(engine, deployment.version), deployment)
        except LedgerUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - a bundle can be broken in any way; the old model goes on
            self._fail(engine, deployment, error)
            return
        self._take(fresh)
        self._failed = None
        metrics.swaps.labels("done").inc()
        logger.info(
            "version %s is live in %s on %s after %.2f s (%s)",
            fresh.version,
            fresh.precision,
            fresh.model.runtime,
            time.monotonic() - started,
            deployment.reason,
        )

    def _accompany(self, engine: sa.Engine, rollout: Rollout | None) -> None:
        live = self._live
        if live is None:
            return
        beside = rollout if rollout is not None and rollout.champion == live.version else None
        challenger = self._challengers.follow(engine, beside)
        if challenger is not live.challenger:
            self._live = replace(live, challenger=challenger)

    def _loaded(self, engine: sa.Engine, version: str) -> LoadedModel:
        beside = self._live.challenger if self._live is not None else None
        if beside is not None and beside.model.version == version:
            return beside.model
        return load(engine, self._storage, self._settings, version, self._inference)

    def _take(self, fresh: LiveModel) -> None:
        old, self._live = self._live, fresh
        if old is not None:
            metrics.live_model.labels(old.version, old.precision, old.model.runtime).set(0)
        metrics.live_model.labels(fresh.version, fresh.precision, fresh.model.runtime).set(1)

    def _fall_back(self, engine: sa.Engine, failed: Deployment) -> None:
        """A worker that starts while a broken version is deployed serves what the other workers still serve."""
        earlier = {found.version: found for found in deployments.history(engine, self._settings.name)}
        earlier.pop(failed.version, None)
        for deployment in sorted(earlier.values(), key=lambda found: -found.id)[:_FALL_BACKS]:
            try:
                self._take(LiveModel.of(self._loaded(engine, deployment.version), deployment))
            except LedgerUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - it can be broken in any way, too; the one before may do
                logger.error("version %s, live before, cannot be loaded either: %s", deployment.version, error)
                continue
            return

    def _fail(self, engine: sa.Engine, deployment: Deployment, error: Exception) -> None:
        self._failures += 1
        pause = min(self._settings.serve.swap_interval * 2**self._failures, _LONGEST_RETRY_SECONDS)
        self._retry_at = time.monotonic() + pause
        known = isinstance(error, PerennialError)
        if self._live is None:
            self._fall_back(engine, deployment)
        logger.error(
            "version %s cannot be loaded, %s; next try in %.0f s: %s",
            deployment.version,
            f"{self._live.version} goes on" if self._live else "no model is served",
            pause,
            error,
            exc_info=None if known else error,
        )
        if self._failed is None or self._failed.id != deployment.id:
            self._failed, self._reported = deployment, False
            self._why = str(error) if known else f"{type(error).__name__}: {error}"
            metrics.swaps.labels("failed").inc()
            self._report(engine, deployment)

    def _report(self, engine: sa.Engine, deployment: Deployment) -> None:
        """Record the failure, once over all workers and restarts."""
        name, kinds = self._settings.name, [EventKind.SWAP_FAILED]
        detail = {
            "version": deployment.version,
            "why": self._why,
            "keeps": self._live.version if self._live else None,
            "deployment": deployment.id,
        }
        try:
            with leases.held(engine, f"swap-failed:{name}:{deployment.id}", _EVENT_LEASE_SECONDS):
                earlier = events.after(engine, name, deployment.event_id, kinds=kinds)
                if not any(event.caused_by == deployment.event_id for event in earlier):
                    events.add(engine, name, EventKind.SWAP_FAILED, detail, caused_by=deployment.event_id)
        except LeaseHeld:
            logger.info("another worker is recording that version %s cannot be loaded", deployment.version)
        self._reported = True
