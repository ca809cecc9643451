"""What the watcher knows of itself and no ledger does: that it lives, what of its work failed, what it was told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from monitoring.metric_families import Declared, Scrape
from monitoring.metrics import LedgerCollector
from perennial import schedule
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
DUE_AT: Final = Declared(
    "gauge",
    "perennial_check_due_timestamp_seconds",
    "When the check that follows the last one that succeeded is planned, or the first (Unix time).",
)
INTERVAL: Final = Declared(
    "gauge", "perennial_check_interval_seconds", "Time between the planned checks: the next one and the one after it."
)
ACCURACY_DROP: Final = Declared("gauge", "perennial_accuracy_drop_limit", "The setting `monitor.accuracy_drop`.")
PATIENCE: Final = Declared("gauge", "perennial_rollout_patience_seconds", "The setting `rollout.patience`.")
#: All of them, in the order of the page.
DECLARED: Final = (STARTED_AT, LAST_TICK_AT, DUE_AT, INTERVAL, FAILURES, ACCURACY_DROP, PATIENCE)


def next_check(settings: Settings, moment: datetime) -> datetime:
    """The first time after a moment at which the watcher means to check."""
    if settings.monitor.schedule:
        return schedule.first_after(settings.monitor.schedule, moment)
    return moment + timedelta(seconds=settings.monitor.interval)


class WatchMetrics(Collector):
    """Kept by the watcher; read by whoever scrapes it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started = time.time()
        self._last_tick: float | None = None
        self._due = next_check(settings, datetime.now(UTC))
        self._has_checked = False
        self._failures: Counter[str] = Counter()
        self._lock = threading.Lock()

    def checked(self) -> None:
        """A check succeeded."""
        self._has_checked = True

    def ticked(self, done: bool) -> None:
        """A turn is over; `done`: all that was due was done. Only now, for a retrain may have taken it past the time
        of the next check."""
        if done:
            self._last_tick = time.time()
        if self._has_checked:
            self._due = next_check(self._settings, datetime.now(UTC))
        self._has_checked = False

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
        following = next_check(self._settings, datetime.now(UTC))
        scrape.add(DUE_AT, self._due.timestamp())
        scrape.add(INTERVAL, (next_check(self._settings, following) - following).total_seconds())
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
