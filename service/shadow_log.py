"""Brings what challengers said in the shadow into the ledger, every second. Bounded, and without a promise."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

import sqlalchemy as sa

from perennial.errors import PerennialError
from perennial.ledger import shadow_answers
from perennial.ledger.shadow_answers import ShadowAnswer
from service.problems import logger

_PAUSE_SECONDS: Final = 1.0
_MOST: Final = 5000  # that wait while the ledger is away; past it some go


class ShadowLog:
    """Answers in memory and a thread that writes them until it is closed.

    Args:
        engine: gives the ledger; raises LedgerUnavailable while it is away.
    """

    def __init__(self, engine: Callable[[], sa.Engine]) -> None:
        self._engine = engine
        self._waiting: deque[ShadowAnswer] = deque(maxlen=_MOST)
        self._failing = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def add(self, answer: ShadowAnswer) -> None:
        """May be called from any thread; never waits."""
        self._waiting.append(answer)

    def close(self, seconds: float) -> None:
        """Write what waits, for at most so long."""
        self._stop.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stop.wait(_PAUSE_SECONDS):
            self._write()
        self._write()

    def _write(self) -> None:
        taken = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not taken:
            return
        try:
            shadow_answers.record(self._engine(), taken)
            self._failing = False
        except Exception as error:  # noqa: BLE001 - this thread must live, or nothing would be written any more
            if not self._failing:
                self._failing = True
                known = isinstance(error, PerennialError)
                logger.warning("shadow answers wait for the ledger: %s", error, exc_info=None if known else error)
            if isinstance(error, PerennialError):
                self._waiting.extendleft(reversed(taken))
