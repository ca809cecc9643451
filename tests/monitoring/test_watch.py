"""`perennial monitor` and `perennial watch` as people run them: processes, exit codes, signals, a database gone."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa

from commands.watch import Watcher
from perennial import ledger
from perennial.ledger import EventKind, open_ledger
from perennial.settings import Settings, load_settings
from tests.in_process import perennial_here
from tests.monitoring.conftest import wait_for
from tests.webhook_receiver import TOKEN, Receiver

Run = Callable[..., subprocess.CompletedProcess[str]]


pytestmark = pytest.mark.usefixtures("without_reports")


def turned(images: Any) -> Any:
    return np.rot90(images, axes=(1, 2)).copy()


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """A working directory without a perennial.toml."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    return folder


@pytest.fixture
def configured(home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings for this process and, by the environment, for those it starts."""
    for variable, value in {
        "NAME": "digits",
        "MONITOR__WINDOW": "300",
        "MONITOR__MIN_ROWS": "200",
        "MONITOR__MIN_LABELS": "100",
        "MONITOR__PORT": "0",
        "RETRAIN__MIN_LABELS": "50",
    }.items():
        monkeypatch.setenv(f"PERENNIAL_{variable}", value)
    return load_settings(name="digits", monitor={"min_rows": 200})


@pytest.fixture
def opened(configured: Settings) -> Iterator[sa.Engine]:
    engine = open_ledger(configured.ledger_url)
    yield engine
    engine.dispose()


@pytest.fixture
def perennial(cwd: Path) -> Run:
    """Runs a command here: that it is one as a process too, the watcher's own checks show."""
    return partial(perennial_here, cwd=cwd)


@pytest.fixture
def watch_once(cwd: Path) -> Run:
    """Runs `perennial watch --once` in a process, from which it starts the others."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "commands.main", "watch", "--once", *arguments],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


@contextmanager
def watching(cwd: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A watcher that is always stopped; its log goes to `cwd/log`."""
    with (cwd / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "commands.main", "watch", *arguments],
            cwd=cwd,
            stdout=subprocess.DEVNULL,
            stderr=log,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def metrics_at(port: int) -> str:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=20, verify=False).text
    except httpx.ConnectError:
        return ""


def children_of(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def test_watch_once_asks_for_a_retrain_and_starts_it_in_a_process_of_its_own(
    opened: sa.Engine, configured: Settings, deploy: Any, perennial: Run, watch_once: Run
) -> None:
    model = deploy(opened, configured)
    model.send(change=turned, labelled=True)

    done = watch_once()
    assert done.stdout == ""
    assert "check: data_drift; retrain: accuracy" in done.stderr
    assert "300 labelled images are at hand" in done.stderr
    assert "a retrain is called for" in done.stderr
    # The images of these rows were never stored, so there is nothing to train on; the retrain said how it ended.
    assert "retrain: " in done.stderr.splitlines()[-1]
    assert EventKind.RETRAIN_REQUESTED in [event.kind for event in model.events()]

    done = perennial("monitor", "--json", "--exit-code", "--name", "digits")
    document = json.loads(done.stdout)
    assert {"verdict", "causes", "model_version", "window", "families", "accuracy", "retrain"} <= set(document)
    assert (document["verdict"], document["model_version"]) == ("data_drift", model.version)
    assert document["accuracy"]["labels"]["value"] < 0.5
    assert done.returncode == (10 if document["retrain"]["due"] else 0), done.stderr
    assert len(ledger.checks.latest(opened, "digits", 10)) == 2


def test_monitor_tells_people_the_verdict_and_what_to_do(
    opened: sa.Engine, configured: Settings, deploy: Any, perennial: Run
) -> None:
    deploy(opened, configured).send(count=300, change=lambda images: images * 0.6)
    done = perennial("monitor")
    assert done.returncode == 0, done.stderr
    for words in (
        "sensor_shift",
        "darker (brightness",
        "properties",
        "estimate withheld: 100% of the window",
        "retrain: not due",
        "next: clean",
    ):
        assert words in done.stdout


def test_monitor_without_a_live_model_says_what_to_do(configured: Settings, perennial: Run) -> None:
    done = perennial("monitor", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "perennial train DATA --name digits" in done.stderr


def test_monitor_with_the_database_away_says_so(
    configured: Settings, perennial: Run, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_DATABASE_URL", f"postgresql://127.0.0.1:{free_port}/nowhere")
    done = perennial("monitor", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "The ledger cannot be reached" in done.stderr


def test_watch_checks_again_and_again_shows_metrics_and_stops_on_sigterm(
    opened: sa.Engine,
    configured: Settings,
    deploy: Any,
    cwd: Path,
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deploy(opened, configured)
    monkeypatch.setenv("PERENNIAL_MONITOR__PORT", str(free_port))
    with watching(cwd, "--interval", "0.5") as process:
        wait_for(lambda: len(ledger.checks.latest(opened, "digits", 5)) >= 2)
        text = metrics_at(free_port)
        assert 'perennial_verdict{verdict="insufficient_data"} 1.0' in text
        assert "perennial_ledger_up 1.0" in text
        assert "perennial_check_interval_seconds 0.5" in text
        assert "perennial_watch_last_tick_timestamp_seconds" in text
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert time.monotonic() - began < 15
    log = (cwd / "log").read_text()
    assert "insufficient_data" in log
    assert log.rstrip().endswith("stopped")


def test_watch_tells_webhooks_and_one_that_hangs_delays_neither_checks_nor_the_others(
    opened: sa.Engine, configured: Settings, deploy: Any, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = deploy(opened, configured)
    with (
        Receiver().listening() as receiver,
        Receiver(before_answering=lambda: time.sleep(20)).listening() as silent,
    ):
        monkeypatch.setenv("PERENNIAL_NOTIFY__WEBHOOKS", json.dumps([silent.url, receiver.url]))
        with watching(cwd, "--interval", "0.5") as process:
            wait_for(lambda: _webhooks_known(opened) == 2)
            detail = {"version": model.version, "replaces": "v2", "actor": "cli:ann", "reason": "worse"}
            ledger.events.add(opened, "digits", EventKind.ROLLED_BACK, detail)
            wait_for(lambda: receiver.arrived and silent.arrived)
            before = len(ledger.checks.latest(opened, "digits", 100))
            wait_for(lambda: len(ledger.checks.latest(opened, "digits", 100)) > before)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        assert receiver.arrived[0].document["text"].endswith("in place of v2 (by cli:ann): worse")
        assert len(receiver.arrived) == 1
    assert TOKEN not in (cwd / "log").read_text()


def test_watch_once_tells_webhooks_what_is_pending(
    opened: sa.Engine, configured: Settings, perennial: Run, watch_once: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Receiver().listening() as receiver:
        monkeypatch.setenv("PERENNIAL_NOTIFY__WEBHOOKS", json.dumps([receiver.url]))
        assert perennial("notify").returncode == 4
        ledger.events.add(opened, "digits", EventKind.RETRAIN_FAILED, {"champion": "v1", "error": "OSError"})
        assert watch_once().returncode == 1  # no model is live; what happened is told all the same
        assert [each.document["event"]["kind"] for each in receiver.arrived] == ["retrain_failed"]


def _webhooks_known(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(sa.text("SELECT count(*) FROM webhook_positions")).scalar_one())


def test_watch_goes_on_while_the_database_is_away(
    configured: Settings, cwd: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:  # bound and not listening: connections are refused, and nobody else gets the port
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PERENNIAL_DATABASE_URL", f"postgresql://127.0.0.1:{closed.getsockname()[1]}/nowhere")
        monkeypatch.setenv("PERENNIAL_MONITOR__PORT", str(free_port))
        with watching(cwd, "--interval", "0.2") as process:
            wait_for(lambda: (cwd / "log").read_text().count("the check failed with exit code 1") >= 2)
            text = metrics_at(free_port)
            assert "perennial_ledger_up 0.0" in text
            assert re.search(r'perennial_watch_failures_total\{child="check"\} [2-9]', text)
            assert "perennial_watch_last_tick_timestamp_seconds" not in text
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0


def test_sigterm_takes_the_running_check_along(
    configured: Settings, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never says a word
        port = silent.getsockname()[1]
        monkeypatch.setenv("PERENNIAL_DATABASE_URL", f"postgresql://127.0.0.1:{port}/nowhere")
        with watching(cwd) as process:
            (child,) = wait_for(lambda: children_of(process.pid))
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
            assert not os.path.exists(f"/proc/{child}")


def test_the_watcher_and_what_asks_whether_a_retrain_is_due_import_nothing_heavy() -> None:
    probe = (
        "import sys; import commands.watch, monitoring.watch_metrics, training.due, apscheduler.schedulers.background; "
        "import commands.retrain, training.retrain; "
        "print([name for name in ('evidently', 'pandas', 'sklearn', 'scipy', 'torch', 'bentoml') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_while_a_challenger_is_rolled_out_the_watcher_moves_it_on_and_retrains_nothing(
    opened: sa.Engine, configured: Settings, deploy: Any, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    model = deploy(opened, configured)
    rollout = ledger.rollouts.start(
        opened,
        "digits",
        champion=model.version,
        challenger="20990101-000000-00000",
        stages=["shadow"],
        reason="a test",
        actor="test",
    )
    watcher = Watcher(configured)
    monkeypatch.setattr(watcher, "_check", lambda: (True, True))  # it would call for a retrain
    assert watcher.tick()
    assert "rollout: nothing to do yet: 0 of 200 images answered" in capfd.readouterr().err
    monkeypatch.setenv("PERENNIAL_ROLLOUT__PATIENCE", "0.001")
    assert watcher.tick()
    assert "rollout: stopped: too little evidence" in capfd.readouterr().err
    kinds = [event.kind for event in model.events() if event.id >= rollout.started]
    assert kinds == [EventKind.ROLLOUT_STARTED, EventKind.ROLLOUT_STOPPED]
