"""Keeps images of the traffic for labelling and retraining: first in a journal on local disk, then in the storage.

An image is kept once, by the digest of its bytes. A row may name where its image will be a moment before it is there.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from perennial.errors import JournalFull, StorageUnavailable
from perennial.settings_sections import ServeSettings
from perennial.storage import Storage, capture_key
from service import metrics
from service.delivery import Delivery
from service.journal import Journal
from service.problems import logger

_SEGMENT_BYTES: Final = 64 * 2**20
_BATCH_BYTES: Final = 2 * 2**20
_GATHER_SECONDS: Final = 0.2
_WRITERS: Final = 8  # they wait for storage, not for the processor
_REMEMBERED: Final = 20_000
# Shorter than what retention takes for in use: a pruned image that is sent again must be kept again.
_REMEMBER_SECONDS: Final = 300.0
_WARN_SECONDS: Final = 10.0
_KEY_LENGTH: Final = struct.Struct("<H")


class Captures:
    """Decides which images are kept, and keeps them.

    Args:
        storage: where they go.
        folder: for the journal; several workers may share it.
        serve: its `capture`, `uncertain_below`, `capture_backlog_bytes` and `min_free_bytes`. Captures end before
            predictions do: they leave twice as much room on the disk.

    Raises:
        InvalidSettings: the folder cannot be written.
    """

    def __init__(self, storage: Storage, folder: Path, serve: ServeSettings) -> None:
        self._storage = storage
        self._below = serve.uncertain_below if serve.capture == "uncertain" else None
        self._share = serve.capture if isinstance(serve.capture, float) else 1.0
        self._remembered: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()
        self._warned_at = float("-inf")
        self._journal = Journal(
            folder,
            segment_bytes=_SEGMENT_BYTES,
            min_free_bytes=2 * serve.min_free_bytes,
            max_pending_bytes=serve.capture_backlog_bytes,
        )
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="capture")
        self._delivery = Delivery(
            "captured images",
            self._journal,
            self._deliver,
            batch_bytes=_BATCH_BYTES,
            seconds=_GATHER_SECONDS,
            waiting=metrics.pending_captures,
        )

    def keep(self, data: bytes, digest: str, image_format: str, confidence: float) -> str | None:
        """Keep an image if it is to be kept. Returns the URL where it is or will be, else None.

        Which share is kept depends on the digest alone, so the same image is always kept or never. An image that
        there is no room for costs the copy, not the prediction.
        """
        if not self._is_wanted(digest, confidence):
            return None
        key = capture_key(digest, image_format)
        if self._is_remembered(key):
            metrics.captures.labels("known").inc()
            return self._storage.url_of(key)
        try:
            self._journal.append(_encode(key, data))
        except JournalFull as error:
            metrics.captures.labels("dropped").inc()
            self._forget(key)
            self._warn(error)
            return None
        return self._storage.url_of(key)

    @property
    def failing(self) -> bool:
        """Whether the storage did not take what it was given last."""
        return self._delivery.failing

    @property
    def waiting(self) -> int:
        """How many images of this worker wait for the storage."""
        return self._journal.pending

    def close(self, seconds: float) -> None:
        """Store what waits for at most so long; the rest is for the next start."""
        self._delivery.close(seconds)
        self._writers.shutdown(wait=False, cancel_futures=True)

    def _is_wanted(self, digest: str, confidence: float) -> bool:
        if self._below is not None:
            return confidence < self._below
        return int(digest[:13], 16) < self._share * 16**13

    def _is_remembered(self, key: str) -> bool:
        """Whether this image was kept a while ago; if not, it is remembered from now on."""
        now = time.monotonic()
        with self._lock:
            known = self._remembered.get(key, float("-inf")) > now - _REMEMBER_SECONDS
            if not known:
                self._remembered[key] = now
            self._remembered.move_to_end(key)
            if len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        return known

    def _forget(self, key: str) -> None:
        with self._lock:
            self._remembered.pop(key, None)

    def _deliver(self, records: Sequence[bytes]) -> None:
        for outcome in self._writers.map(self._store, records):
            metrics.captures.labels(outcome).inc()

    def _store(self, record: bytes) -> str:
        key, data = _decode(record)
        try:
            if self._storage.exists(key):
                return "known"
            self._storage.write(key, data)
        except StorageUnavailable:
            metrics.captures.labels("failed").inc()
            raise
        return "stored"

    def _warn(self, error: JournalFull) -> None:
        if time.monotonic() - self._warned_at > _WARN_SECONDS:
            self._warned_at = time.monotonic()
            logger.warning("images are not captured: %s", error)


def _encode(key: str, data: bytes) -> bytes:
    name = key.encode()
    return b"".join([_KEY_LENGTH.pack(len(name)), name, data])


def _decode(record: bytes) -> tuple[str, bytes]:
    (length,) = _KEY_LENGTH.unpack_from(record)
    start = _KEY_LENGTH.size
    return record[start : start + length].decode(), record[start + length :]
