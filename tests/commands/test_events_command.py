"""`perennial events` and `perennial notify` as people and cron jobs run them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from commands.events import _moment
from commands.main import app
from perennial.errors import InvalidParameter, NothingToDo
from perennial.ledger import EventKind, events, open_ledger, schema
from perennial.settings import Settings
from tests.webhook_receiver import TOKEN, Receiver

SECRET = "whsec_" + "A" * 42 + "E="


@pytest.fixture
def trail(settings: Settings) -> Iterator[sa.Engine]:
    """Five events: two days old, then now."""
    engine = open_ledger(settings.ledger_url)
    cause = {"cause": "data_drift", "why": "[red]other[/] images"}
    drift = {"model_version": "v1", "verdict": "data_drift", "causes": [cause]}
    first = events.add(engine, "default", EventKind.DRIFT_OPENED, drift)
    asked = events.add(
        engine, "default", EventKind.RETRAIN_REQUESTED, {"model_version": "v1", "why": "it lost 9 points"}
    )
    long_ago = datetime.now(UTC) - timedelta(days=2)
    with engine.begin() as connection:
        connection.execute(sa.update(schema.events).where(schema.events.c.id <= asked).values(at=long_ago))
    assert first == 1
    started = events.add(engine, "default", EventKind.RETRAIN_STARTED, {"champion": "v1", "why": "x"}, caused_by=asked)
    gate = {"version": "v2", "champion": "v1", "why": "not better beyond chance\nat all"}
    events.add(engine, "default", EventKind.GATE_REFUSED, gate, caused_by=started)
    events.add(engine, "other", EventKind.DEPLOYED, {"version": "w1", "actor": "train"})
    yield engine
    engine.dispose()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def kinds(*arguments: str) -> list[str]:
    done = run("events", "--json", *arguments)
    assert done.exit_code == 0, done.output
    return [event["kind"] for event in json.loads(done.stdout)["events"]]


def test_events_are_told_in_words(trail: sa.Engine) -> None:
    shown = run("events").stdout
    for words in (
        "drift_opened", "data drift on v1", "[red]other[/] images", "retrain_requested", "it lost 9 points",
        "v2 against v1", "not better beyond chance at all",
    ):  # fmt: skip
        assert words in shown, words
    assert shown.index("drift_opened") < shown.index("gate_refused")
    assert "w1" not in shown
    assert "w1 (by train)" in run("events", "--name", "other").stdout
    assert "nothing of that kind has happened" in run("events", "--kind", "rolled_back").stdout


def test_json_is_what_the_service_answers(trail: sa.Engine) -> None:
    document = json.loads(run("events", "--json").stdout)
    assert document == events.page(events.after(trail, "default"), 0)
    assert set(document["events"][0]) == {"id", "at", "kind", "detail", "caused_by"}
    assert document["after"] == document["events"][-1]["id"] == 4


def test_events_are_chosen_by_kind_number_age_and_count(trail: sa.Engine) -> None:
    everything = ["drift_opened", "retrain_requested", "retrain_started", "gate_refused"]
    assert kinds() == everything
    assert kinds("--kind", "gate_refused", "--kind", "drift_opened") == ["drift_opened", "gate_refused"]
    assert kinds("--after", "2") == everything[2:]
    assert kinds("--since", "1d") == everything[2:]
    assert kinds("--since", "3d", "--limit", "1") == everything[:1]  # the first from there on
    assert kinds("--limit", "1") == everything[3:]  # the newest
    assert kinds("--since", "2999-01-01") == []
    assert json.loads(run("events", "--json", "--after", "9").stdout) == {"events": [], "after": 9}


def test_a_moment_is_an_age_or_a_date() -> None:
    now = datetime(2026, 3, 8, 12, tzinfo=UTC)
    assert _moment("2d", now) == datetime(2026, 3, 6, 12, tzinfo=UTC)
    assert _moment("1w", now) == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert _moment("2026-03-01", now) == datetime(2026, 3, 1, tzinfo=UTC)
    assert _moment("2026-03-01T12:00+02:00", now) == datetime(2026, 3, 1, 10, tzinfo=UTC)
    for wrong in ("yesterday", "2x", "", "999999w"):
        with pytest.raises(InvalidParameter, match="neither an age"):
            _moment(wrong, now)


def test_an_unknown_kind_is_answered_with_those_there_are(trail: sa.Engine) -> None:
    done = run("events", "--kind", "deploied")
    assert isinstance(done.exception, InvalidParameter)
    assert "there are check_changed, drift_opened" in str(done.exception)


def test_follow_shows_what_happens_as_it_happens(trail: sa.Engine, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "commands.main", "events", "--follow", "--json", "--limit", "1"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["kind"] == "gate_refused"
            number = events.add(trail, "default", EventKind.ROLLED_BACK, {"version": "v1", "replaces": "v2"})
            assert json.loads(process.stdout.readline())["id"] == number
        finally:
            process.terminate()


@pytest.fixture
def hook(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A real receiver; the environment names it."""
    with Receiver().listening() as receiver:
        monkeypatch.setenv("PERENNIAL_NOTIFY__WEBHOOKS", json.dumps([receiver.url]))
        monkeypatch.setenv("PERENNIAL_NOTIFY__SECRET", SECRET)
        yield receiver


def test_notify_tells_what_is_pending_and_exits(trail: sa.Engine, hook: Receiver) -> None:
    assert run("notify").exit_code == 4  # it is new: what was, is not told
    events.add(trail, "default", EventKind.ROLLED_BACK, {"version": "v1", "replaces": "v2", "reason": "worse"})
    done = run("notify", "--json")
    assert done.exit_code == 0, done.output
    (told,) = json.loads(done.stdout)["webhooks"]
    assert (told["delivered"], told["refused"], told["pending"], told["why"]) == (1, 0, False, None)
    assert TOKEN not in done.output
    assert SECRET not in done.output
    assert [each.document["text"] for each in hook.arrived] == [
        "default: rolled back, v1 in place of v2 (by somebody): worse"
    ]
    assert run("notify").exit_code == 4


def test_notify_tests_each_webhook(hook: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("notify", "--test")
    assert done.exit_code == 0, done.output
    assert "delivered, 200 ok" in done.stdout
    (arrived,) = hook.arrived
    assert arrived.id.startswith("test_")
    assert arrived.document["event"] is None
    assert "test message" in arrived.document["text"]

    monkeypatch.setenv("PERENNIAL_NOTIFY__WEBHOOKS", f'["http://127.0.0.1:1/{TOKEN}"]')
    done = run("notify", "--test", "--json")
    assert done.exit_code == 1
    (answer,) = json.loads(done.stdout)["webhooks"]
    assert (answer["delivered"], answer["status"]) == (False, None)
    assert "ConnectError" in answer["answer"]
    assert TOKEN not in done.output


def test_notify_without_a_webhook_says_what_to_set(home: Path) -> None:
    done = run("notify")
    assert isinstance(done.exception, NothingToDo)
    assert "notify.webhooks" in str(done.exception)


def test_a_webhook_that_is_down_leaves_exit_code_1_and_the_event_waiting(
    trail: sa.Engine, home: Path, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setenv("PERENNIAL_NOTIFY__WEBHOOKS", f'["http://127.0.0.1:{free_port}/{TOKEN}"]')
    run("notify")
    events.add(trail, "default", EventKind.RETRAIN_FAILED, {"champion": "v1", "error": "OSError", "reason": "full"})
    done = run("notify", "--json")
    assert done.exit_code == 1
    (told,) = json.loads(done.stdout)["webhooks"]
    assert (told["delivered"], told["pending"]) == (0, True)
    assert TOKEN not in done.output
