"""When `perennial watch` checks and prunes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from perennial.schedule import trigger

if TYPE_CHECKING:
    from apscheduler.schedulers.background import BackgroundScheduler

    from perennial.settings import Settings

#: The first pruning waits for this share of its interval, so that what is started again and again still prunes.
_FIRST_PRUNE: Final = 1 / 60


def scheduler_of(settings: Settings, check: Callable[[], Any], prune: Callable[[], Any]) -> BackgroundScheduler:
    """A scheduler that is not started yet: checks at the times of `monitor.schedule` (UTC), else at once and then every
    `monitor.interval`; prunings every `retention.interval`."""
    from apscheduler.schedulers.background import BackgroundScheduler
    from apscheduler.triggers.interval import IntervalTrigger

    scheduler = BackgroundScheduler(timezone=UTC)
    # Of the times that pass while one runs, one is made up for.
    once = {"max_instances": 1, "coalesce": True, "misfire_grace_time": None}
    now, monitor, between = datetime.now(UTC), settings.monitor, settings.retention.interval
    if monitor.schedule:
        scheduler.add_job(check, trigger(monitor.schedule), **once)
    else:
        scheduler.add_job(check, IntervalTrigger(seconds=monitor.interval, timezone=UTC), next_run_time=now, **once)
    if between:
        first = now + timedelta(seconds=between * _FIRST_PRUNE)
        scheduler.add_job(prune, IntervalTrigger(seconds=between, timezone=UTC), next_run_time=first, **once)
    return scheduler
