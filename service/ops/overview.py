"""The overview as a worker gives it: reading it takes a small share of the time, however many pages are open."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from perennial import overview
from perennial.json_body import json_body
from perennial.settings import Settings

#: An answer is kept at least so long.
_FRESH_SECONDS: Final = 1.0
#: Of a processor that reading may take. A long history makes answers older, not predictions slower.
_SHARE: Final = 0.025
#: A span of time that nobody has asked for in so long is looked at no more: pages ask every five seconds.
_LOOKED_AT_SECONDS: Final = 30.0
_MOST_KEPT: Final = 16  # spans of time that different pages look at


@dataclass(frozen=True, slots=True)
class Document:
    """A body and its entity tag, which stays the same as long as nothing but the time has changed."""

    body: bytes
    etag: str
    read_at: float
    took: float  # seconds of this thread's processor time: waiting for a busy machine or a far database costs nobody


class Overview:
    """Reads the ledger, on the caller's thread.

    Args:
        needs_key: which kinds of calls ask for a key here.
        clock: seconds that only ever grow.
        processor: seconds of processor time that this thread has taken.
    """

    def __init__(
        self,
        settings: Settings,
        needs_key: Mapping[str, bool],
        clock: Callable[[], float] = time.monotonic,
        processor: Callable[[], float] = time.thread_time,
    ) -> None:
        self._settings = settings
        self._needs_key = dict(needs_key)
        self._clock = clock
        self._processor = processor
        self._lock = threading.Lock()
        self._known = overview.Unchanging()
        self._kept: dict[int, Document] = {}
        self._asked: dict[int, float] = {}

    def get(self, engine: sa.Engine, hours: int, *, anew: bool = False) -> Document:
        """The overview of the last `hours`; one that was read a moment ago, as often as reading it would cost too much.

        Args:
            anew: who asks has just changed something, so a second is as old as it may be.

        Raises:
            LedgerUnavailable: the database does not answer.
        """
        with self._lock:  # who comes while it is being read waits for that reading
            now = self._clock()
            self._asked[hours] = now
            kept = self._kept.get(hours)
            if kept is not None and now - kept.read_at < (_FRESH_SECONDS if anew else self._lasts(now)):
                return kept
            began = self._processor()
            found: dict[str, Any] = overview.read(engine, self._settings, hours, known=self._known)
            found["needs_key"] = self._needs_key
            # The sentence says how long ago something was; that alone is no news.
            lasting = {**found, "at": None, "state": {**found["state"], "sentence": None}}
            etag = '"' + hashlib.sha256(json_body(lasting)).hexdigest()[:32] + '"'
            body = json_body(found)
            took = self._processor() - began
            self._kept.pop(hours, None)
            while len(self._kept) >= _MOST_KEPT:
                del self._asked[oldest := next(iter(self._kept))]
                del self._kept[oldest]
            self._kept[hours] = Document(body, etag, self._clock(), took)
            return self._kept[hours]

    def _lasts(self, now: float) -> float:
        """Seconds for which an answer is good enough: in them, reading each span that is looked at takes the share."""
        looked_at = (kept.took for hours, kept in self._kept.items() if now - self._asked[hours] <= _LOOKED_AT_SECONDS)
        return max(_FRESH_SECONDS, sum(looked_at) / _SHARE)
