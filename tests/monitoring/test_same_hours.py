"""A window compared with the same hours of the weeks before: what comes back every week is no drift."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from monitoring.check import run_check
from monitoring.same_hours import same_hours
from perennial.settings import Settings

NOW = datetime.now(UTC)
WEEK = timedelta(weeks=1)


def dark(images: Any) -> Any:
    return images * 0.6


def send(model: Any, seed: int, at: datetime, change: Any = dark) -> None:
    rows = np.random.default_rng(seed).choice(model.world.traffic, 300, replace=False)
    model.record(model.world.scores(rows, change, labelled=False), at=at)


@pytest.fixture
def weekly(watched_settings: Settings) -> Settings:
    monitor = watched_settings.monitor.model_copy(update={"same_hours": 3})
    return watched_settings.model_copy(update={"monitor": monitor})


@pytest.mark.usefixtures("without_reports")
def test_a_dark_hour_that_comes_every_week_is_usual(
    engine: sa.Engine, watched_settings: Settings, weekly: Settings, deploy: Any
) -> None:
    model = deploy(engine, watched_settings)
    for week in (3, 2, 1):
        send(model, week, NOW - week * WEEK + timedelta(minutes=10))
        send(model, 10 + week, NOW - week * WEEK + timedelta(hours=5), None)  # of another hour: not compared with
    send(model, 0, NOW)
    trained = run_check(engine, watched_settings)
    assert trained.verdict == "sensor_shift"
    assert trained.compared_with is not None
    assert (trained.compared_with.reference, trained.compared_with.rows) == ("training", 400)
    usual = run_check(engine, weekly)
    assert usual.verdict == "ok"
    assert usual.document()["compared_with"]["reference"] == "same_hours"
    assert usual.compared_with is not None
    assert 300 < usual.compared_with.rows < 650  # the different images of three windows
    assert usual.accuracy.reference == trained.accuracy.reference

    send(model, 4, NOW + timedelta(seconds=1), lambda images: 1 - images)
    assert run_check(engine, weekly).verdict != "ok", "what is not usual at this hour is drift"


@pytest.mark.usefixtures("without_reports")
def test_without_history_the_training_is_the_reference(engine: sa.Engine, weekly: Settings, deploy: Any) -> None:
    model = deploy(engine, weekly)
    send(model, 0, NOW)
    check = run_check(engine, weekly)
    assert check.verdict == "sensor_shift"
    assert check.compared_with is not None
    assert check.compared_with.reference == "training"


@pytest.mark.usefixtures("without_reports")
def test_last_weeks_drift_is_not_what_is_usual(engine: sa.Engine, weekly: Settings, deploy: Any) -> None:
    model = deploy(engine, weekly)
    send(model, 1, NOW - WEEK)
    assert run_check(engine, weekly).verdict == "sensor_shift"
    send(model, 0, NOW)
    check = run_check(engine, weekly)
    assert check.compared_with is not None
    assert (check.verdict, check.compared_with.reference) == ("sensor_shift", "training")


def test_the_same_hours_are_an_hour_at_least_and_the_latest_week_comes_first() -> None:
    start = datetime(2026, 3, 30, 12, 0, tzinfo=UTC)
    assert same_hours(start, start + timedelta(minutes=20), 2) == [
        (datetime(2026, 3, 23, 11, 40, tzinfo=UTC), datetime(2026, 3, 23, 12, 40, tzinfo=UTC)),
        (datetime(2026, 3, 16, 11, 40, tzinfo=UTC), datetime(2026, 3, 16, 12, 40, tzinfo=UTC)),
    ]
    assert same_hours(start, start + timedelta(hours=3), 1) == [(start - WEEK, start + timedelta(hours=3) - WEEK)]
