"""Labels that are no class of the model: they count nowhere, until enough different images have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from perennial.bundle import write_bundle
from perennial.ids import new_id
from perennial.ledger import labels, models, new_classes, predictions
from perennial.ledger.labels import Feedback
from perennial.ledger.predictions import Prediction
from tests.perennial.conftest import fill, manifest

CLASSES = ("disc", "square")
FIRST, SECOND, OTHER = "20260101-000000-00001", "20260101-000000-00002", "20260101-000000-00003"


@pytest.fixture
def models_of_two_names(engine: sa.Engine, tmp_path: Path) -> None:
    for version, name in ((FIRST, "shapes"), (SECOND, "shapes"), (OTHER, "birds")):
        made = manifest(version).model_copy(update={"name": name})
        models.register(engine, write_bundle(tmp_path, made, fill), f"file:///{version}")


Send = Callable[..., str]


@pytest.fixture
def send(engine: sa.Engine, models_of_two_names: None) -> Send:
    """Records a prediction of an image and its labels, one after the other: `send("image 1", "star", "disc")`."""

    def one(image: str, *given: str, version: str = FIRST, captured: bool = True, at: datetime | None = None) -> str:
        row = Prediction(
            id=new_id(),
            at=at or datetime.now(UTC),
            model_version=version,
            precision="float32",
            label="disc",
            confidence=0.75,
            probabilities=np.array([0.75, 0.25], np.float32),
            embedding=np.zeros(4, np.float32),
            properties=np.zeros(10, np.float32),
            width=8,
            height=8,
            format="PNG",
            mode="RGB",
            bytes=1,
            image_digest=image,
            image_url=f"file:///{image}" if captured else None,
            source=None,
            latency_ms=1.0,
        )
        predictions.record(engine, [row])
        for label in given:
            labels.add(engine, [Feedback(row.id, label, known=label in CLASSES)])
        return row.id

    return one


def test_different_captured_images_are_counted_by_their_last_label(engine: sa.Engine, send: Send) -> None:
    for number in range(3):
        send(f"star {number}", "star")
    send("star 0", "star", version=SECOND)  # the same image again
    send("star 3", "disc", "star", version=SECOND)  # corrected to it
    send("star 4", "star", "disc")  # corrected from it
    send("star 5", "star")
    send("star 5", "disc")  # the same image, labelled anew where it came again
    send("star 6", "star", captured=False)  # nothing to train on
    send("star 7", "star", version=OTHER)  # another model's
    send("moon 0", "moon", captured=False)

    found = new_classes.find(engine, "shapes", CLASSES, 4)
    assert found.images == {"moon": 0, "star": 4}
    assert (found.classes, found.too_few) == ({"star": 4}, {"moon": 0})
    assert new_classes.find(engine, "shapes", CLASSES, 5).classes == {}
    assert new_classes.find(engine, "shapes", CLASSES, 0).classes == {}
    assert new_classes.find(engine, "shapes", [*CLASSES, "star"], 4).images == {"moon": 0}
    assert new_classes.find(engine, "birds", CLASSES, 1).classes == {"star": 1}
    assert "3 of 4 labels" in new_classes.NewLabels({"star": 3}, 4).missing("star")
    assert "label 1 more images" in new_classes.NewLabels({"star": 3}, 4).missing("star")


def test_no_reader_counts_a_new_label_unless_it_is_told_to(engine: sa.Engine, send: Send) -> None:
    began = datetime.now(UTC)
    first = send("a", "disc")
    send("b", "disc", "star")  # taken back: what it was before counts no longer
    send("c", "star")
    last = send("d")

    def seen(new: Sequence[str] | None) -> tuple[object, ...]:
        answers = predictions.labelled_answers(engine, FIRST, 10, new=new)
        assert answers == predictions.labelled_answers_between(engine, FIRST, first, last, new=new)
        window = predictions.latest(engine, FIRST, 10, new=new)
        span = [(began, datetime.now(UTC))]
        again = predictions.received_within(engine, FIRST, span, precision="float32", sample=10, new=new)
        assert [row.true_label for row in again] == [row.true_label for row in window]
        return [row.true_label for row in window], [row.true_label for row in answers]

    assert seen(()) == (["disc", None, None, None], ["disc"])
    assert seen(["moon"]) == seen(())
    assert seen(["star"]) == (["disc", "star", "star", None], ["disc", "star", "star"])
    assert seen(None) == seen(["star"])
    assert predictions.count_labelled_captures(engine, [FIRST]) == 2
    assert predictions.count_labelled_captures(engine, [FIRST], new=["star"]) == 3
    assert predictions.count_labelled_captures(engine, [FIRST], labelled_since=began, new=["star"]) == 3
    assert [row.true_label for row in predictions.labelled_captures(engine, [FIRST])] == ["disc", "star", "star"]


def test_names_are_kept_up_to_a_number_and_only_such_as_can_be_stored(
    engine: sa.Engine, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_classes, "MOST_LABELS", 3)
    kept = send("a", "star")
    send("b", "moon")
    send("c", "eagle", version=OTHER)  # takes no room of another model

    def admitted(wanted: Sequence[str]) -> set[str]:
        return new_classes.admitted(wanted, new_classes.names(engine, "shapes"))

    odd = ["", " ", " x", "x ", "a\x00b", "\ud800", "x" * 201, "a\nb"]
    assert admitted(odd) == set()
    assert admitted([*odd, "star", "sun", "sun", "comet"]) == {"star", "sun"}
    send("d", "sün")
    assert admitted(["star", "sün", "comet"]) == {"star", "sün"}
    labels.add(engine, [Feedback(kept, "disc")])  # a mistake that was corrected makes room
    assert admitted(["star", "comet"]) == {"star"}


def test_looking_for_new_labels_walks_an_index_of_these_alone(engine: sa.Engine, send: Send) -> None:
    for number in range(3):
        send(f"star {number}", "star")
    with engine.connect() as connection:
        plans = []
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text("SET enable_seqscan = off"))

        def explain(_: object, cursor: object, statement: str, parameters: object, *rest: object) -> None:
            if statement.startswith("SELECT"):
                plans.append((statement, parameters))

        sa.event.listen(engine, "before_cursor_execute", explain)
        new_classes.find(engine, "shapes", CLASSES, 3)
        sa.event.remove(engine, "before_cursor_execute", explain)
        [(statement, parameters)] = plans
        explaining = "EXPLAIN" if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        plan = "\n".join(str(row) for row in connection.exec_driver_sql(f"{explaining} {statement}", parameters))
    assert "ix_labels_id" in plan, plan
    assert "ix_labels_prediction_id_id" in plan, plan
    assert "SCAN labels" not in plan.replace("SCAN labels USING", ""), plan
    assert "SCAN predictions" not in plan, plan
