"""Cron expressions: five fields, in UTC, as APScheduler reads them; where programs disagree, refused instead."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from apscheduler.triggers.cron import CronTrigger

VALID: Final = (
    "a schedule has five fields, in UTC: minute, hour, day of the month, month, weekday (mon to sun); '0 3 * * *' is "
    "every night at three, '30 2 * * sun' Sundays at half past two, '0 */6 * * *' every six hours"
)


def check(expression: str) -> None:
    """Is it a schedule that will ever come?

    Raises:
        ValueError: it is not one; the message says what one looks like.
    """
    fields = expression.split()
    if len(fields) != 5:
        raise ValueError(f"{len(fields)} fields; {VALID}")
    day, weekday = fields[2], fields[4]
    if re.search(r"\d", weekday.partition("/")[0]) or "/" in weekday:
        # cron counts from Sunday, APScheduler from Monday.
        raise ValueError(f"weekdays are named, as their numbers mean different days to different programs; {VALID}")
    if "*" not in (day, weekday):
        raise ValueError(
            "give days of the month or weekdays and leave the other at '*': to cron both mean either, to others both; "
            + VALID
        )
    try:
        found = trigger(expression)
    except ModuleNotFoundError:
        # The serving image has no scheduler and keeps no schedule: whoever keeps it checks the rest.
        return
    except ValueError as error:
        raise ValueError(f"{error}; {VALID}") from error
    if found.get_next_fire_time(None, datetime.now(UTC)) is None:
        raise ValueError(f"there is no such day; {VALID}")


def first_after(expression: str, moment: datetime) -> datetime:
    """The first scheduled time later than a moment."""
    found: datetime | None = trigger(expression).get_next_fire_time(None, moment + timedelta(microseconds=1))
    assert found is not None  # `check` has seen that it comes again and again
    return found.astimezone(UTC)


def trigger(expression: str) -> CronTrigger:
    """When the expression comes, in UTC, for APScheduler."""
    from apscheduler.triggers.cron import CronTrigger

    return CronTrigger.from_crontab(expression, timezone=UTC)
