"""What a challenger says to a sample of the traffic, unseen: after the answer was given, when nothing else is to do.

Nothing is promised: images that come while it is busy are left out, and what a killed process had not brought into the
ledger, a second's worth, is lost. The time it takes is bounded by the setting `rollout.shadow_budget`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from perennial.errors import InferenceLost, InvalidImage
from perennial.ledger.shadow_answers import ShadowAnswer
from perennial.settings_sections import RolloutSettings
from service import metrics
from service.challenger import Challenger
from service.inference import Inference
from service.inference_wire import InferenceFailed, Scored
from service.shadow_log import ShadowLog

_MOST_WAITING: Final = 8  # images
_MOST_BYTES: Final = 16 * 2**20
_LONGEST_SECONDS: Final = 1.0  # that an image waits for its turn
_LOOK_SECONDS: Final = 0.02
_LONGEST_FAULT: Final = 500


@dataclass(frozen=True, slots=True)
class _Shown:
    """An image that was answered. `champion_ms`: how long that inference took."""

    challenger: Challenger
    prediction_id: str
    label: str
    champion_ms: float
    data: bytes
    at: float


class Shadow:
    """Used in the event loop's thread only.

    Args:
        engine: gives the ledger; raises LedgerUnavailable while it is away.
    """

    def __init__(self, inference: Inference, settings: RolloutSettings, engine: Callable[[], sa.Engine]) -> None:
        self._inference = inference
        self._budget = settings.shadow_budget
        self._log = ShadowLog(engine)
        self._waiting: deque[_Shown] = deque()
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._rest_until = 0.0

    def answered(
        self, challenger: Challenger, document: Mapping[str, Any], scored: Scored, data: bytes, fault: str | None
    ) -> None:
        """An image was answered beside a challenger; `fault`: what was wrong with the challenger's own try."""
        prediction_id = document["prediction_id"]
        if fault is not None:
            self._failed(challenger, prediction_id, fault)
        if challenger.sample is None or not challenger.sample.takes(scored.digest):
            return
        if len(self._waiting) >= _MOST_WAITING or self._bytes + len(data) > _MOST_BYTES:
            metrics.shadow.labels("dropped").inc()
            return
        self._bytes += len(data)
        milliseconds = scored.infer_seconds * 1000
        self._waiting.append(_Shown(challenger, prediction_id, document["label"], milliseconds, data, time.monotonic()))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self, seconds: float) -> None:
        """Bring what was found out into the ledger, for at most so long. From any thread."""
        self._log.close(seconds)

    async def _run(self) -> None:
        """Shows what waits, one at a time, until nothing does."""
        try:
            while self._waiting:
                # Also before the first: the answer itself leaves first.
                await asyncio.sleep(_LOOK_SECONDS)
                now = time.monotonic()
                while self._waiting and self._waiting[0].at < now - _LONGEST_SECONDS:
                    self._take()
                    metrics.shadow.labels("dropped").inc()
                if self._waiting and now >= self._rest_until and self._inference.idle:
                    await self._show(self._take())
        finally:
            self._task = None

    def _take(self) -> _Shown:
        shown = self._waiting.popleft()
        self._bytes -= len(shown.data)
        return shown

    async def _show(self, shown: _Shown) -> None:
        began = time.monotonic()
        try:
            scored = await self._inference.score(shown.challenger.model.model, shown.data)
            fault = fault_of(scored)
        except InferenceLost:
            metrics.shadow.labels("lost").inc()
            return
        except (InvalidImage, InferenceFailed) as error:
            fault = str(error)
        took = time.monotonic() - began
        self._rest_until = began + took / self._budget
        if fault is not None:
            self._failed(shown.challenger, shown.prediction_id, fault)
            return
        best = int(scored.probabilities.argmax())
        label = shown.challenger.model.classes[best]
        metrics.shadow.labels("agreed" if label == shown.label else "differed").inc()
        self._log.add(
            ShadowAnswer(
                prediction_id=shown.prediction_id,
                version=shown.challenger.model.version,
                at=datetime.now(UTC),
                label=label,
                confidence=float(scored.probabilities[best]),
                latency_ms=round(scored.infer_seconds * 1000, 3),
                champion_ms=round(shown.champion_ms, 3),
            )
        )

    def _failed(self, challenger: Challenger, prediction_id: str, fault: str) -> None:
        metrics.shadow.labels("failed").inc()
        said = fault.strip()[-_LONGEST_FAULT:]  # of a traceback the end says what it was
        challenger.faults.append(said)
        self._log.add(ShadowAnswer(prediction_id, challenger.model.version, datetime.now(UTC), fault=said))


def fault_of(scored: Scored) -> str | None:
    """What is wrong with an answer that must not be given."""
    return None if np.isfinite(scored.probabilities).all() else "its probabilities are not finite"
