"""Metrics of every prediction and every request, gathered in memory and added a few times a second.

prometheus_client keeps the numbers of several workers in mapped files, and a prediction moves eight of them: one by one
that costs as much as reading the request.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar

import prometheus_client

T = TypeVar("T")

_SECONDS: Final = 0.25


class Gathered(Protocol):
    """What waits for its `flush`."""

    def flush(self) -> None: ...


class GatheredHistogram:
    """A histogram whose observations count at the next `flush`. `observe` may be called from any thread."""

    def __init__(self, histogram: Any) -> None:
        self._histogram = histogram
        self._waiting: deque[float] = deque()
        self.observe = self._waiting.append

    def flush(self) -> None:
        values = list(_drained(self._waiting))
        if values:
            _observe(self._histogram, values)


class GatheredHistograms:
    """A histogram with one label. `observe` takes the label's value and the observation, as one tuple."""

    def __init__(self, family: prometheus_client.Histogram) -> None:
        self._family = family
        self._waiting: deque[tuple[str, float]] = deque()
        self.observe = self._waiting.append

    def flush(self) -> None:
        found: defaultdict[str, list[float]] = defaultdict(list)
        for label, value in _drained(self._waiting):
            found[label].append(value)
        for label, values in found.items():
            _observe(self._family.labels(label), values)


class GatheredCounter:
    """A counter with labels whose increments count at the next `flush`. `add` may be called from any thread."""

    def __init__(self, counter: prometheus_client.Counter) -> None:
        self._counter = counter
        self._waiting: deque[tuple[str | int, ...]] = deque()
        self.add = self._waiting.append

    def begin(self, *labels: str | int) -> None:
        """Show this count before it is first added to: a rate sees nothing of a series that begins at 1."""
        self._counter.labels(*labels)

    def flush(self) -> None:
        for labels, count in Counter(_drained(self._waiting)).items():
            self._counter.labels(*labels).inc(count)


class Flushing:
    """A thread that flushes until it is closed."""

    def __init__(self, *gathered: Gathered) -> None:
        self._gathered = gathered
        self._sampled: list[tuple[prometheus_client.Gauge, Callable[[], float]]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def sample(self, gauge: prometheus_client.Gauge, read: Callable[[], float]) -> None:
        """Set the gauge to what `read` gives, now and with each turn of the thread. Call it before `start`."""
        gauge.set(read())
        self._sampled.append((gauge, read))

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
            # Not in `flush`, which the event loop calls for a scrape: a disk may take its time.
            for gauge, read in self._sampled:
                gauge.set(read())


def _observe(histogram: Any, values: Sequence[float]) -> None:
    """What `Histogram.observe` does, for many at once; a test holds that it is the same."""
    histogram._sum.inc(sum(values))
    for bucket, count in Counter(bisect_left(histogram._upper_bounds, value) for value in values).items():
        histogram._buckets[bucket].inc(count)


def _drained(waiting: deque[T]) -> Iterator[T]:
    for _ in range(len(waiting)):  # not until it is empty: it is filled meanwhile
        yield waiting.popleft()
