"""`perennial watch`: checks, rollouts, retrains and prunings on a schedule, each in a child process.

The watcher itself stays small: no wing is imported but the ledger's metrics and the rule of when to retrain. Whatever a
child does, dies of or leaks, the watcher goes on; so it does while the database is away.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from commands import console
from perennial.errors import InvalidParameter, PerennialError

if TYPE_CHECKING:
    import sqlalchemy as sa

    from perennial.notifying import Notifier
    from perennial.settings import Settings

_RETRAIN_DUE: Final = 10
#: How `perennial models rollback --if-worse` ends when it did its work: it went back, or the live model stays.
_LOOK_ENDS: Final = (0, 4)
#: How `perennial retrain` ends when it did its work: promoted, waiting or nothing to do, refused by the gate.
_RETRAIN_ENDS: Final = {0: "promoted or going live in stages", 4: "nothing to do now", 11: "refused by the gate"}
#: How `perennial rollout advance` ends when it did its work.
_ROLLOUT_ENDS: Final = {0: "went on", 4: "nothing to do yet", 11: "stopped"}
#: How `perennial prune` ends when it did its work: something went, nothing was to go.
_PRUNE_ENDS: Final = (0, 4)
_STOP_SECONDS: Final = 10.0
#: What a webhook is being sent may take so long when the watcher is stopped; else it is sent again by the next one.
_LAST_SENDING_SECONDS: Final = 3.0


def watch(
    name: console.Name = None,
    interval: Annotated[
        float | None, typer.Option("--interval", min=0.1, help="Seconds between checks; `monitor.interval`.")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option("--schedule", metavar="CRON", help="Times of the checks, in UTC; `monitor.schedule`."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Check once (and retrain if due), then leave.")] = False,
) -> None:
    """Check the live model again and again, and retrain it when that is called for. Stop with Ctrl-C or SIGTERM.

    For example:

        perennial watch
        perennial watch --schedule "*/15 * * * *"
        perennial watch --once

    A check calls for a retrain, or the schedule (`retrain.schedule`), or new labels (`retrain.every_labels`). A model
    that goes live in stages (`rollout.stages`) is moved on, or stopped.

    Checks come every `monitor.interval` seconds, the first at once; or, with `--schedule`, at the times of a cron
    expression of five fields in UTC, weekdays by name. A check that takes longer than the time to the next is followed
    by one, not by all that were missed.

    Before each check a model that has just gone live is compared with the one it replaced, and undone if it is worse
    (`perennial models rollback --if-worse`).

    Every `retention.interval` seconds it does what `perennial prune` does, and it tells the webhooks of the setting
    `notify.webhooks` what happens (docs/audit.md). Its own metrics are at `http://127.0.0.1:PORT/metrics` (the settings
    `monitor.port` and `monitor.host`; docs/metrics.md). With `--once` the exit code is 1 if the check or the retrain
    failed.
    """
    if interval is not None:
        if schedule:
            raise InvalidParameter("--interval and --schedule both say when to check; give one of them")
        schedule = ""  # it overrides one of the settings too
    settings = console.settings_for(name, monitor={"interval": interval, "schedule": schedule})
    watcher = Watcher(settings)
    watcher.stop_on(signal.SIGTERM, signal.SIGINT)
    if once:
        done = watcher.tick()
        watcher.tell()
        raise typer.Exit(0 if done else 1)
    watcher.run()


class Watcher:
    """Holds the schedule and the children that run now, so that all can be stopped."""

    def __init__(self, settings: Settings) -> None:
        from monitoring.watch_metrics import WatchMetrics

        self._settings = settings
        self._measured = WatchMetrics(settings)
        self._ledger = Ledger(settings.ledger_url)
        self._stopping = threading.Event()
        self._children: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()

    def stop_on(self, *signals: signal.Signals) -> None:
        """Stop on these signals, and with it the children."""
        for number in signals:
            signal.signal(number, lambda *_: self.stop())

    def stop(self) -> None:
        # On a thread of its own: a signal handler must not wait for a lock that the code it interrupted may hold.
        self._stopping.set()
        threading.Thread(target=self._stop_children, name="stop", daemon=False).start()

    def run(self) -> None:
        """Check on the schedule, or at once and then on every interval, until stopped."""
        from commands.watch_schedule import scheduler_of

        served = self._serve_metrics()
        notifier = self._notifier()
        scheduler = scheduler_of(self._settings, self._tick, self.prune)
        scheduler.start()
        monitor = self._settings.monitor
        when = f"at {monitor.schedule!r} (UTC)" if monitor.schedule else f"every {monitor.interval:g} s"
        _log(f"watching {self._settings.name!r} {when}")
        self._stopping.wait()
        scheduler.shutdown(wait=True)
        if notifier is not None:
            notifier.close(_LAST_SENDING_SECONDS)
        if served is not None:
            served.shutdown()
            served.server_close()
        _log("stopped")

    def _tick(self) -> None:
        self._measured.ticked(self.tick())

    def tick(self) -> bool:
        """A look at what has just gone live, one check, and a look at the challenger that goes live in stages, or a
        retrain if the check, the schedule or new labels call for one. True if nothing failed."""
        looked = self._look_after()  # first, so that nobody asks for a retrain of a model that is to be undone
        checked, due = self._check()
        checked = checked and looked
        if self._is_rolling_out():  # until it has ended there is no retrain
            return self._roll_out() and checked
        if self._stopping.is_set() or not (due or self._is_asked_for()):
            return checked
        _log("a retrain is called for")
        code, _ = self._perennial("retrain", "--if-due", "--json", "--actor", "watch", "--name", self._settings.name)
        if self._stopping.is_set():
            return False
        if code not in _RETRAIN_ENDS:
            self._measured.failed("retrain")
        _log(f"retrain: {_RETRAIN_ENDS.get(code, f'failed with exit code {code}')}")
        return checked and code in _RETRAIN_ENDS

    def _look_after(self) -> bool:
        """Go back to the model before, if a watch is on and the live one turns out to be worse. True if nothing
        failed."""
        from perennial.ledger import watches

        try:
            if not self._settings.retrain.watch_labels:
                return True
            if watches.open_watch(self._ledger(), self._settings.name) is None:
                return True
        except PerennialError as error:
            _log(f"whether a watch is on cannot be told: {error.title}: {error.detail}")
            return False
        code, output = self._perennial("models", "rollback", "--if-worse", "--json", "--name", self._settings.name)
        if code not in _LOOK_ENDS:
            if not self._stopping.is_set():
                self._measured.failed("look")
                _log(f"the look at what went live failed with exit code {code}; the next one is tried as planned")
            return False
        if not output:
            _log("what went live is being watched: another process looks at it just now")
            return True
        look = _document(output)
        _log(f"since it went live: {str(look.get('outcome')).replace('_', ' ')}, {look.get('why')}")
        return True

    def _check(self) -> tuple[bool, bool]:
        """Did the check succeed, and does it call for a retrain?"""
        code, output = self._perennial("monitor", "--json", "--exit-code", "--name", self._settings.name)
        if code not in (0, _RETRAIN_DUE):
            if not self._stopping.is_set():
                self._measured.failed("check")
                _log(f"the check failed with exit code {code}; the next one is tried as planned")
            return False, False
        self._measured.checked()
        check = _document(output)
        _log(f"check: {check.get('verdict')}; retrain: {(check.get('retrain') or {}).get('why')}")
        return True, code == _RETRAIN_DUE

    def _is_rolling_out(self) -> bool:
        from perennial.ledger import rollouts

        try:
            return not self._stopping.is_set() and rollouts.running(self._ledger(), self._settings.name) is not None
        except PerennialError as error:
            _log(f"whether a challenger is being rolled out cannot be told: {error.title}: {error.detail}")
            return False

    def _roll_out(self) -> bool:
        """Let the challenger go on, or stop it, if its evidence calls for that. True if it did not fail."""
        code, output = self._perennial("rollout", "advance", "--json", "--name", self._settings.name)
        if self._stopping.is_set():
            return False
        if code not in _ROLLOUT_ENDS:
            self._measured.failed("rollout")
        why = _document(output).get("why", "") if code in _ROLLOUT_ENDS else ""
        _log(f"rollout: {_ROLLOUT_ENDS.get(code, f'failed with exit code {code}')}{why and f': {why}'}")
        return code in _ROLLOUT_ENDS

    def _is_asked_for(self) -> bool:
        """Do the schedule, new labels or a request that was not answered yet call for a retrain that could run?"""
        from training import due

        try:
            return due.is_worth_a_try(self._ledger(), self._settings)
        except PerennialError as error:
            _log(f"whether a retrain is called for cannot be told: {error.title}: {error.detail}")
            return False

    def prune(self) -> bool:
        """Remove what is not kept any longer. True if it did not fail."""
        code, output = self._perennial("prune", "--json")
        if code not in _PRUNE_ENDS:
            if not self._stopping.is_set():
                self._measured.failed("prune")
                _log(f"pruning failed with exit code {code}; the next one is tried as planned")
            return False
        if code == 0:
            found = _document(output)
            images = sum(found["images"][why]["count"] for why in ("aged", "over_size", "unnamed"))
            _log(f"pruned: {found['rows']['count']} predictions, {images} images")
        return True

    def tell(self) -> None:
        """Tell the webhooks once. What one does not take now waits in the ledger, so it is no failure of a check."""
        from perennial.ledger import open_ledger
        from perennial.notifying import tell_all

        if not self._settings.notify.webhooks or self._stopping.is_set():
            return
        try:
            tell_all(open_ledger(self._settings.ledger_url), self._settings)
        except PerennialError as error:
            _log(f"the webhooks are told later: {error}")

    def _notifier(self) -> Notifier | None:
        if not self._settings.notify.webhooks:
            return None
        from perennial.notifying import Notifier

        # In threads of this process: a child that waits for events would outlive a watcher that is killed.
        notifier = Notifier(Ledger(self._settings.ledger_url), self._settings)
        notifier.start()
        return notifier

    def _perennial(self, *arguments: str) -> tuple[int, str]:
        """Run a verb in a child process; its exit code and what it printed. Its log goes where ours goes."""
        config = ["--config", str(console.invocation.config)] if console.invocation.config is not None else []
        command = [sys.executable, "-m", "commands.main", *config, *arguments]
        with self._lock:
            if self._stopping.is_set():
                return -signal.SIGTERM, ""
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
            self._children.add(child)
        try:
            output, _ = child.communicate()
            return child.returncode, output
        finally:
            with self._lock:
                self._children.discard(child)

    def _stop_children(self) -> None:
        with self._lock:
            children = list(self._children)
        for number in (signal.SIGTERM, signal.SIGKILL):
            running = [child for child in children if child.poll() is None]
            for child in running:
                # It leads a session of its own, so its own children get the signal too.
                _signal_group(child.pid, number)
            deadline = time.monotonic() + _STOP_SECONDS
            for child in running:
                try:
                    child.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    _log(f"process {child.pid} does not stop")

    def _serve_metrics(self) -> Any:
        host, port = self._settings.monitor.host, self._settings.monitor.port
        if port == 0:
            return None
        from prometheus_client import start_http_server

        from monitoring.watch_metrics import registry

        found = registry(self._ledger, self._measured, self._settings.name)
        try:
            server, _ = start_http_server(port, addr=host, registry=found)
        except OSError as error:
            _log(f"no metrics: port {port} of {host} cannot be had ({error}); set monitor.port and monitor.host")
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
        _log("the child printed no JSON")
        return {}
    return found if isinstance(found, dict) else {}


def _log(text: str) -> None:
    console.err.print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}", markup=False)
