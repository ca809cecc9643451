"""`perennial watch`: checks and retrains on a schedule, each in a child process.

The watcher itself stays small: no wing is imported but the ledger's metrics. Whatever a child does, dies of or
leaks, the watcher goes on; so it does while the database is away.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from commands import console
from perennial.settings import Settings

if TYPE_CHECKING:
    import sqlalchemy as sa

_RETRAIN_DUE: Final = 10
#: How `perennial retrain` ends when it did its work: promoted, waiting or nothing to do, refused by the gate.
_RETRAIN_ENDS: Final = {0: "promoted", 4: "nothing to do now", 11: "refused by the gate"}
_STOP_SECONDS: Final = 10.0


def watch(
    name: console.Name = None,
    interval: Annotated[
        float | None, typer.Option("--interval", min=0.1, help="Seconds between checks; `monitor.interval`.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Check once (and retrain if due), then leave.")] = False,
) -> None:
    """Check the live model again and again, and retrain it when a check calls for it. Stop with Ctrl-C or SIGTERM.

    Its own metrics are at `http://127.0.0.1:PORT/metrics` (the setting `monitor.port`). With `--once` the exit code
    is 1 if the check or the retrain failed.
    """
    settings = console.settings_for(name, monitor={"interval": interval})
    watcher = Watcher(settings)
    watcher.stop_on(signal.SIGTERM, signal.SIGINT)
    if once:
        raise typer.Exit(0 if watcher.tick() else 1)
    watcher.run()


class Watcher:
    """Holds the schedule and the child that runs now, so that both can be stopped."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._child: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def stop_on(self, *signals: signal.Signals) -> None:
        """Stop on these signals, and with it the child."""
        for number in signals:
            signal.signal(number, lambda *_: self.stop())

    def stop(self) -> None:
        # On a thread of its own: a signal handler must not wait for a lock that the code it interrupted may hold.
        self._stopping.set()
        threading.Thread(target=self._stop_child, name="stop", daemon=False).start()

    def run(self) -> None:
        """Check at once, then on every interval, until stopped."""
        from apscheduler.schedulers.background import BackgroundScheduler
        from apscheduler.triggers.interval import IntervalTrigger

        served = self._serve_metrics()
        scheduler = BackgroundScheduler(timezone=UTC)
        scheduler.add_job(
            self.tick,
            IntervalTrigger(seconds=self._settings.monitor.interval, timezone=UTC),
            next_run_time=datetime.now(UTC),
            max_instances=1,
            coalesce=True,
            misfire_grace_time=None,
        )
        scheduler.start()
        _log(f"watching {self._settings.name!r} every {self._settings.monitor.interval:g} s")
        self._stopping.wait()
        scheduler.shutdown(wait=True)
        if served is not None:
            served.shutdown()
            served.server_close()
        _log("stopped")

    def tick(self) -> bool:
        """One check, and a retrain if it calls for one. True if nothing failed."""
        code, output = self._perennial("monitor", "--json", "--exit-code")
        if code not in (0, _RETRAIN_DUE):
            if not self._stopping.is_set():
                _log(f"the check failed with exit code {code}; the next one is tried as planned")
            return False
        check = _document(output)
        _log(f"check: {check.get('verdict')}; retrain: {(check.get('retrain') or {}).get('why')}")
        if code != _RETRAIN_DUE:
            return True
        _log("a retrain is called for")
        code, _ = self._perennial("retrain", "--if-due", "--json")
        if self._stopping.is_set():
            return False
        _log(f"retrain: {_RETRAIN_ENDS.get(code, f'failed with exit code {code}')}")
        return code in _RETRAIN_ENDS

    def _perennial(self, *arguments: str) -> tuple[int, str]:
        """Run a verb in a child process; its exit code and what it printed. Its log goes where ours goes."""
        config = ["--config", str(console.invocation.config)] if console.invocation.config is not None else []
        command = [sys.executable, "-m", "commands.main", *config, *arguments, "--name", self._settings.name]
        with self._lock:
            if self._stopping.is_set():
                return -signal.SIGTERM, ""
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
        try:
            output, _ = self._child.communicate()
            return self._child.returncode, output
        finally:
            self._child = None

    def _stop_child(self) -> None:
        with self._lock:
            child = self._child
        if child is None:
            return
        # The child leads a session of its own, so its own children get the signal too.
        for number in (signal.SIGTERM, signal.SIGKILL):
            if child.poll() is None:
                _signal_group(child.pid, number)
                try:
                    child.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    _log(f"process {child.pid} does not stop")

    def _serve_metrics(self) -> Any:
        port = self._settings.monitor.port
        if port == 0:
            return None
        from prometheus_client import start_http_server

        from monitoring.metrics import registry

        try:
            server, _ = start_http_server(
                port, addr="127.0.0.1", registry=registry(Ledger(self._settings.ledger_url), self._settings.name)
            )
        except OSError as error:
            _log(f"no metrics: port {port} cannot be had ({error}); set monitor.port")
            return None
        return server


class Ledger:
    """Opens the ledger when it is first asked for, and again after a failure."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine: sa.Engine | None = None
        self._lock = threading.Lock()

    def __call__(self) -> sa.Engine:
        from perennial.ledger import open_ledger

        with self._lock:
            if self._engine is None:
                self._engine = open_ledger(self._url, pool_size=1)
            return self._engine


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return  # it has just ended by itself


def _document(output: str) -> dict[str, Any]:
    try:
        found = json.loads(output)
    except json.JSONDecodeError:
        _log("the check printed no JSON")
        return {}
    return found if isinstance(found, dict) else {}


def _log(text: str) -> None:
    console.err.print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}", markup=False)
