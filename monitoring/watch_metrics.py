"""What the watcher knows of itself and no ledger does: that it lives, what of its work failed, what it was told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from monitoring.metric_families import Declared, Scrape
from monitoring.metrics import LedgerCollector
from perennial.settings import Settings

#: What the watcher has done by child processes.
CHILDREN: Final = ("check", "look", "retrain", "rollout", "prune")

STARTED_AT: Final = Declared(
    "gauge", "perennial_watch_started_timestamp_seconds", "When this watcher was started (Unix time)."
)
LAST_TICK_AT: Final = Declared(
    "gauge",
    "perennial_watch_last_tick_timestamp_seconds",
    "When it last did all that was due, and none of it failed (Unix time); absent until then.",
)
FAILURES: Final = Declared(
    "counter",
    "perennial_watch_failures",
    "Children of this watcher that failed: `check`, `look` (at what has just gone live), `retrain`, `rollout`, "
    "`prune`.",
    ("child",),
)
INTERVAL: Final = Declared("gauge", "perennial_check_interval_seconds", "The setting `monitor.interval`.")
ACCURACY_DROP: Final = Declared("gauge", "perennial_accuracy_drop_limit", "The setting `monitor.accuracy_drop`.")
PATIENCE: Final = Declared("gauge", "perennial_rollout_patience_seconds", "The setting `rollout.patience`.")
#: All of them, in the order of the page.
DECLARED: Final = (STARTED_AT, LAST_TICK_AT, FAILURES, INTERVAL, ACCURACY_DROP, PATIENCE)


class WatchMetrics(Collector):
    """Kept by the watcher; read by whoever scrapes it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started = time.time()
        self._last_tick: float | None = None
        self._failures: Counter[str] = Counter()
        self._lock = threading.Lock()

    def ticked(self) -> None:
        """All that was due is done."""
        self._last_tick = time.time()

    def failed(self, child: str) -> None:
        """One of `CHILDREN` failed."""
        with self._lock:
            self._failures[child] += 1

    def describe(self) -> Iterable[Metric]:
        return [metric.family() for metric in DECLARED]

    def collect(self) -> Iterator[Metric]:
        scrape = Scrape()
        scrape.add(STARTED_AT, self._started)
        if self._last_tick is not None:
            scrape.add(LAST_TICK_AT, self._last_tick)
        for child in CHILDREN:
            scrape.add(FAILURES, self._failures[child], child)
        scrape.add(INTERVAL, self._settings.monitor.interval)
        scrape.add(ACCURACY_DROP, self._settings.monitor.accuracy_drop)
        scrape.add(PATIENCE, self._settings.rollout.patience)
        yield from scrape.families()


def registry(open_engine: Callable[[], sa.Engine], watched: WatchMetrics, name: str) -> CollectorRegistry:
    """A registry with the metrics of one model's watcher, separate from the service's.

    Args:
        open_engine: gives the ledger; may raise LedgerUnavailable.
    """
    found = CollectorRegistry()
    found.register(watched)
    found.register(LedgerCollector(open_engine, name))
    return found
