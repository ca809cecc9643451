"""What calls for a retrain, as it is run: each trigger, the dry run, and two watchers at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from commands.retrain import show_plan
from commands.watch import Watcher
from perennial.bundle import Bundle
from perennial.ledger import EventKind, checks, events, labels, leases
from perennial.ledger.connect import writing
from perennial.ledger.labels import Feedback
from perennial.ledger.requests import open_request
from perennial.ledger.schema import events as events_table
from perennial.settings_sections import RetrainSettings
from tests.in_process import perennial_here
from tests.training.retrain_world import World, begin, truth
from training import challenger as making
from training import due
from training.dry_run import plan
from training.fit import Fitted
from training.situation import Situation, fresh_since, read_situation

Perennial = Callable[..., subprocess.CompletedProcess[str]]


class Reached(Exception):
    """It came as far as training."""


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: Any, **__: Any) -> Fitted:
        raise Reached

    monkeypatch.setattr(making, "fit", fit)


def when(world: World, **changes: Any) -> None:
    """Change the settings of `[retrain]`."""
    settings = world.settings.retrain.model_copy(update=changes)
    world.settings = world.settings.model_copy(update={"retrain": settings})


def trail(world: World) -> list[events.Event]:
    return [event for event in events.after(world.engine, "default") if event.kind is not EventKind.DEPLOYED]


def some_time_ago(world: World, event: events.Event, **ago: float) -> None:
    with writing(world.engine) as connection:
        row = sa.update(events_table).where(events_table.c.id == event.id)
        connection.execute(row.values(at=event.at - timedelta(**ago)))


def everything(world: World) -> list[Any]:
    """Every row of every table."""
    tables = sa.inspect(world.engine).get_table_names()
    with world.engine.connect() as connection:
        return [connection.execute(sa.text(f'SELECT * FROM "{table}"')).all() for table in sorted(tables)]


def test_a_check_that_asks_for_nothing_is_named_with_its_time_for_labels_may_have_come_since() -> None:
    now = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    situation = Situation(now=now, check="label 100 of the images to know", checked_at=now - timedelta(hours=1))
    drift = next(one for one in due.decide(situation, RetrainSettings()).asked if one.trigger is due.Trigger.DRIFT)
    assert drift.why == (
        "label 100 of the images to know (so the check of 2026-03-01 11:30 UTC; `perennial monitor` looks anew)"
    )


# --- triggers --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("untrained")
def test_a_retrain_by_hand_writes_its_own_request(world: World) -> None:
    world.serve(59, inverted=True, relabel=truth)
    assert world.retrain(if_due=False).outcome == "waiting"
    assert trail(world) == [], "whoever asks by hand is told, and nothing is left to be answered"
    world.serve(1, inverted=True, relabel=truth)
    with pytest.raises(Reached):
        world.retrain(if_due=False, reason="a new lamp")
    requested, started, failed = trail(world)
    assert (requested.kind, requested.detail["trigger"], requested.detail["why"]) == (
        "retrain_requested", "hand", "a new lamp",
    )  # fmt: skip
    assert (requested.detail["labels"], requested.detail["model_version"]) == (60, world.live)
    assert [started.caused_by, failed.caused_by] == [requested.id, started.id]
    assert open_request(world.engine, "default") is None


@pytest.mark.usefixtures("untrained")
def test_a_schedule_counts_from_when_it_was_set_and_makes_up_for_what_was_missed_once(world: World) -> None:
    world.serve(60, inverted=True, relabel=truth)
    when(world, schedule="0 3 * * *")
    assert world.retrain().outcome == "nothing_to_do", "what lies before the schedule was set is not made up for"
    [known] = trail(world)
    assert (known.kind, known.detail["schedule"], known.detail["before"]) == ("schedule_changed", "0 3 * * *", "")
    assert world.retrain().outcome == "nothing_to_do"
    assert len(trail(world)) == 1

    some_time_ago(world, known, days=3)  # and nothing ran in between
    with pytest.raises(Reached):
        world.retrain()
    _, requested, started, _ = trail(world)
    assert (requested.kind, requested.detail["trigger"]) == ("retrain_requested", "schedule")
    assert requested.detail["scheduled"].endswith("T03:00:00+00:00")
    assert "scheduled for" in requested.detail["why"]
    assert started.caused_by == requested.id
    when(world, cooldown=0.0)
    result = world.retrain()
    assert (result.outcome, "the next one is due on" in result.why) == ("nothing_to_do", True)

    when(world, schedule="")
    assert "retrain.schedule is not set" in world.retrain().why
    assert trail(world)[-1].detail == {"schedule": "", "before": "0 3 * * *"}


@pytest.mark.usefixtures("untrained")
def test_new_labels_call_for_a_retrain_and_are_new_once(world: World) -> None:
    when(world, every_labels=80, min_labels=40)
    world.serve(79, inverted=True, relabel=truth)
    world.serve(20, inverted=True)
    assert "79 new labels: 1 fewer than retrain.every_labels" in world.retrain().why
    [late] = world.serve(1, inverted=True)
    labels.add(world.engine, [Feedback(late.id, "red")])
    with pytest.raises(Reached):
        world.retrain()
    requested, *_ = trail(world)
    assert (requested.detail["trigger"], requested.detail["labels"], requested.detail["every_labels"]) == (
        "labels", 80, 80,
    )  # fmt: skip

    world.serve(80, inverted=True, relabel=truth)
    assert "less than retrain.cooldown ago" in world.retrain().why
    when(world, cooldown=0.0)
    with pytest.raises(Reached):
        world.retrain()
    assert "0 new labels since the last retrain" in world.retrain().why


def test_a_second_request_is_not_written_while_one_is_open(world: World) -> None:
    when(world, every_labels=1)
    world.serve(5, relabel=truth)
    assert [world.retrain().outcome for _ in range(2)] == ["waiting", "waiting"]
    assert [event.kind for event in trail(world)] == ["retrain_requested"]
    assert not due.is_worth_a_try(world.engine, world.settings), "the watcher starts nothing that could only wait"
    world.serve(60, relabel=truth)
    assert due.is_worth_a_try(world.engine, world.settings)


# --- the dry run -----------------------------------------------------------------------------------------


@pytest.fixture
def perennial(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Perennial:
    for section in ("train", "retrain"):
        for key, value in getattr(world.settings, section).model_dump().items():
            if value not in ("", []):
                text = value if isinstance(value, str) else json.dumps(value)
                monkeypatch.setenv(f"PERENNIAL_{section}__{key}".upper(), text)

    return partial(perennial_here, cwd=tmp_path)


def test_the_dry_run_shows_the_decision_and_its_evidence_and_writes_nothing(
    world: World, checkpoint: Path, photos: Path, perennial: Perennial, capsys: pytest.CaptureFixture[str]
) -> None:
    world.serve(50, inverted=True, relabel=truth)
    [odd] = world.serve(1, inverted=True)
    labels.add(world.engine, [Feedback(odd.id, "zebra")])
    when(world, schedule="0 3 * * *", every_labels=200)
    before = everything(world)

    silent = plan(world.engine, world.settings, if_due=True)
    assert (silent.runs, silent.exit_code) == (False, 4)
    assert "nothing asks for it: drift: no check of the live model yet" in silent.obstacles[0]
    document = json.loads(json.dumps(silent.document()))
    assert document["decision"]["trigger"] is None
    assert [(asked["trigger"], asked["fires"]) for asked in document["decision"]["triggers"]] == [
        ("drift", False), ("schedule", False), ("labels", False), ("hand", False),
    ]  # fmt: skip
    assert "51 new labels: 149 fewer" in document["decision"]["triggers"][2]["why"]
    assert document["labels"] == {
        "fresh": 50, "older": 0, "needed": 60, "missing": 10,
        "left_out": {"its label 'zebra' is not a class of the live model": 1},
        "new_classes": {}, "too_few": {},
    }  # fmt: skip
    assert (document["data"]["location"], document["data"]["found"], document["data"]["images"]) == (
        str(photos), True, 180,
    )  # fmt: skip
    assert (document["weights"]["path"], document["weights"]["matches"]) == (str(checkpoint), True)
    assert (document["lease"], document["cooldown"]) == (None, {"seconds": 3600.0, "left": 0.0})
    assert everything(world) == before

    by_hand = plan(world.engine, world.settings, if_due=False)
    assert by_hand.obstacles == ("50 fresh labelled captures of 60 needed: label 10 more",)
    world.serve(10, inverted=True, relabel=truth)
    done = perennial("retrain", "--dry-run", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["runs"], document["why"]) == (0, True, "by hand"), done.stderr
    assert document["training"]["strategy"] == "linear_probe"
    assert (document["training"]["fresh_captures"], document["training"]["judged_on"]) == (60, 24)
    assert len(trail(world)) == 0

    show_plan(silent.document())
    said = capsys.readouterr().out
    lines = dict(line.split(maxsplit=2)[1:] for line in said.splitlines() if line.startswith("by "))
    assert lines["labels"].startswith("no, 51 new labels")
    assert list(lines) == ["drift", "schedule", "labels", "hand"]
    for words in ("no retrain would run", "50 fresh of 60 needed", "over", "free", f"{checkpoint}: the right one"):
        assert words in said


def test_the_dry_run_names_what_is_in_the_way(world: World, checkpoint: Path, tmp_path: Path) -> None:
    world.serve(60, inverted=True, relabel=truth)
    requested = world.request()
    events.add(world.engine, "default", EventKind.RETRAIN_STARTED, {}, caused_by=requested)
    when(world, data=str(tmp_path / "gone"))
    kept = checkpoint.read_bytes()
    try:
        checkpoint.write_bytes(kept + b"0")
        with leases.held(world.engine, "retrain:default", 60):
            found = plan(world.engine, world.settings, if_due=True)
    finally:
        checkpoint.write_bytes(kept)
    assert found.decision.trigger == "drift"
    running, data, weights = found.obstacles
    assert "is retraining it now" in running
    assert data == f"the original training data is not at {tmp_path / 'gone'}: put it back, or set retrain.data"
    assert f"{checkpoint} has sha256" in weights
    document = found.document()
    assert (document["decision"]["request"], document["cooldown"]["left"]) == (requested, pytest.approx(3600, abs=60))
    assert "pid" in document["lease"]["holder"]
    assert found.exit_code == 4
    # Put back, the same question has the other answer.
    when(world, data="")
    assert plan(world.engine, world.settings, if_due=True).runs


# --- watchers --------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def shared_world(request: pytest.FixtureRequest, home: Path, champion: Bundle, shared_cache: Path) -> Iterator[World]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""
    yield from begin(home, champion, shared_cache, url)


def test_two_watchers_at_once_are_one_retrain(shared_world: World, tmp_path: Path) -> None:
    world = shared_world
    world.serve(60, inverted=True, relabel=truth)
    (tmp_path / "perennial.toml").write_text(
        f'database_url = "{world.settings.database_url}"\n[monitor]\nreport = "never"\n'
        "[train]\nthreads = 1\ntest = 0.3\n"
        "[retrain]\nfresh_holdout = 0.4\nmin_labels = 60\nmargin = 0.04\nevery_labels = 60\n"
    )
    command = [sys.executable, "-m", "commands.main", "watch", "--once"]
    watchers = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [watcher.communicate(timeout=240)[1] for watcher in watchers]
    assert [watcher.returncode for watcher in watchers] == [0, 0], said
    kinds = [event.kind for event in trail(world)]
    assert [kinds.count(kind) for kind in ("retrain_requested", "retrain_started")] == [1, 1], said
    requested = next(event for event in trail(world) if event.kind is EventKind.RETRAIN_REQUESTED)
    assert requested.detail["trigger"] == "labels"
    asked = [event for event in trail(world) if str(event.kind).startswith("retrain_")]
    assert {event.detail["actor"] for event in asked} == {"watch"}
    assert "a retrain is called for" in "".join(said)


def test_the_watcher_goes_on_where_it_cannot_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from perennial.settings import load_settings

    watcher = Watcher(load_settings(home=tmp_path / "empty"))
    assert watcher._is_asked_for() is False
    assert "whether a retrain is called for cannot be told: No model is live" in capsys.readouterr().err


# --- since when captures are fresh -----------------------------------------------------------------------


def test_captures_are_fresh_since_the_drift_began(world: World) -> None:
    """A gate that could not decide on one window's labels judges on those of all windows that alarmed since."""
    starts = []
    for number, verdict in enumerate(("data_drift", "ok", "data_drift", "sensor_shift", "data_drift")):
        start = datetime(2026, 3, 4, 12, number, tzinfo=UTC)
        starts.append(start)
        checks.record(
            world.engine, name="default", model_version=world.live, window={"rows": 20, "start": start.isoformat()},
            verdict=verdict, detail={}, report_url=None,
        )  # fmt: skip
    world.request(start=starts[-1].isoformat())
    request = open_request(world.engine, "default")
    assert fresh_since(world.engine, "default", request, by_hand=False) == starts[2]
    world.request(start=None)
    request = open_request(world.engine, "default")
    assert fresh_since(world.engine, "default", request, by_hand=False) is None


def test_and_since_accuracy_was_lost_where_nothing_else_alarmed(world: World) -> None:
    """The right answers changed and the images did not: every window is `ok`."""
    starts = []
    rose = {"accuracy": {"errors_rose": {"answers": 300, "since": 60}}}
    for number, detail in enumerate(({}, rose, {}, rose, {"retrain": {"due": True}}, rose)):
        start = datetime(2026, 3, 4, 12, number, tzinfo=UTC)
        starts.append(start)
        checks.record(
            world.engine, name="default", model_version=world.live, window={"rows": 20, "start": start.isoformat()},
            verdict="ok", detail=detail, report_url=None,
        )  # fmt: skip
    world.request(start=starts[-1].isoformat())
    request = open_request(world.engine, "default")
    assert fresh_since(world.engine, "default", request, by_hand=False) == starts[3]


def test_a_gate_that_waits_says_for_how_many_labels_and_how_good_it_found_the_live_model(world: World) -> None:
    gate = {"outcome": "wait", "more_labels": 120, "fresh": {"champion": {"value": 0.75, "low": 0.6, "high": 0.9}}}
    events.add(world.engine, "default", EventKind.GATE_REFUSED, {"champion": world.live, "gate": gate})
    situation = read_situation(world.engine, world.settings)
    assert (situation.awaited_labels, situation.awaited_accuracy) == (120, 0.75)
    # Judged against a model that is not live any more, it waits for nothing.
    events.add(world.engine, "default", EventKind.GATE_REFUSED, {"champion": "another", "gate": gate})
    situation = read_situation(world.engine, world.settings)
    assert (situation.awaited_labels, situation.awaited_accuracy) == (0, None)
