"""Rollouts in the ledger: a row for each stage, ended by whatever goes live."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import sqlalchemy as sa

from perennial.errors import Overtaken
from perennial.event_wording import sentence
from perennial.ids import first_id, new_id
from perennial.ledger import (
    EventKind,
    deployments,
    events,
    labels,
    models,
    predictions,
    retention,
    rollouts,
    shadow_answers,
)
from perennial.ledger.labels import Feedback
from perennial.ledger.predictions import Prediction
from perennial.ledger.requests import open_request
from perennial.ledger.retention import Expired
from perennial.ledger.rollouts import Rollout
from perennial.ledger.shadow_answers import ShadowAnswer
from perennial.story import tell
from perennial.story_page import render
from tests.perennial.conftest import MakeBundle

NAME = "shapes"
OLD, NEW, OTHER = "20260101-000000-00000", "20260102-000000-00000", "20260103-000000-00000"


@pytest.fixture
def ledger(engine: sa.Engine, made_bundle: MakeBundle) -> sa.Engine:
    for version in (OLD, NEW, OTHER):
        models.register(engine, made_bundle(version), f"file:///bundles/{version}")
    deployments.deploy(engine, NAME, OLD, reason="the first", actor="test")
    return engine


def begin(engine: sa.Engine, caused_by: int | None = None) -> Rollout:
    return rollouts.start(
        engine,
        NAME,
        champion=OLD,
        challenger=NEW,
        stages=["shadow", 0.1],
        reason="drift",
        actor="retrain",
        caused_by=caused_by,
    )


def kinds(engine: sa.Engine) -> list[EventKind]:
    return [event.kind for event in events.after(engine, NAME)]


def test_a_rollout_goes_through_its_stages_and_ends_when_it_is_live(ledger: sa.Engine) -> None:
    assert rollouts.running(ledger, NAME) is None
    first = begin(ledger)
    assert (first.current, first.share, first.is_last) == ("shadow", 0.0, False)
    assert rollouts.running(ledger, NAME) == first
    second = rollouts.advance(ledger, first, why="200 answers", actor="watch", detail={"answers": 200})
    assert (second.current, second.share, second.is_last, second.started) == (0.1, 0.1, True, first.started)
    with pytest.raises(Overtaken):
        rollouts.advance(ledger, first, why="again", actor="watch", detail={})
    assert deployments.live(ledger, NAME).version == OLD
    live = deployments.deploy(ledger, NAME, NEW, reason="all stages", actor="watch", replaces=OLD)
    assert rollouts.running(ledger, NAME) is None
    assert [row.state for row in rollouts.rows_of(ledger, NAME, first.started)] == ["running", "running", "done"]
    assert kinds(ledger)[1:] == [EventKind.ROLLOUT_STARTED, EventKind.ROLLOUT_ADVANCED, EventKind.DEPLOYED]
    advanced = events.last(ledger, NAME, [EventKind.ROLLOUT_ADVANCED])
    assert advanced is not None
    assert advanced.caused_by == first.started
    assert live.event_id > advanced.id
    assert sentence(advanced) == f"shapes: rollout advanced, {NEW} beside {OLD}: 10 % of the traffic: 200 answers"


def test_a_story_says_where_a_challenger_stands(ledger: sa.Engine) -> None:
    rollout = begin(ledger)
    assert (tell(ledger, NAME, NEW).status, tell(ledger, NAME, OLD).status) == ("rolling out", "live")
    rollouts.stop(ledger, rollout, why="worse", actor="watch")
    story = tell(ledger, NAME, NEW)
    assert (story.status, tell(ledger, NAME, OLD).status) == ("stopped", "live")
    assert [event.kind for event in story.events] == [EventKind.ROLLOUT_STARTED, EventKind.ROLLOUT_STOPPED]
    assert "stopped on its way" in render(story)
    begin(ledger)
    deployments.deploy(ledger, NAME, NEW, reason="all stages", actor="watch", replaces=OLD)
    assert (tell(ledger, NAME, NEW).status, tell(ledger, NAME, OLD).status) == ("live", "replaced")


def test_whatever_else_goes_live_stops_it_in_the_same_moment(ledger: sa.Engine) -> None:
    begin(ledger)
    deployed = deployments.deploy(ledger, NAME, OTHER, reason="urgent", actor="ann")
    assert rollouts.running(ledger, NAME) is None
    stopped = events.last(ledger, NAME, [EventKind.ROLLOUT_STOPPED])
    assert stopped is not None
    assert stopped.caused_by == deployed.event_id
    assert "urgent" in stopped.detail["why"]


def test_rolling_back_amid_a_rollout_undoes_the_rollout(ledger: sa.Engine) -> None:
    begin(ledger)
    back = deployments.roll_back(ledger, NAME, reason="it looks wrong", actor="ann")
    assert back.version == OLD
    assert rollouts.running(ledger, NAME) is None
    assert kinds(ledger)[-2:] == [EventKind.ROLLED_BACK, EventKind.ROLLOUT_STOPPED]
    told = events.last(ledger, NAME, [EventKind.ROLLED_BACK])
    assert told is not None
    assert told.detail["replaces"] == NEW


def test_one_rollout_at_a_time_and_only_beside_the_model_it_was_judged_against(ledger: sa.Engine) -> None:
    first = begin(ledger)
    with pytest.raises(Overtaken, match="perennial rollout stop"):
        begin(ledger)
    ended = rollouts.stop(ledger, first, why="enough", actor="ann")
    assert (ended.state, ended.share) == ("stopped", 0.0)
    with pytest.raises(Overtaken):  # whoever is second says nothing
        rollouts.stop(ledger, first, why="enough", actor="bob")
    deployments.deploy(ledger, NAME, OTHER, reason="another", actor="ann")
    with pytest.raises(Overtaken, match="judged against"):
        begin(ledger)


def test_the_end_of_a_rollout_answers_the_request_that_led_to_it(ledger: sa.Engine) -> None:
    request = events.add(ledger, NAME, EventKind.RETRAIN_REQUESTED, {"why": "drift"})
    started = events.add(ledger, NAME, EventKind.RETRAIN_STARTED, {}, caused_by=request)
    passed = events.add(ledger, NAME, EventKind.GATE_PASSED, {}, caused_by=started)
    rollout = begin(ledger, caused_by=passed)
    rollout = rollouts.advance(ledger, rollout, why="fine", actor="watch", detail={})
    assert open_request(ledger, NAME) is not None
    rollouts.stop(ledger, rollout, why="worse", actor="watch")
    assert open_request(ledger, NAME) is None


def prediction(version: str, at: datetime, digest: str) -> Prediction:
    vector = np.array([0.25, 0.75], dtype=np.float32)
    return Prediction(
        id=new_id(int(at.timestamp() * 1000)),
        at=at,
        model_version=version,
        precision="float32",
        label="disc",
        confidence=0.75,
        probabilities=vector,
        embedding=vector,
        properties=vector,
        width=4,
        height=4,
        format="PNG",
        mode="RGB",
        bytes=100,
        image_digest=digest,
        image_url=None,
        source=None,
        latency_ms=3.0,
    )


def test_shadow_answers_stand_beside_their_predictions_and_go_with_them(ledger: sa.Engine) -> None:
    now = datetime.now(UTC)
    rows = [prediction(OLD, now - timedelta(hours=number), f"{number:064x}") for number in range(3)]
    predictions.record(ledger, rows)
    answers = [ShadowAnswer(row.id, NEW, now, "square", 0.5, 1.5, 1.0) for row in rows[:2]]
    answers.append(ShadowAnswer(rows[2].id, NEW, now, fault="not finite"))
    answers.append(ShadowAnswer(new_id(), NEW, now, "disc", 0.9, 1.0, 1.0))  # its prediction is on its way
    shadow_answers.record(ledger, answers)
    shadow_answers.record(ledger, answers)  # a second time, after a commit whose answer was lost
    labels.add(ledger, [Feedback(rows[1].id, "square")])
    found = shadow_answers.between(ledger, NEW, first_id(now - timedelta(days=1)), None, limit=10)
    assert [each.shadow.prediction_id for each in found] == [rows[2].id, rows[1].id, rows[0].id]
    assert [each.shadow.fault for each in found] == ["not finite", None, None]
    assert [each.true_label for each in found] == [None, "square", None]
    assert (found[1].answered, found[1].confidence, found[1].shadow.label) == ("disc", 0.75, "square")
    until = shadow_answers.between(ledger, NEW, rows[2].id, rows[1].id, limit=10)
    assert [each.shadow.prediction_id for each in until] == [rows[2].id]

    removed = retention.delete_expired(ledger, Expired(now - timedelta(minutes=30), None, {}))
    assert removed.rows == 1  # one is too young, and one has a label
    with ledger.connect() as connection:
        left = connection.execute(sa.text("SELECT prediction_id FROM shadow_answers")).scalars().all()
    assert set(left) == {answers[0].prediction_id, answers[1].prediction_id, answers[3].prediction_id}


def test_labelled_answers_come_in_the_order_in_which_they_were_labelled(ledger: sa.Engine) -> None:
    now = datetime.now(UTC)
    rows = [prediction((OLD, NEW)[number % 2], now, f"{number:064x}") for number in range(4)]
    predictions.record(ledger, rows)
    for number in (2, 1, 3):
        labels.add(ledger, [Feedback(rows[number].id, "square")])
    labels.add(ledger, [Feedback(rows[2].id, "disc")])  # corrected: the label changes, its place does not
    start = first_id(now)
    found = predictions.labelled_between(ledger, [OLD, NEW], start, None, limit=10)
    digests = [int(each.image_digest, 16) for each in found]
    assert digests == [2, 1, 3]
    assert [each.true_label for each in found] == ["disc", "square", "square"]
    everything = predictions.answers_between(ledger, NEW, start, None, limit=10)
    assert {int(each.image_digest, 16) for each in everything} == {1, 3}
