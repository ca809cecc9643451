"""What a check does when things go wrong: odd windows, wrong clocks, other models' rows, a kill, a database away."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import sqlalchemy as sa

import perennial.storage
from monitoring import check as check_module
from monitoring.check import run_check
from perennial import ledger, retention
from perennial.errors import LedgerUnavailable
from perennial.ids import new_id
from perennial.ledger import open_ledger
from perennial.ledger.schema import predictions
from perennial.settings import Settings
from perennial.storage import Storage
from tests.monitoring.conftest import wait_for


@pytest.fixture
def sqlite(watched_settings: Settings) -> Iterator[sa.Engine]:
    engine = open_ledger(watched_settings.ledger_url)
    yield engine
    engine.dispose()


def dark(images: Any) -> Any:
    return images * 0.6


def turned(images: Any) -> Any:
    return np.rot90(images, axes=(1, 2)).copy()


def with_monitor(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update={"monitor": settings.monitor.model_copy(update=changes)})


def reports_in(settings: Settings) -> list[bytes]:
    """Every whole report in the storage, whether a check names it or not."""
    folder = Storage(settings.blobs_url).local_path("reports")
    assert folder is not None
    return [path.read_bytes() for path in folder.glob("*/*/*.html")]


# --- odd windows ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_reports")
def test_a_window_that_is_empty_again_says_so_and_changes_no_state(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    model.send(change=dark)
    assert run_check(sqlite, watched_settings).state == "drifting"
    with sqlite.begin() as connection:
        connection.execute(sa.delete(predictions))
    check = run_check(sqlite, watched_settings)
    assert (check.verdict, check.rows, check.start, check.first) == ("insufficient_data", 0, None, None)
    assert check.state == "drifting", "nothing came in: that is no sign that it is over"
    assert check.report_url is None
    assert "drift_closed" not in model.kinds()


def test_outputs_that_are_no_numbers_at_all_are_a_collection_fault(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    scores = world.scores(world.traffic[:300])
    nothing = {
        name: np.full_like(getattr(scores, name), np.nan) for name in ("probabilities", "embedding", "properties")
    }
    model.record(replace(scores, **nothing), labels=scores.labels)
    check = run_check(sqlite, watched_settings)
    assert check.verdict == "collection_fault"
    for what in nothing:
        assert any(f"100% of the rows hold {what}" in cause.why for cause in check.causes)
    document = check.document()
    assert {problem["column"] for problem in document["problems"]} >= {"property:brightness", "probability:0"}
    assert check.families["properties"].skipped == "no column could be tested"
    assert check.families["embedding"].skipped is not None
    assert ledger.checks.latest(sqlite, "digits")[0].detail == json.loads(json.dumps(document, allow_nan=False))


def test_a_row_of_nan_here_and_there_leaves_the_verdict_alone(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    scores = world.scores(world.traffic[:300])
    some = {name: getattr(scores, name).copy() for name in ("probabilities", "embedding", "properties")}
    for values in some.values():
        values[::30] = np.nan
    model.record(replace(scores, **some))
    check = run_check(sqlite, watched_settings)
    assert check.verdict == "ok"
    assert {family.skipped for name, family in check.families.items() if name != "labels"} == {None}


def test_outputs_that_are_constant_are_told_and_kill_nothing(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    scores = world.scores(world.traffic[:300])
    same = {name: np.tile(getattr(scores, name)[:1], (300, 1)) for name in ("probabilities", "embedding", "properties")}
    answer = {"predicted": np.repeat(scores.predicted[:1], 300), "confidence": np.repeat(scores.confidence[:1], 300)}
    model.record(replace(scores, **same, **answer))
    check = run_check(sqlite, watched_settings)
    assert check.verdict not in ("ok", "insufficient_data")
    assert check.families["properties"].alarm
    assert check.report_url is not None
    json.dumps(check.document(), allow_nan=False)


def test_one_class_only_in_answers_and_labels(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    settings = with_monitor(watched_settings, min_rows=50, min_labels=50)
    scores = world.scores(world.traffic)
    fours = scores.take(scores.predicted == "4")
    model.record(fours, labels=["4"] * len(fours))
    check = run_check(sqlite, settings)
    assert check.verdict == "prior_shift"
    assert check.accuracy.labels is not None
    assert (check.accuracy.labels.value, check.accuracy.labels.rows) == (1.0, len(fours))
    assert not check.families["labels"].alarm
    assert not check.retrain.due


def test_labels_that_are_all_of_a_class_never_seen_in_training(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    model.record(world.scores(world.traffic[:300]), labels=["zebra"] * 300)
    check = run_check(sqlite, watched_settings)
    assert [cause.cause for cause in check.causes] == ["concept_drift"]
    assert check.accuracy.labels is not None
    assert check.accuracy.labels.value == 0.0
    assert [column.name for column in check.families["labels"].columns] == ["accuracy"], "there is no such recall"
    assert check.report_url is not None


# --- clocks -----------------------------------------------------------------------------------------------------------


def record_at(model: Any, scores: Any, moment: datetime) -> list[str]:
    """Rows of a service whose clock shows this moment."""
    ids = model.record(scores)
    with model.engine.begin() as connection:
        for index, old in enumerate(ids):
            at = moment + timedelta(milliseconds=index)
            ids[index] = new_id(int(at.timestamp() * 1000))
            connection.execute(sa.update(predictions).where(predictions.c.id == old).values(id=ids[index], at=at))
    return ids


@pytest.mark.usefixtures("without_reports")
def test_a_clock_that_jumps_back(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = deploy(sqlite, watched_settings)
    settings = with_monitor(watched_settings, open_after=2, open_of=3)
    rows, now = world.traffic, datetime.now(UTC)
    ahead = record_at(model, world.scores(rows[:300]), now + timedelta(hours=1))
    with caplog.at_level(logging.WARNING):
        check = run_check(sqlite, settings)
    assert (check.verdict, check.first, check.last) == ("ok", ahead[0], ahead[-1])
    assert "0:59:59 ahead" in caplog.text or "1:00:00 ahead" in caplog.text

    # What comes after the jump sorts before it. A window that holds both is not turned around.
    behind = record_at(model, world.scores(rows[300:597], dark), now)
    both = run_check(sqlite, with_monitor(settings, window=597))
    assert (both.rows, both.first, both.last) == (597, behind[0], ahead[-1])
    assert both.start is not None
    assert both.end is not None
    assert timedelta(minutes=59) < both.end - both.start < timedelta(minutes=61)
    assert both.false_alarms is not None
    assert both.false_alarms.seconds > 0

    # The rows from ahead go (they were wrong), and the windows that follow lie before those that were checked.
    with sqlite.begin() as connection:
        connection.execute(sa.delete(predictions).where(predictions.c.id >= ahead[0]))
    caplog.clear()
    earlier = run_check(sqlite, settings)
    assert earlier.last is not None
    assert earlier.last < ahead[0]
    assert (earlier.verdict, earlier.state, caplog.text) == ("sensor_shift", "suspected", "")
    assert run_check(sqlite, settings).state == "suspected", "the same rows count once"
    record_at(model, world.scores(rows[:300], dark), now + timedelta(seconds=30))
    assert run_check(sqlite, settings).state == "drifting", "windows from before the jump do not hide those after it"
    assert model.kinds().count("drift_opened") == 1


# --- two models -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_reports")
def test_two_models_in_one_ledger_share_no_window_no_labels_and_no_state(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    earlier, live = (deploy(sqlite, watched_settings).version for _ in range(2))
    other = deploy(sqlite, watched_settings.model_copy(update={"name": "other"}))
    model = replace(other, settings=watched_settings, version=live)
    rows = world.traffic
    clean, odd = world.scores(rows[:300]), world.scores(rows[300:600], turned)
    wrong = ["0" if guess != "0" else "1" for guess in odd.predicted]
    # As while models are swapped: a row of one, a row of the other, the newest of all not the live one's.
    for part in range(0, 300, 25):
        some = np.arange(part, part + 25)
        model.record(clean.take(some), labels=[str(guess) for guess in clean.take(some).predicted])
        model.record(odd.take(some), version=earlier, labels=[wrong[index] for index in some])
        model.record(odd.take(some), version=other.version, labels=[wrong[index] for index in some])
    check = run_check(sqlite, watched_settings)
    assert (check.verdict, check.model_version, check.rows) == ("ok", live, 300)
    assert check.accuracy.labels is not None
    assert (check.accuracy.labels.value, check.accuracy.labelled) == (1.0, 300)
    assert check.accuracy.errors_rose is None

    theirs = run_check(sqlite, other.settings)
    assert (theirs.verdict, theirs.model_version, theirs.state) == ("data_drift", other.version, "drifting")
    assert theirs.retrain.due
    assert run_check(sqlite, watched_settings).state == "healthy"
    assert model.kinds() == ["check_changed"], "what befell the other is not told of this one"

    # Back to the version before: its own rows, and a state of its own.
    ledger.deployments.deploy(sqlite, "digits", earlier, reason="a test", actor="test")
    back = run_check(sqlite, watched_settings)
    assert (back.verdict, back.model_version, back.state) == ("data_drift", earlier, "drifting")
    assert back.accuracy.labels is not None
    assert back.accuracy.labels.value == 0.0


# --- a killed check ---------------------------------------------------------------------------------------------------


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


#: Where a check is killed, and how many of its reports and checks are written by then.
MOMENTS: Final[dict[str, tuple[tuple[Any, str], int, int]]] = {
    "before the window is compared": ((check_module, "read_reference"), 0, 0),
    "with half of the report written": ((perennial.storage.os, "replace"), 0, 0),
    "with the check written and its events not": ((ledger.checks.events, "append"), 1, 0),
    "with all written and old reports not yet removed": ((check_module, "prune_reports"), 1, 1),
}


def check_and_be_killed(settings: Settings, moment: str) -> None:
    (owner, name), _, _ = MOMENTS[moment]
    engine = open_ledger(settings.ledger_url)
    setattr(owner, name, die)
    run_check(engine, settings)


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes that begin with all imported, so that each costs what its check costs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["monitoring.check", "monitoring.report", "perennial.ledger", __name__])
    return context


def kill_a_check(processes: Any, settings: Settings, moment: str) -> None:
    child = processes.Process(target=check_and_be_killed, args=(settings, moment))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL


def test_a_check_that_is_killed_leaves_nothing_half_done_and_the_next_one_runs(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, processes: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    model.send(change=dark)
    reports, checks = 0, 0
    for moment, (_, more_reports, more_checks) in MOMENTS.items():
        kill_a_check(processes, watched_settings, moment)
        reports, checks = reports + more_reports, checks + more_checks
        found = reports_in(watched_settings)
        assert len(found) == reports, moment
        assert all(report.rstrip().endswith(b"</html>") for report in found)
        assert len(ledger.checks.latest(sqlite, "digits", 10)) == checks, moment
        assert model.kinds() == ["check_changed", "drift_opened"] * checks, moment
    (killed,) = ledger.checks.latest(sqlite, "digits")

    check = run_check(sqlite, watched_settings)
    assert (check.verdict, check.state) == ("sensor_shift", "drifting")
    assert (killed.verdict, killed.window, killed.detail["families"]) == (
        check.verdict, check.window(), check.document()["families"],
    )  # fmt: skip
    assert model.kinds() == ["check_changed", "drift_opened"], "told once"

    # Two days later what they left is removed: a file half written and a report that no check names.
    storage = Storage(watched_settings.blobs_url)
    days = datetime.now(UTC) + timedelta(days=2)
    pruned = retention.prune(sqlite, storage, watched_settings.retention, window=300, now=days)
    assert pruned.leftovers.count == 2
    assert len(reports_in(watched_settings)) == 2
    for row in ledger.checks.latest(sqlite, "digits", 10):
        assert row.report_url is not None
        assert storage.exists(storage.key_of(row.report_url))


def test_a_check_that_is_killed_in_its_transaction_leaves_no_row_in_postgresql(
    postgres_url: str, watched_settings: Settings, deploy: Any, processes: Any
) -> None:
    settings = watched_settings.model_copy(update={"database_url": postgres_url})
    engine = open_ledger(postgres_url)
    model = deploy(engine, settings)
    model.send(100)  # too few to be compared: it is the transaction that matters here
    kill_a_check(processes, settings, "with the check written and its events not")
    assert ledger.checks.latest(engine, "digits") == []
    assert model.kinds() == []
    check = run_check(engine, settings)
    assert (check.verdict, model.kinds()) == ("insufficient_data", ["check_changed"])
    engine.dispose()


# --- as people run it: the watcher, and a database that goes away -----------------------------------------------------


@contextmanager
def watching(folder: Path) -> Iterator[Callable[[], str]]:
    """`perennial watch` in an empty folder, always stopped; gives its log so far."""
    folder.mkdir()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "commands.main", "watch", "--interval", "0.3"],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=log,
        )  # fmt: skip
        try:
            yield lambda: (folder / "log").read_text()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def checks_running(settings: Settings) -> list[int]:
    """The processes that run `perennial monitor` for this home."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            ours = f"PERENNIAL_HOME={settings.home}".encode() in (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # no process, not ours, or gone
            continue
        if ours and b"monitor" in arguments:
            found.append(int(entry.name))
    return found


@pytest.mark.usefixtures("without_reports")
def test_the_watcher_goes_on_after_a_check_that_was_killed(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(sqlite, watched_settings)
    monkeypatch.setenv("PERENNIAL_NAME", "digits")
    monkeypatch.setenv("PERENNIAL_MONITOR__PORT", "0")
    with watching(tmp_path / "cwd") as log:
        (child,) = wait_for(lambda: checks_running(watched_settings))
        os.kill(child, signal.SIGKILL)
        wait_for(lambda: "the check failed with exit code -9; the next one is tried as planned" in log())
        (row,) = wait_for(lambda: ledger.checks.latest(sqlite, "digits"))
        assert row.verdict == "insufficient_data"
        wait_for(lambda: "check: insufficient_data" in log())


class Away:
    """Takes a database away (nobody may connect, whoever is connected is thrown out) and gives it back."""

    def __init__(self, server: str, url: str) -> None:
        self._admin = sa.create_engine(
            sa.make_url(server).set(drivername="postgresql+psycopg"),
            isolation_level="AUTOCOMMIT",
            poolclass=sa.pool.NullPool,
        )
        self._name = sa.make_url(url).database

    def go(self) -> None:
        with self._admin.connect() as connection:
            connection.execute(sa.text(f'ALTER DATABASE "{self._name}" ALLOW_CONNECTIONS false'))
            connection.execute(
                sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"),
                {"name": self._name},
            )

    def come_back(self) -> None:
        with self._admin.connect() as connection:
            connection.execute(sa.text(f'ALTER DATABASE "{self._name}" ALLOW_CONNECTIONS true'))


def test_a_database_that_goes_away_amid_a_check_and_under_the_watcher(
    postgres: str,
    postgres_url: str,
    watched_settings: Settings,
    deploy: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = watched_settings.model_copy(update={"database_url": postgres_url})
    engine = open_ledger(postgres_url)
    model = deploy(engine, settings)
    model.send(250)
    away = Away(postgres, postgres_url)

    write = Storage.write

    def write_and_lose(storage: Storage, key: str, data: bytes) -> str:
        away.go()
        return write(storage, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", write_and_lose)
        with pytest.raises(LedgerUnavailable):
            run_check(engine, settings)

    variables = {"DATABASE_URL": postgres_url, "NAME": "digits", "MONITOR__PORT": "0", "MONITOR__REPORT": "never"}
    for variable, value in variables.items():
        monkeypatch.setenv(f"PERENNIAL_{variable}", value)
    with watching(tmp_path / "cwd") as log:
        wait_for(lambda: "the check failed with exit code 1; the next one is tried as planned" in log())
        assert "The ledger cannot be reached: the database does not answer" in log()
        away.come_back()
        wait_for(lambda: "check: insufficient_data" in log())  # the usual 500 rows are asked for
    assert {row.verdict for row in ledger.checks.latest(engine, "digits", 10)} == {"insufficient_data"}
    check = run_check(engine, settings)
    assert (check.verdict, check.rows) == ("ok", 250)
    assert model.kinds() == ["check_changed"] * 2
    engine.dispose()
