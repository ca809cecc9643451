"""Writes predictions so that one answered with 200 survives the process being killed the next instant.

Group commit: a single thread takes every row that waits and commits them in one transaction, so the cost of a commit
is shared by as many requests as arrive during the one before it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

import sqlalchemy as sa

from perennial.errors import LedgerUnavailable, PerennialError, StorageUnavailable
from perennial.ledger import predictions
from perennial.ledger.predictions import Prediction
from perennial.storage import Storage, capture_key
from service import metrics
from service.problems import logger

_MOST_ROWS: Final = 512  # in one transaction
_CAPTURE_THREADS: Final = 4  # they wait for storage, not for the processor
_DIGESTS_REMEMBERED: Final = 20_000
_WARN_SECONDS: Final = 10.0


@dataclass(slots=True)
class _Group:
    """The rows of one request, and who waits for them."""

    rows: list[Prediction]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]

    def resolve(self, error: PerennialError | None) -> None:
        def settle() -> None:
            if self.done.done():  # the request was given up meanwhile
                return
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)

        try:
            self.loop.call_soon_threadsafe(settle)
        except RuntimeError:  # the loop has ended; nobody waits any more
            logger.warning("%d predictions were recorded after the server had stopped", len(self.rows))


class Recorder:
    """Records predictions, and the images of those that are captured.

    Args:
        engine: gives the ledger; raises LedgerUnavailable while it is away.
        storage: where captured images go.
        capture: share of the images kept, 0..1; which ones depends on their digest alone.
    """

    def __init__(self, engine: Callable[[], sa.Engine], storage: Storage, *, capture: float) -> None:
        self._engine = engine
        self._storage = storage
        self._capture = capture
        self._known: OrderedDict[str, None] = OrderedDict()
        self._known_lock = threading.Lock()
        self._warned_at = float("-inf")
        self._queue: queue.SimpleQueue[_Group | None] = queue.SimpleQueue()
        self._captures = ThreadPoolExecutor(_CAPTURE_THREADS, thread_name_prefix="capture")
        self._writer = threading.Thread(target=self._write, name="recorder", daemon=True)
        self._writer.start()

    async def record(self, rows: Sequence[Prediction], images: Sequence[bytes]) -> None:
        """Returns when the rows would survive the end of this process; `images` are the bytes of each.

        Raises:
            LedgerUnavailable: they are not recorded, so must not be answered with 200.
        """
        loop = asyncio.get_running_loop()
        group = _Group(list(rows), loop, loop.create_future())
        metrics.pending_rows.inc(len(rows))
        wanted = [index for index, row in enumerate(rows) if self._is_captured(row.image_digest)]
        if wanted:
            self._captures.submit(self._keep_images, group, wanted, [images[index] for index in wanted])
        else:
            self._queue.put(group)
        try:
            await group.done
        finally:
            metrics.pending_rows.dec(len(rows))

    def close(self) -> None:
        """Write what waits, then stop."""
        self._captures.shutdown(wait=True)
        self._queue.put(None)
        self._writer.join()

    def _is_captured(self, digest: str) -> bool:
        return int(digest[:13], 16) < self._capture * 16**13

    def _keep_images(self, group: _Group, indices: Sequence[int], images: Sequence[bytes]) -> None:
        # An image is in storage before the row that names it is in the ledger.
        try:
            for index, data in zip(indices, images, strict=True):
                if group.done.cancelled():  # the request was given up: no row will name its images
                    return
                row = group.rows[index]
                group.rows[index] = replace(row, image_url=self._keep_image(row, data))
        finally:
            self._queue.put(group)

    def _keep_image(self, row: Prediction, data: bytes) -> str | None:
        key = capture_key(row.image_digest, row.format)
        with self._known_lock:
            if key in self._known:
                self._known.move_to_end(key)
                metrics.captures.labels("known").inc()
                return self._storage.url_of(key)
        try:
            present = self._storage.exists(key)
            url = self._storage.url_of(key) if present else self._storage.write(key, data)
        except StorageUnavailable as error:
            # The answer is worth more than the copy: it goes out, its row says that no image was kept.
            metrics.captures.labels("failed").inc()
            if time.monotonic() - self._warned_at > _WARN_SECONDS:
                self._warned_at = time.monotonic()
                logger.warning("images are not captured: %s", error)
            return None
        metrics.captures.labels("known" if present else "stored").inc()
        with self._known_lock:
            self._known[key] = None
            if len(self._known) > _DIGESTS_REMEMBERED:
                self._known.popitem(last=False)
        return url

    def _write(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            groups, waiting = [first], len(first.rows)
            ended = False
            while waiting < _MOST_ROWS:
                try:
                    group = self._queue.get_nowait()
                except queue.Empty:
                    break
                if group is None:
                    ended = True
                    break
                groups.append(group)
                waiting += len(group.rows)
            self._commit([group for group in groups if not group.done.cancelled()])
            if ended:
                return

    def _commit(self, groups: Sequence[_Group]) -> None:
        error = self._committed(groups)
        if error is None or isinstance(error, LedgerUnavailable) or len(groups) == 1:
            for group in groups:
                group.resolve(error)
            return
        for group in groups:  # one of them cannot be written; the others must not share its fate
            group.resolve(self._committed([group]))

    def _committed(self, groups: Sequence[_Group]) -> PerennialError | None:
        try:
            predictions.record(self._engine(), [row for group in groups for row in group.rows])
        except PerennialError as error:
            return error
        except Exception as error:  # noqa: BLE001 - this thread must live, and those who wait must hear of it
            logger.exception("%d predictions cannot be recorded", sum(len(group.rows) for group in groups))
            return PerennialError(f"the prediction cannot be recorded: {type(error).__name__}")
        return None
