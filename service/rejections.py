"""Images that could not be read, added up by minute, version and reason, and brought into the ledger now and then.

They were answered with an error, so nothing was promised: what a killed process had not brought in yet, a second's
worth, is not counted, and a commit whose answer was lost may be counted twice. Refusals for other reasons than the
image itself are in `perennial_rejected_total` alone.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import sqlalchemy as sa

from perennial.errors import PerennialError
from perennial.ledger import rejected_images
from perennial.ledger.rejected_images import RejectedImages
from service.problems import logger

_PAUSE_SECONDS: Final = 1.0
_MINUTE: Final = 60
_DAY: Final = 24 * 60 * _MINUTE
_MOST: Final = 1000  # counts that wait while the ledger is away; past it they are of longer spans than a minute


class Rejections:
    """Counts in memory and a thread that brings them into the ledger until it is closed.

    Args:
        engine: gives the ledger; raises LedgerUnavailable while it is away.
    """

    def __init__(self, engine: Callable[[], sa.Engine]) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._waiting: Counter[tuple[str, int, str]] = Counter()
        self._on_the_way = 0  # images
        self._failing = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rejections", daemon=True)
        self._thread.start()

    def add(self, model_version: str, reason: str) -> None:
        """Count one image. May be called from any thread, and never waits for the ledger."""
        minute = int(time.time()) // _MINUTE * _MINUTE
        with self._lock:
            self._waiting[model_version, minute, reason] += 1
            self._bound()

    @property
    def waiting(self) -> int:
        """Images that are not in the ledger yet."""
        with self._lock:
            return self._waiting.total() + self._on_the_way

    def close(self, seconds: float) -> None:
        """Bring what waits into the ledger, for at most so long."""
        self._stop.set()
        self._thread.join(seconds)
        if left := self.waiting:
            logger.warning("%d images that could not be read are not counted in the ledger", left)

    def _run(self) -> None:
        while not self._stop.wait(_PAUSE_SECONDS):
            self._deliver()
        self._deliver()

    def _deliver(self) -> None:
        with self._lock:
            taken, self._waiting = self._waiting, Counter()
            self._on_the_way += taken.total()
        if not taken:
            return
        brought = False
        rows = [
            RejectedImages(version, datetime.fromtimestamp(at, UTC), reason, images)
            for (version, at, reason), images in taken.items()
        ]
        try:
            rejected_images.add(self._engine(), rows)
            brought, self._failing = True, False
        except Exception as error:  # noqa: BLE001 - this thread must live, or nothing would be counted any more
            if not self._failing:
                self._failing = True
                cause = None if isinstance(error, PerennialError) else error
                logger.warning("counts of rejected images wait for the ledger: %s", error, exc_info=cause)
        with self._lock:
            self._on_the_way -= taken.total()
            if not brought:
                self._waiting.update(taken)
                self._bound()

    def _bound(self) -> None:
        """Add up over two minutes, four, ... a day, until there are few enough."""
        span = _MINUTE
        while len(self._waiting) > _MOST and span < _DAY:
            span *= 2
            longer: Counter[tuple[str, int, str]] = Counter()
            for (version, at, reason), images in self._waiting.items():
                longer[version, at // span * span, reason] += images
            self._waiting = longer
