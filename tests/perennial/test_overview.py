"""Everything at a glance: what the operations page is told, on both databases."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from perennial import model_state, overview
from perennial.bundle import Bundle
from perennial.ids import new_id
from perennial.ledger import (
    EventKind,
    checks,
    deployments,
    events,
    models,
    predictions,
    rejected_images,
    rollouts,
    shadow_answers,
    traffic,
)
from perennial.ledger.predictions import Prediction
from perennial.ledger.rejected_images import RejectedImages
from perennial.ledger.rollouts import Stage
from perennial.ledger.shadow_answers import ShadowAnswer
from perennial.settings import Settings, load_settings

NAME = "shapes"
FIRST, SECOND, THIRD = (f"2026010{day}-000000-00000" for day in (1, 2, 3))
NOW = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
VECTOR = np.zeros(2, np.float32)
ESTIMATE = {"value": 0.9, "low": 0.8, "high": 0.95}


@pytest.fixture
def shapes(home: object) -> Settings:
    return load_settings(name=NAME, monitor={"interval": 300})


@pytest.fixture
def ledger(engine: sa.Engine, made_bundle: Callable[[str], Bundle]) -> sa.Engine:
    """Three models; the second is live, in place of the first."""
    for version in (FIRST, SECOND, THIRD):
        models.register(engine, made_bundle(version), f"file:///bundles/{version}")
    deployments.deploy(engine, NAME, FIRST, reason="the first", actor="test")
    deployments.deploy(engine, NAME, SECOND, reason="better", actor="test")
    return engine


def prediction(at: datetime, version: str = SECOND) -> Prediction:
    return Prediction(
        new_id(), at, version, "float32", "disc", 0.9, VECTOR, VECTOR, VECTOR, 8, 8, "JPEG", "RGB", 100, "0" * 64, None,
        None, 1.0,
    )  # fmt: skip


def check(engine: sa.Engine, state: str = "healthy", verdict: str = "ok", **detail: Any) -> int:
    accuracy = {"labels": ESTIMATE, "estimated": None, "labelled": 412, "withheld": "too far away"}
    found = {"state": state, "accuracy": accuracy, "scores": {"output": 0.25}, "families": {}, **detail}
    return checks.record(
        engine, name=NAME, model_version=SECOND, window={"rows": 1000, "start": None, "end": None}, verdict=verdict,
        detail=found, report_url=None,
    )  # fmt: skip


def test_traffic_is_counted_as_it_is_recorded_and_each_row_once(ledger: sa.Engine) -> None:
    rows = [prediction(NOW - timedelta(minutes=minutes)) for minutes in (0, 0, 1, 90, 90)]
    predictions.record(ledger, rows)
    predictions.record(ledger, rows)  # delivered once more
    predictions.record(ledger, [*rows[:2], prediction(NOW), prediction(NOW, "another model's")])
    start, bucket, buckets = traffic.span(2, 240, NOW)
    found = traffic.answered(ledger, [FIRST, SECOND, THIRD], start, bucket, buckets)
    assert (bucket, buckets, len(found)) == (timedelta(minutes=1), 120, 120)
    assert start + buckets * bucket == datetime(2026, 3, 1, 12, 1, tzinfo=UTC)
    assert (found[-1], found[-2], found[-91], sum(found)) == (3, 1, 2, 6)


@pytest.mark.parametrize(("hours", "minutes", "buckets"), [(1, 1, 60), (6, 2, 180), (24, 6, 240), (720, 180, 240)])
def test_a_span_is_cut_into_whole_minutes_that_do_not_move(hours: int, minutes: int, buckets: int) -> None:
    start, bucket, count = traffic.span(hours, 240, NOW)
    assert (bucket, count) == (timedelta(minutes=minutes), buckets)
    assert start + count * bucket > NOW >= start + (count - 1) * bucket
    later = traffic.span(hours, 240, NOW + timedelta(seconds=20))
    assert (later[0] - start) % bucket == timedelta(0)


def test_it_says_what_is_live_what_came_in_and_what_was_found(ledger: sa.Engine, shapes: Settings) -> None:
    now = datetime.now(UTC)
    predictions.record(ledger, [prediction(now), prediction(now, FIRST)])
    minute = now.replace(second=0, microsecond=0)
    rejected_images.add(ledger, [RejectedImages(SECOND, minute, "truncated-image", 3)])
    id_ = check(ledger)
    found = overview.read(ledger, shapes, 24, now)
    assert found["state"]["tone"] == "good"
    assert found["state"]["sentence"].startswith("Healthy since ")
    assert "accuracy 0.90 by 412 labels; last check just now." in found["state"]["sentence"]
    assert (found["live"]["version"], found["live"]["classes"]) == (SECOND, ["disc", "square"])
    assert (sum(found["traffic"]["answered"]), sum(found["traffic"]["rejected"])) == (2, 3)
    assert found["checks"] == [
        {
            "id": id_, "at": found["check"]["at"], "version": SECOND, "verdict": "ok", "rows": 1000, "labelled": 412,
            "accuracy_labels": ESTIMATE, "accuracy_estimated": None, "withheld": "too far away",
            "scores": {"output": 0.25},
        }
    ]  # fmt: skip
    assert [entry["version"] for entry in found["deployments"]] == [FIRST, SECOND]
    assert [(model["version"], model["status"]) for model in found["models"]] == [
        (THIRD, "never live"), (SECOND, "live"), (FIRST, "replaced"),
    ]  # fmt: skip
    assert [event["kind"] for event in found["events"]] == ["deployed", "deployed"]
    assert found["events"][0]["why"] == "better"


def test_going_back_is_told_from_going_on(ledger: sa.Engine, shapes: Settings) -> None:
    deployments.roll_back(ledger, NAME, reason="worse", actor="test")
    found = overview.read(ledger, shapes, 24)
    assert [entry["rolled_back"] for entry in found["deployments"]] == [False, False, True]
    assert {model["version"]: model["status"] for model in found["models"]} == {
        FIRST: "live", SECOND: "rolled back", THIRD: "never live",
    }  # fmt: skip


@pytest.mark.parametrize(("outcome", "status"), [("refuse", "refused"), ("wait", "waiting")])
def test_a_challenger_that_did_not_pass(ledger: sa.Engine, shapes: Settings, outcome: str, status: str) -> None:
    detail = {"version": THIRD, "champion": SECOND, "why": "no better", "gate": {"outcome": outcome}}
    events.add(ledger, NAME, EventKind.GATE_REFUSED, detail)
    assert overview.read(ledger, shapes, 24)["models"][0]["status"] == status


def test_the_state_says_whether_somebody_has_to_do_something(ledger: sa.Engine, shapes: Settings) -> None:
    def state(now: datetime | None = None) -> dict[str, Any]:
        found: dict[str, Any] = overview.read(ledger, shapes, 24, now)["state"]
        return found

    assert (state()["tone"], state()["model_state"]) == ("caution", "unchecked")
    check(ledger, state="suspected", verdict="data_drift")
    assert (state()["tone"], state()["model_state"]) == ("caution", "suspected")
    check(ledger, state="drifting", verdict="data_drift")
    opened = events.add(ledger, NAME, EventKind.DRIFT_OPENED, {"verdict": "data_drift", "model_version": SECOND})
    [event] = events.by_id(ledger, NAME, [opened])
    assert (state()["tone"], state()["since"]) == ("bad", event.at.isoformat())
    assert state()["sentence"].startswith("Drifting (data_drift) since")
    events.add(ledger, NAME, EventKind.RETRAIN_STARTED, {"champion": SECOND, "why": "drift"})
    assert (state()["tone"], state()["model_state"]) == ("caution", "retraining")
    events.add(ledger, NAME, EventKind.RETRAIN_FAILED, {"champion": SECOND, "error": "DiskFull"})
    assert state()["model_state"] == "drifting"


def test_where_nobody_checks_although_something_comes_in_it_says_so(ledger: sa.Engine, shapes: Settings) -> None:
    check(ledger)
    later = datetime.now(UTC) + timedelta(seconds=3 * 300 + 60)
    assert overview.read(ledger, shapes, 24, later)["state"]["stale"] is False, "nothing came in"
    predictions.record(ledger, [prediction(later)])
    found = overview.read(ledger, shapes, 24, later)["state"]
    assert (found["stale"], found["tone"]) == (True, "bad")
    assert "is `perennial watch` running?" in found["sentence"]


def test_with_a_schedule_a_check_is_overdue_once_two_of_its_times_have_passed(ledger: sa.Engine, home: object) -> None:
    hourly = load_settings(name=NAME, monitor={"schedule": "0 * * * *"})
    check(ledger)
    now = datetime.now(UTC)
    next_hour = now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    for minutes, stale in ((59, False), (61, True)):
        later = next_hour + timedelta(minutes=minutes)
        predictions.record(ledger, [prediction(later)])
        assert overview.read(ledger, hourly, 24, later)["state"]["stale"] is stale


def test_a_rollout_is_counted_by_different_images_in_the_stage_it_is_at(ledger: sa.Engine, home: object) -> None:
    settings = load_settings(name=NAME, rollout={"rows": 4})

    def told() -> dict[str, Any]:
        found: dict[str, Any] = overview.read(ledger, settings, 24)["rollout"]
        return found

    before = replace(prediction(NOW), image_digest="9" * 64)
    predictions.record(ledger, [before])
    shadow_answers.record(ledger, [ShadowAnswer(before.id, THIRD, NOW, "disc", 0.9, 1.0, 1.0)])
    time.sleep(0.002)  # an id tells the millisecond
    stages: tuple[Stage, ...] = ("shadow", 0.25)
    rollout = rollouts.start(
        ledger, NAME, champion=SECOND, challenger=THIRD, stages=stages, reason="better", actor="test"
    )
    same, again, other, failed = (replace(prediction(NOW), image_digest=digit * 64) for digit in "1123")
    predictions.record(ledger, [same, again, other, failed])
    said = ("disc", "disc", "square")
    answers = [
        ShadowAnswer(each.id, THIRD, NOW, label, 0.9, 1.0, 1.0)
        for each, label in zip((same, again, other), said, strict=True)
    ]
    shadow_answers.record(ledger, [*answers, ShadowAnswer(failed.id, THIRD, NOW, fault="out of memory")])
    found = told()
    assert (found["version"], found["champion"], found["stage"]) == (THIRD, SECOND, "shadow")
    assert (found["number"], found["stages"], found["share"]) == (1, 2, 0.0)
    assert (found["answered"], found["of"], found["agreed"], found["faults"]) == (2, 4, 1, 1)
    time.sleep(0.002)
    rollouts.advance(ledger, rollout, why="fine", actor="test", detail={})
    predictions.record(ledger, [replace(prediction(NOW, THIRD), image_digest=f"{each:064}") for each in range(20)])
    found = told()
    assert (found["stage"], found["number"], found["share"]) == ("25 % of the traffic", 2, 0.25)
    assert (found["answered"], found["agreed"], found["faults"]) == (8, None, 0)  # twice as many as it needs
    assert overview.read(ledger, settings, 24)["models"][0]["status"] == "rolling out"


def test_before_the_first_model_it_says_what_to_do(engine: sa.Engine, shapes: Settings) -> None:
    found = overview.read(engine, shapes, 24)
    assert (found["live"], found["check"], found["models"], found["checks"]) == (None, None, [], [])
    assert found["state"]["sentence"] == "No model named 'shapes' is live yet: perennial train DATA"


def test_of_many_checks_evenly_as_many_and_the_newest(ledger: sa.Engine) -> None:
    ids = [check(ledger) for _ in range(11)]
    found = checks.between(ledger, NAME, datetime.now(UTC) - timedelta(hours=1), 4)
    assert [told.id for told in found] == [ids[1], ids[4], ids[7], ids[10]]
    assert checks.between(ledger, NAME, datetime.now(UTC) + timedelta(hours=1), 4) == []


def test_what_never_changes_is_read_once(ledger: sa.Engine, shapes: Settings) -> None:
    check(ledger)
    known = overview.Unchanging()
    now = datetime.now(UTC) + timedelta(seconds=1)
    first = overview.read(ledger, shapes, 24, now, known)
    asked = list[str]()
    sa.event.listen(ledger, "before_cursor_execute", lambda _c, _k, statement, *_: asked.append(statement))
    assert overview.read(ledger, shapes, 24, now, known) == first == overview.read(ledger, shapes, 24, now)
    reading = [each for each in asked if "AS scores" in each or "AS backbone" in each]
    assert len(reading) == 2  # by the one that knows nothing
    newer = check(ledger)
    found = overview.read(ledger, shapes, 24, now + timedelta(seconds=1), known)
    assert [each["id"] for each in found["checks"]][-1] == newer


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "just now"), (180, "3 min ago"), (7200, "2 h ago"), (300_000, "3 days ago")]
)
def test_how_long_ago_in_words(seconds: float, words: str) -> None:
    assert model_state.ago(seconds) == words
