"""Takes the records of a journal to where they belong, in a thread of its own, again and again until they arrive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from prometheus_client import Gauge

from perennial.errors import PerennialError
from service.journal import Journal
from service.problems import logger

_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 4.0
_TAKE_OVER_SECONDS: Final = 30.0


class Delivery:
    """Delivers from a journal until closed.

    Args:
        what: names the records in the log.
        deliver: takes records, oldest first; returns when all of them are safe elsewhere. It may be given a record
            twice (after a crash, or where it raised), which must do no harm.
        batch_bytes: about how much it is given at once.
        seconds: how long records may gather before they are delivered.
        waiting: shows how many records wait in this process's journal.

    `failing`: the last attempt failed. `caught_up_at` is the last moment (`time.monotonic`) at which everything
    appended before was delivered.
    """

    def __init__(
        self,
        what: str,
        journal: Journal,
        deliver: Callable[[Sequence[bytes]], None],
        *,
        batch_bytes: int,
        seconds: float,
        waiting: Gauge,
    ) -> None:
        self._what = what
        self._journal = journal
        self._deliver = deliver
        self._batch_bytes = batch_bytes
        self._seconds = seconds
        self._waiting = waiting
        self.caught_up_at = float("-inf")
        self._wake = threading.Event()
        self._deadline: float | None = None
        self.failing = False
        self._thread = threading.Thread(target=self._run, name=f"deliver {what}", daemon=True)
        self._thread.start()

    def hurry(self) -> None:
        """Deliver what waits now, without waiting for more."""
        self._wake.set()

    def close(self, seconds: float) -> None:
        """Deliver what waits for at most so long, then stop. What is left stays in the journal for the next start."""
        self._deadline = time.monotonic() + seconds
        self._wake.set()
        self._thread.join(seconds + 1.0)
        left = self._journal.pending
        self._waiting.set(0)
        if self._thread.is_alive() or left:
            logger.warning("%d %s wait in the journal; the next start delivers them", left, self._what)
        if not self._thread.is_alive():
            self._journal.close()

    def _run(self) -> None:
        pause = 0.0
        look_at = time.monotonic() + _TAKE_OVER_SECONDS
        while True:
            self._wake.wait(max(pause, self._seconds))
            self._wake.clear()
            closing = self._deadline is not None
            if not closing and time.monotonic() > look_at:
                self._journal.take_over()
                look_at = time.monotonic() + _TAKE_OVER_SECONDS
            pause = 0.0 if self._deliver_all() else min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
            if self._deadline is not None:
                if self._journal.pending == 0 or time.monotonic() + pause > self._deadline:
                    return
                self._wake.clear()

    def _deliver_all(self) -> bool:
        """Whether nothing waits any more."""
        try:
            while True:
                looked = time.monotonic()
                batch = self._journal.read(self._batch_bytes)
                if batch is None:
                    self.caught_up_at = looked
                    return True
                self._waiting.set(self._journal.pending)
                if self._deadline is not None and time.monotonic() > self._deadline:
                    return False
                self._deliver(batch.records)
                self._journal.acknowledge(batch)
                if self.failing:
                    self.failing = False
                    logger.info("%s are delivered again", self._what)
        except PerennialError as error:
            if not self.failing:
                self.failing = True
                logger.warning("%s wait on local disk until they can be delivered: %s", self._what, error)
            return False
        except Exception:  # noqa: BLE001 - this thread must live, or nothing would be delivered any more
            self.failing = True
            logger.exception("%s cannot be delivered; tried again", self._what)
            return False
        finally:
            self._waiting.set(self._journal.pending)
