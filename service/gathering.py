"""Metrics of every prediction, gathered in memory and added a few times a second.

prometheus_client keeps the numbers of several workers in mapped files, and a prediction moves eight of them: one by one
that costs as much as reading the request.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, Final, TypeVar

import prometheus_client

T = TypeVar("T")

_SECONDS: Final = 0.25


class GatheredHistogram:
    """A histogram whose observations count at the next `flush`. `observe` may be called from any thread."""

    def __init__(self, histogram: Any) -> None:
        self._histogram = histogram
        self._waiting: deque[float] = deque()
        self.observe = self._waiting.append

    def flush(self) -> None:
        values = list(_drained(self._waiting))
        if not values:
            return
        # What `Histogram.observe` does, for many at once; a test holds that it is the same.
        self._histogram._sum.inc(sum(values))
        for bucket, count in Counter(bisect_left(self._histogram._upper_bounds, value) for value in values).items():
            self._histogram._buckets[bucket].inc(count)


class GatheredCounter:
    """A counter with labels whose increments count at the next `flush`. `add` may be called from any thread."""

    def __init__(self, counter: prometheus_client.Counter) -> None:
        self._counter = counter
        self._waiting: deque[tuple[str, ...]] = deque()
        self.add = self._waiting.append

    def flush(self) -> None:
        for labels, count in Counter(_drained(self._waiting)).items():
            self._counter.labels(*labels).inc(count)


class Flushing:
    """A thread that flushes until it is closed."""

    def __init__(self, *gathered: GatheredHistogram | GatheredCounter) -> None:
        self._gathered = gathered
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def flush(self) -> None:
        """Add what waits now."""
        with self._lock:
            for each in self._gathered:
                each.flush()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.flush()

    def _run(self) -> None:
        while not self._stop.wait(_SECONDS):
            self.flush()


def _drained(waiting: deque[T]) -> Iterator[T]:
    for _ in range(len(waiting)):  # not until it is empty: it is filled meanwhile
        yield waiting.popleft()
