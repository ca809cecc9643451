"""Which deployments are watched, and what both models are compared on: the same on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from perennial.bundle import Bundle
from perennial.ids import new_id
from perennial.ledger import EventKind, deployments, events, labels, models, predictions, watches
from perennial.ledger.connect import writing
from perennial.ledger.labels import Feedback
from perennial.ledger.watches import Tally, Watch, WatchedRow
from tests.perennial.test_ledger import prediction

A, B, C = (f"20260101-000000-0000{number}" for number in (1, 2, 3))


@pytest.fixture
def shelf(engine: sa.Engine, made_bundle: Callable[[str], Bundle]) -> sa.Engine:
    """Three models, none of them live."""
    for version in (A, B, C):
        models.register(engine, made_bundle(version), f"file:///bundles/{version}")
    return engine


def deploy(engine: sa.Engine, *versions: str) -> None:
    for version in versions:
        deployments.deploy(engine, "shapes", version, reason="new", actor="test")


def back(engine: sa.Engine) -> None:
    deployments.roll_back(engine, "shapes", reason="worse", actor="test")


def watched(engine: sa.Engine) -> tuple[str, str] | None:
    found = watches.open_watch(engine, "shapes")
    return None if found is None else (found.version, found.before)


def began(engine: sa.Engine) -> Watch:
    found = watches.open_watch(engine, "shapes")
    assert found is not None
    return found


def answered(engine: sa.Engine, answer: str, label: str | None = None, *, image: str = "", version: str = B) -> str:
    """A prediction that is made now; its id."""
    identifier = new_id()
    row = prediction(id=identifier, label=answer, image_digest=image or identifier, model_version=version)
    predictions.record(engine, [row])
    if label is not None:
        labels.add(engine, [Feedback(identifier, label)])
    return identifier


def test_what_replaces_another_model_is_watched_and_what_was_gone_back_to_is_not(shelf: sa.Engine) -> None:
    assert watched(shelf) is None
    deploy(shelf, A)
    assert watched(shelf) is None, "the first has none to be compared with"
    deploy(shelf, B)
    assert watched(shelf) == (B, A)
    first = began(shelf)
    deploy(shelf, B)
    assert began(shelf) == first, "deployed again while it is live, it goes on being watched"
    back(shelf)
    assert watched(shelf) is None, "two models never go to and fro"
    deploy(shelf, A)
    assert watched(shelf) is None
    deploy(shelf, C)
    assert watched(shelf) == (C, A), "what was rolled back is not gone back to"
    back(shelf)
    assert watched(shelf) is None, "going back by hand ends it"
    deploy(shelf, B)
    assert watched(shelf) == (B, A), "whoever deploys it again has it watched again"


def test_a_watch_that_was_passed_is_over_and_the_next_deployment_has_its_own(shelf: sa.Engine) -> None:
    deploy(shelf, A, B)
    events.add(shelf, "shapes", EventKind.WATCH_PASSED, {}, caused_by=began(shelf).event)
    assert watched(shelf) is None
    deploy(shelf, B)
    assert watched(shelf) is None
    deploy(shelf, C)
    assert watched(shelf) == (C, B)


def test_unseen_are_labelled_captures_of_the_live_version_since_then(shelf: sa.Engine) -> None:
    deploy(shelf, A)
    answered(shelf, "disc", "disc", version=B)  # an earlier life of B
    deploy(shelf, B)
    watch = began(shelf)
    second, first, _ = (answered(shelf, "disc") for _ in range(3))
    labels.add(shelf, [Feedback(first, "square")])
    labels.add(shelf, [Feedback(second, "disc")])
    answered(shelf, "disc", "disc", version=A)
    bare = new_id()
    predictions.record(shelf, [prediction(id=bare, image_url=None, model_version=B)])
    labels.add(shelf, [Feedback(bare, "disc")])

    assert [row.prediction_id for row in watches.unseen(shelf, watch, 10)] == [first, second]
    assert [row.prediction_id for row in watches.unseen(shelf, watch, 1)] == [first]
    assert watches.count_without_image(shelf, watch) == 1
    with writing(shelf) as connection:
        watches.add(connection, watch.deployment, [WatchedRow(first, first, "disc", 0.75, "square", 0.75)])
    assert [row.prediction_id for row in watches.unseen(shelf, watch, 10)] == [second]
    assert watches.answers(shelf, watch) == {first: ("square", 0.75)}


def test_an_image_counts_once_with_its_last_label_and_a_corrected_one_as_it_is_now(shelf: sa.Engine) -> None:
    deploy(shelf, A, B)
    watch = began(shelf)
    one, other = (answered(shelf, "disc", "square", image="same") for _ in range(2))
    alone = answered(shelf, "disc", "disc")
    rows = [WatchedRow(each, "same", "disc", 0.75, "square", 0.75) for each in (one, other)]
    new = [WatchedRow(alone, alone, "disc", 0.75, "square", 0.75)]
    with writing(shelf) as connection:
        watches.add(connection, watch.deployment, rows)
        watches.add(connection, watch.deployment, rows)
    assert watches.tally(shelf, watch) == Tally(1, 1, live=0, before=1, only_live=0, only_before=1)
    assert watches.tally(shelf, watch, new) == Tally(2, 2, live=1, before=1, only_live=1, only_before=1)
    labels.add(shelf, [Feedback(one, "disc")])
    assert watches.tally(shelf, watch) == Tally(1, 1, live=1, before=0, only_live=1, only_before=0)
    labels.add(shelf, [Feedback(other, "triangle")])
    assert watches.tally(shelf, watch) == Tally(1, 1)


def test_a_label_that_the_model_before_does_not_know_is_its_error(shelf: sa.Engine) -> None:
    deploy(shelf, A, B)
    watch = began(shelf)
    arrived = answered(shelf, "triangle", "triangle")
    found = watches.tally(shelf, watch, [WatchedRow(arrived, arrived, "triangle", 0.75, "disc", 0.75)])
    assert found == Tally(1, 1, live=1, before=0, only_live=1, only_before=0)
    document = found.document()
    assert (document["rows"], document["live"]["value"], document["before"]["value"]) == (1, 1.0, 0.0)
    assert 0 < document["live"]["low"] < 1


def test_rollbacks_are_counted_by_actor(shelf: sa.Engine) -> None:
    deploy(shelf, A, B, C)
    back(shelf)
    deployments.deploy(shelf, "shapes", A, reason="worse", actor=watches.ACTOR, kind=EventKind.ROLLED_BACK, replaces=B)
    assert deployments.count_rollbacks(shelf, "shapes") == {"test": 1, "watch": 1}
    assert deployments.count_rollbacks(shelf, "other") == {}
