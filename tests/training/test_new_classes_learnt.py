"""A class that was not there arrives by feedback: a retrain learns it, once enough images have it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from perennial import event_wording
from perennial.bundle import fetch_bundle
from perennial.errors import InvalidDataset
from perennial.graph import Graph
from perennial.images import prepare
from perennial.ledger import events, models
from perennial.settings import Settings
from tests.training.retrain_world import CLASSES, STRANGE, World, picture, truth
from training import due
from training.captures import Capture, Captures, arriving
from training.dry_run import plan
from training.material import pinned_rows
from training.meaning import changed_classes
from training.situation import new_labels_of


def test_a_class_that_arrives_is_learnt_judged_and_told(world: World) -> None:
    world.serve(90, relabel=truth)
    world.serve_strange(19)
    world.serve_strange(2, "yelow")
    before = plan(world.engine, world.settings, if_due=False).document()["labels"]
    assert before["new_classes"] == {}
    assert before["too_few"] == {STRANGE: 19, "yelow": 2}
    assert before["fresh"] == 90
    assert any("19 of 20 labels" in reason for reason in before["left_out"])
    world.serve_strange(11)
    requested = world.request(start=events.after(world.engine, "default")[0].at.isoformat())
    now = plan(world.engine, world.settings, if_due=True).document()["labels"]
    assert (now["new_classes"], now["too_few"], now["fresh"]) == ({STRANGE: 30}, {"yelow": 2}, 120)

    result = world.retrain()

    assert result.outcome == "promoted", result.why
    assert world.live == result.version
    document = json.loads(json.dumps(result.document()))
    assert document["new_classes"] == {STRANGE: 30}
    assert {"2 of 20 labels" in skip.reason for skip in result.skipped} == {True}
    assert result.gate is not None
    recall = result.gate.classes[STRANGE]
    assert (recall.champion, recall.rows >= 8, recall.challenger >= recall.rows - 2) == (0, True, True)
    trail = events.after(world.engine, "default", requested)
    assert [event.kind for event in trail] == ["retrain_started", "gate_passed", "deployed"]
    assert [event.detail.get("new_classes") for event in trail[:2]] == [{STRANGE: 30}] * 2
    assert f"new: {STRANGE} (30 labels)" in event_wording.what(trail[0])
    assert f"new: {STRANGE} (30 labels)" in event_wording.what(trail[1])

    model = models.get(world.engine, "default", result.version or "")
    assert model.manifest.classes == (*CLASSES, STRANGE)
    challenger = fetch_bundle(model.bundle_url, model.digest, world.storage, world.settings.cache_path)
    sides = Counter(row.split for row in pinned_rows(challenger).values() if row.label == STRANGE)
    assert min(sides["train"], sides["validation"], sides["test"]) >= 1, sides
    graph = Graph(challenger.graph, threads=1)
    images = [prepare(picture(STRANGE, 9000 + number), challenger.manifest.input).pixels for number in range(10)]
    answers = [model.manifest.classes[int(graph.run(image[None]).probabilities[0].argmax())] for image in images]
    assert answers.count(STRANGE) >= 8
    # What the new model knows is no new label any longer.
    assert new_labels_of(world.engine, world.settings, world.live).images == {"yelow": 2}


def test_of_a_class_that_arrives_slowly_every_image_is_fresh(world: World) -> None:
    world.serve_strange(20)
    rows = world.serve(60, relabel=truth)
    world.request(start=rows[0].at.isoformat())
    labels = plan(world.engine, world.settings, if_due=True).document()["labels"]
    assert (labels["fresh"], labels["older"]) == (80, 0)
    for least, worth in ((80, True), (81, False)):
        assert due.is_worth_a_try(world.engine, _with(world, min_labels=least)) is worth


def test_a_new_class_whose_images_are_gone_stays_out(world: World) -> None:
    world.serve(50, relabel=truth)
    lost = world.serve_strange(20)[0]
    path = world.storage.local_path(world.storage.key_of(lost.image_url or ""))
    assert path is not None
    path.unlink()
    result = world.retrain(if_due=False)
    assert (result.outcome, result.labels, result.new_classes) == ("waiting", 50, {})
    assert sum("19 can be read, label 1 more so" in skip.reason for skip in result.skipped) == 19


def test_a_class_with_one_label_can_be_learnt_where_the_settings_say_so(world: World) -> None:
    world.settings = _with(world, new_class_labels=1)
    world.serve(70, inverted=True, relabel=truth)
    world.serve_strange(1)
    result = world.retrain(if_due=False)
    assert result.outcome == "promoted", result.why
    assert result.new_classes == {STRANGE: 1}


def test_a_class_of_one_original_image_is_refused_in_clear_words(world: World, photos: Path, tmp_path: Path) -> None:
    for label in CLASSES:
        (tmp_path / label).mkdir(parents=True)
        for number in range(1 if label == "red" else 60):
            shutil.copy(photos / label / f"{number}.png", tmp_path / label)
    world.settings = _with(world, data=str(tmp_path))
    world.serve(70, relabel=truth)
    with pytest.raises(InvalidDataset, match="class 'red' has 1 readable image to train on and needs at least 3"):
        world.retrain(if_due=False)
    assert world.kinds()[-1] == "retrain_failed"
    assert world.live == world.champion.manifest.version


def test_a_class_that_arrives_says_of_no_other_that_it_changed(world: World) -> None:
    answers = [("red", "red")] * 20 + [("red", STRANGE)] * 60
    metrics = world.champion.manifest.per_class
    assert changed_classes(answers, metrics, alpha=0.05) == ()
    [changed] = changed_classes([("red", "red")] * 20 + [("red", "blue")] * 60, metrics, alpha=0.05)
    assert (changed.label, changed.now) == ("red", "blue")


def test_only_classes_with_enough_captures_at_hand_arrive(world: World) -> None:
    at = events.after(world.engine, "default")[0].at

    def capture(number: int, label: str) -> Capture:
        return Capture(f"{number:064x}", f"file:///{number}.png", label, "red", "v", at)

    fresh = tuple(capture(number, "yellow" if number < 3 else "red") for number in range(6))
    older = tuple(capture(number, "pink") for number in range(10, 12))
    left, counts = arriving(Captures(fresh, older, ()), CLASSES, 3)
    assert counts == {"yellow": 3}
    assert (len(left.fresh), len(left.older), len(left.skipped)) == (6, 0, 2)


def _with(world: World, **changes: Any) -> Settings:
    return world.settings.model_copy(update={"retrain": world.settings.retrain.model_copy(update=changes)})
