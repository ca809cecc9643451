"""When `perennial watch` checks: on a cron expression in UTC, or at once and then every so many seconds."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands.main import app
from commands.watch_schedule import scheduler_of
from perennial.errors import InvalidSettings
from perennial.settings import load_settings


def never() -> None:
    raise AssertionError("it must not run here")


@pytest.mark.usefixtures("home")
def test_checks_come_at_the_times_of_the_expression_in_utc() -> None:
    settings = load_settings(monitor={"schedule": "30 2 * * sun"})
    checks, prunes = scheduler_of(settings, never, never).get_jobs()
    friday = datetime(2026, 3, 6, 12, 0, tzinfo=UTC)
    assert checks.trigger.get_next_fire_time(None, friday) == datetime(2026, 3, 8, 2, 30, tzinfo=UTC)
    assert (checks.coalesce, checks.max_instances, checks.misfire_grace_time) == (True, 1, None)
    assert prunes.trigger.interval == timedelta(hours=1)


@pytest.mark.usefixtures("home")
def test_without_one_the_first_check_is_at_once_and_then_every_interval() -> None:
    settings = load_settings(monitor={"interval": 0.2}, retention={"interval": 0})
    ran = threading.Semaphore(0)
    scheduler = scheduler_of(settings, ran.release, never)
    scheduler.start()
    try:
        assert all(ran.acquire(timeout=10) for _ in range(3))
    finally:
        scheduler.shutdown(wait=True)


@pytest.mark.parametrize("expression", ["*/15 * * *", "0 0 31 2 *", "0 3 * * 1", "never"])
@pytest.mark.usefixtures("home")
def test_what_is_no_schedule_is_refused(expression: str) -> None:
    with pytest.raises(InvalidSettings, match=r"monitor\.schedule: .*'0 3 \* \* \*' is every night at three"):
        load_settings(monitor={"schedule": expression})
    done = CliRunner().invoke(app, ["watch", "--schedule", expression])
    assert "monitor.schedule" in str(done.exception)


@pytest.mark.usefixtures("home")
def test_an_interval_and_a_schedule_together_are_refused() -> None:
    done = CliRunner().invoke(app, ["watch", "--schedule", "*/15 * * * *", "--interval", "60"])
    assert "give one of them" in str(done.exception)


def test_the_watcher_says_when_it_checks_and_does_not_check_before(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_MONITOR__PORT", "0")
    log = tmp_path / "log"
    later = (datetime.now(UTC) + timedelta(hours=2)).hour
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "commands.main", "watch", "--schedule", f"0 {later} * * *"],
            stderr=file,
            cwd=tmp_path,
        )
    deadline = time.monotonic() + 30
    while "watching" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    said = log.read_text()
    assert f"watching 'default' at '0 {later} * * *' (UTC)" in said
    assert "check" not in said
