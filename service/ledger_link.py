"""The ledger as a worker holds it: it may be away when the worker starts, and come later."""

from __future__ import annotations

import threading
import time
from typing import Final

import sqlalchemy as sa

from perennial.errors import LedgerUnavailable
from perennial.ledger import open_ledger

_RETRY_SECONDS: Final = 1.0


class LedgerLink:
    """Opens the ledger at the first use, and tries again, at most once a second, while it is away."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self._url = url
        self._pool_size = pool_size
        self._engine: sa.Engine | None = None
        self._lock = threading.Lock()
        self._away = ""
        self._retry_at = 0.0

    def engine(self) -> sa.Engine:
        """Blocks while it connects, so call it from a thread.

        Raises:
            LedgerUnavailable: the database does not answer.
            InvalidSettings: it never will; see `perennial.ledger.open_ledger`.
        """
        with self._lock:
            if self._engine is None:
                if time.monotonic() < self._retry_at:
                    raise LedgerUnavailable(self._away)
                try:
                    self._engine = open_ledger(self._url, pool_size=self._pool_size)
                except LedgerUnavailable as error:
                    self._away = error.detail
                    self._retry_at = time.monotonic() + _RETRY_SECONDS
                    raise
            return self._engine

    def close(self) -> None:
        with self._lock:
            if self._engine is not None:
                self._engine.dispose()
