"""What is usual at this time: the rows of the same hours in the weeks before, to compare a window with.

A line that makes other things at night, or a shop that is full on Saturdays, differs from its training images every
time, and is no drift for it. Compared with the same hours of the week it is as it always was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

import numpy as np
import sqlalchemy as sa

from monitoring.verdict import CALM
from monitoring.window import Reference, Window, chance_of, window_of
from perennial.ledger import checks, predictions
from perennial.settings import Settings

_WEEK: Final = timedelta(weeks=1)
_LEAST: Final = timedelta(hours=1)  # a window of minutes is compared with its hour
_MOST_ALARMS: Final = 200  # whose rows are left out


def read_same_hours(
    engine: sa.Engine, settings: Settings, version: str, reference: Reference, window: Window
) -> Reference | None:
    """The reference's like, of what the version was sent in the same hours of the `monitor.same_hours` weeks before.

    Rows of windows that alarmed are left out: last week's drift is not what is usual. None where that is not asked
    for, where there are fewer than `monitor.min_rows` different images, or where a window is longer than a week.
    """
    weeks = settings.monitor.same_hours
    if weeks == 0 or window.start is None or window.end is None or window.end - window.start >= _WEEK:
        return None
    spans = same_hours(window.start, window.end, weeks)
    alarmed = checks.windows(
        engine,
        settings.name,
        version,
        since=spans[-1][0],
        without_verdicts=[str(verdict) for verdict in CALM],
        limit=_MOST_ALARMS,
    )
    rows = predictions.received_within(
        engine,
        version,
        spans,
        precision=window.precision,
        sample=settings.monitor.sample,
        without=_spans_of(alarmed),
        new=window.new_classes,
    )
    usual = window_of(rows)
    if len(usual.scores) < settings.monitor.min_rows:
        return None
    found = replace(reference, scores=usual.scores, held_out=np.ones(len(usual.scores), dtype=bool))
    return replace(found, chance=chance_of(found), collection=usual.collection)


def same_hours(start: datetime, end: datetime, weeks: int) -> list[tuple[datetime, datetime]]:
    """The span from `start` to `end`, and an hour at least, in each of so many weeks before, the latest first."""
    short = max(timedelta(0), _LEAST - (end - start)) / 2
    return [(start - short - back * _WEEK, end + short - back * _WEEK) for back in range(1, weeks + 1)]


def _spans_of(windows: Iterable[dict[str, str | None]]) -> list[tuple[str, str]]:
    """First and last id of each window that says them; checks of old do not."""
    spans = [(window.get("first"), window.get("last")) for window in windows]
    return [(first, last) for first, last in spans if first is not None and last is not None]
