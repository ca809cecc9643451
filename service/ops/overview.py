"""The overview as a worker gives it: read once a second at most, however many pages are open."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from perennial import overview
from perennial.json_body import json_body
from perennial.settings import Settings

_FRESH_SECONDS: Final = 1.0
_MOST_KEPT: Final = 8  # spans of time that different pages look at


@dataclass(frozen=True, slots=True)
class Document:
    """A body and its entity tag, which stays the same as long as nothing but the time has changed."""

    body: bytes
    etag: str
    read_at: float


class Overview:
    """Reads the ledger, on the caller's thread.

    Args:
        needs_key: which kinds of calls ask for a key here.
    """

    def __init__(self, settings: Settings, needs_key: Mapping[str, bool]) -> None:
        self._settings = settings
        self._needs_key = dict(needs_key)
        self._lock = threading.Lock()
        self._kept: dict[int, Document] = {}

    def get(self, engine: sa.Engine, hours: int) -> Document:
        """Raises LedgerUnavailable."""
        with self._lock:  # who comes while it is being read waits for that reading
            kept = self._kept.get(hours)
            if kept is not None and time.monotonic() - kept.read_at < _FRESH_SECONDS:
                return kept
            found: dict[str, Any] = overview.read(engine, self._settings, hours)
            found["needs_key"] = self._needs_key
            # The sentence says how long ago something was; that alone is no news.
            lasting = {**found, "at": None, "state": {**found["state"], "sentence": None}}
            etag = '"' + hashlib.sha256(json_body(lasting)).hexdigest()[:32] + '"'
            self._kept.pop(hours, None)
            while len(self._kept) >= _MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[hours] = Document(json_body(found), etag, time.monotonic())
            return self._kept[hours]
