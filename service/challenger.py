"""The challenger of a rollout that runs: loaded beside the live model, and let go when the rollout ends.

One that cannot be loaded, or that takes the inference process down, stops the rollout; the live model is not touched.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import sqlalchemy as sa

from perennial.errors import LedgerUnavailable, Overtaken, PerennialError, StorageUnavailable
from perennial.ledger import rollouts
from perennial.ledger.rollouts import SHADOW, Rollout
from perennial.settings import Settings
from perennial.storage import Storage
from service import metrics
from service.inference import Inference
from service.inference_wire import Split
from service.loaded_model import LoadedModel, load
from service.problems import logger

ACTOR: Final = "service"
_RETRY_SECONDS: Final = 10.0
#: An image may bring the inference process down whatever model it is for; twice is no accident any more.
_MOST_ENDS: Final = 2
#: Any fault stops it when its evidence is looked at next; for so many nobody need look: each costs an image twice.
_MOST_FAULTS: Final = 10


@dataclass(frozen=True, slots=True)
class Challenger:
    """A challenger that is loaded. `split` are the images that it answers, None in the shadow; `sample` those that it
    is shown there. `faults`: how it failed on images of this stage, the last ones."""

    model: LoadedModel
    rollout: Rollout
    split: Split | None
    sample: Split | None
    faults: deque[str] = field(default_factory=lambda: deque(maxlen=_MOST_FAULTS), compare=False)


class Challengers:
    """Follows the rollout of one model. For the thread that looks at the ledger."""

    def __init__(self, storage: Storage, settings: Settings, inference: Inference) -> None:
        self._storage = storage
        self._settings = settings
        self._inference = inference
        self._current: Challenger | None = None
        self._ends = 0
        self._retry_at = 0.0

    def follow(self, engine: sa.Engine, rollout: Rollout | None) -> Challenger | None:
        """The challenger as this rollout has it now (None: there is none), which is the same object while nothing
        changes.

        Raises:
            LedgerUnavailable.
        """
        current = self._current
        if current is not None and rollout is not None and current.rollout.id == rollout.id:
            why = self._what_is_wrong(current)
            if why is None:
                return current
            self._stop(engine, rollout, why)
            rollout = None
        if rollout is None:
            self._let_go()
            return None
        if current is None or current.rollout.started != rollout.started:
            self._let_go()
            self._current = self._load(engine, rollout)
        else:
            self._current = self._at_stage(current.model, rollout)
        if self._current is not None:
            metrics.rollout_share.labels(rollout.challenger).set(rollout.share)
            logger.info("version %s is at stage %s beside %s", rollout.challenger, rollout.current, rollout.champion)
        return self._current

    def _what_is_wrong(self, current: Challenger) -> str | None:
        if self._inference.ends - self._ends >= _MOST_ENDS:
            return f"the inference process ended {_MOST_ENDS} times since it was loaded"
        if len(current.faults) == _MOST_FAULTS:
            return f"it failed on {_MOST_FAULTS} images: {current.faults[-1]}"
        return None

    def _load(self, engine: sa.Engine, rollout: Rollout) -> Challenger | None:
        if time.monotonic() < self._retry_at:
            return None
        self._ends = self._inference.ends
        try:
            loaded = load(engine, self._storage, self._settings, rollout.challenger, self._inference)
        except LedgerUnavailable:
            raise
        except StorageUnavailable as error:
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            logger.warning("the challenger %s waits for the storage: %s", rollout.challenger, error)
            return None
        except Exception as error:  # noqa: BLE001 - a bundle can be broken in any way; the live model goes on
            known = isinstance(error, PerennialError)
            why = str(error) if known else f"{type(error).__name__}: {error}"
            logger.error("the challenger %s cannot be loaded: %s", rollout.challenger, why)
            self._stop(engine, rollout, f"it cannot be loaded: {why}")
            return None
        return self._at_stage(loaded, rollout)

    def _at_stage(self, loaded: LoadedModel, rollout: Rollout) -> Challenger:
        def split(share: float) -> Split:
            return Split.of(loaded.model.number, rollout.started, share)

        if rollout.current == SHADOW:
            return Challenger(loaded, rollout, None, split(self._settings.rollout.shadow_share))
        return Challenger(loaded, rollout, split(rollout.share), None)

    def _let_go(self) -> None:
        if self._current is not None:
            metrics.rollout_share.labels(self._current.model.version).set(0)
            logger.info("the rollout of version %s has ended", self._current.model.version)
            self._current = None

    def _stop(self, engine: sa.Engine, rollout: Rollout, why: str) -> None:
        """Once over all workers: whoever comes second finds that it has ended."""
        try:
            rollouts.stop(engine, rollout, why=why, actor=ACTOR)
        except Overtaken as error:
            logger.info("%s", error)
