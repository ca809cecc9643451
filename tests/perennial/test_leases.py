"""Leases between real processes that are killed and stopped, on both databases."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import pytest
import sqlalchemy as sa

from perennial.errors import LeaseHeld, LeaseLost
from perennial.ledger import EventKind, events, leases, open_ledger
from perennial.ledger.connect import writing
from perennial.ledger.schema import leases as table

NAME: Final = "retrain:shapes"
SECONDS: Final = 1.0


def hold(url: str, pipe: Any) -> None:
    """Hold the lease; at a word of the parent's, write an event under its protection and say how that went."""
    with leases.held(open_ledger(url), NAME, SECONDS) as lease:
        pipe.send("held")
        pipe.recv()
        try:
            events.add(open_ledger(url), "shapes", EventKind.GATE_PASSED, {}, guard=lease.confirm)
            pipe.send("written")
        except LeaseLost as error:
            pipe.send(str(error))


@pytest.fixture(scope="module")
def processes() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["perennial.ledger", __name__])
    return context


@contextmanager
def holder(processes: Any, url: str) -> Iterator[tuple[Any, Any]]:
    """A process that holds the lease, and a pipe to it."""
    ours, theirs = processes.Pipe()
    child = processes.Process(target=hold, args=(url, theirs))
    child.start()
    try:
        assert ours.poll(60)
        assert ours.recv() == "held"
        yield child, ours
    finally:
        child.kill()
        child.join()


def wait_until_it_runs_out(engine: sa.Engine) -> None:
    while leases.holders(engine, NAME):
        time.sleep(0.02)


def test_a_living_holder_keeps_its_lease_for_longer_than_it_is_long(engine: sa.Engine) -> None:
    with leases.held(engine, NAME, 0.3) as lease:
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            with pytest.raises(LeaseHeld, match=rf"pid {os.getpid()}\) until .* longer while it lives"):
                leases.held(engine, NAME, 60).__enter__()
            time.sleep(0.05)
        lease.check()
        [held] = leases.holders(engine, "retrain:")
        assert (held.name, f"pid {os.getpid()}" in held.holder) == (NAME, True)
        assert leases.holders(engine, "prune") == []
    assert leases.holders(engine, NAME) == []


def test_a_killed_holders_lease_is_free_when_it_has_run_out_and_not_before(
    engine: sa.Engine, ledger_url: str, processes: Any
) -> None:
    with holder(processes, ledger_url) as (child, _):
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        [held] = leases.holders(engine, NAME)
        tries = 0
        while True:
            try:
                with leases.held(engine, NAME, 60):
                    got = datetime.now(UTC)
                break
            except LeaseHeld:
                tries += 1
                time.sleep(0.02)
    assert tries > 0
    assert 0 <= (got - held.until).total_seconds() < SECONDS


def test_a_holder_that_was_stopped_for_too_long_learns_that_another_took_over(
    engine: sa.Engine, ledger_url: str, processes: Any
) -> None:
    with holder(processes, ledger_url) as (child, pipe):
        os.kill(child.pid, signal.SIGSTOP)
        wait_until_it_runs_out(engine)
        with leases.held(engine, NAME, 60):
            os.kill(child.pid, signal.SIGCONT)
            pipe.send("write")
            assert "was taken over by another process" in pipe.recv()
            child.join(30)
            [held] = leases.holders(engine, NAME)  # what it gave back at its end was not ours
            assert f"pid {os.getpid()}" in held.holder
    assert events.after(engine, "shapes") == []


def test_a_holder_that_was_stopped_while_nobody_came_goes_on(
    engine: sa.Engine, ledger_url: str, processes: Any
) -> None:
    with holder(processes, ledger_url) as (child, pipe):
        os.kill(child.pid, signal.SIGSTOP)
        wait_until_it_runs_out(engine)
        os.kill(child.pid, signal.SIGCONT)
        pipe.send("write")
        assert pipe.recv() == "written"


def test_nobody_can_take_a_lease_that_is_being_confirmed(postgres_url: str) -> None:
    engine = open_ledger(postgres_url)
    with leases.held(engine, NAME, 60) as lease, writing(engine) as connection:
        lease.confirm(connection)
        with writing(engine) as other:
            other.execute(sa.text("SET LOCAL lock_timeout = '100ms'"))
            with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
                other.execute(sa.update(table).values(holder="another"))
            other.rollback()
    engine.dispose()


def test_a_lease_that_cannot_be_given_back_does_not_undo_what_was_done(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from perennial.errors import LedgerUnavailable

    def away(_: sa.Engine) -> Any:
        raise LedgerUnavailable("the database does not answer")

    with leases.held(engine, NAME, 60):
        monkeypatch.setattr(leases, "writing", away)
    assert "it runs out in 60 s" in caplog.text
    monkeypatch.undo()
    assert len(leases.holders(engine, NAME)) == 1
