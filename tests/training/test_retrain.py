"""Retraining, end to end: a real champion, real images in storage, a real ledger, the real gate."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from perennial.bundle import Bundle, fetch_bundle, new_version, write_bundle
from perennial.errors import (
    InvalidDataset,
    InvalidParameter,
    LeaseHeld,
    WeightsChanged,
)
from perennial.ledger import EventKind, deployments, events, labels, leases, models
from perennial.ledger.labels import Feedback
from perennial.ledger.requests import open_request
from perennial.storage import sha256
from tests.in_process import perennial_here
from tests.training.retrain_world import CLASSES, World, truth
from training import challenger as making
from training.fit import Fitted
from training.material import pinned_rows
from training.promote import promote
from training.publish import publish
from training.retrain import retrain
from training.situation import read_situation

# --- going live ------------------------------------------------------------------------------------------


def test_a_better_model_is_promoted_and_every_step_says_what_caused_it(world: World, checkpoint: Path) -> None:
    world.serve(120, inverted=True, relabel=truth)
    corrupt, unknown = world.serve(2, inverted=True, relabel=truth)
    path = world.storage.local_path(world.storage.key_of(corrupt.image_url or ""))
    assert path is not None
    path.write_bytes(path.read_bytes()[:-50])
    labels.add(world.engine, [Feedback(unknown.id, "zebra")])
    requested = world.request()

    result = world.retrain()

    assert result.outcome == "promoted", result.why
    assert result.exit_code == 0
    assert world.live == result.version
    assert result.gate is not None
    assert result.gate.fresh is not None
    assert result.gate.old is not None
    assert result.gate.fresh.rows == 47
    assert result.gate.fresh.challenger.value > result.gate.fresh.champion.value + 0.2
    assert result.gate.old.rows == 54
    assert {"not those that were predicted on" in skip.reason for skip in result.skipped} == {True, False}
    document = json.loads(json.dumps(result.document()))
    assert document["outcome"] == "promoted"
    assert document["gate"]["fresh"]["p_value"] < 0.05

    trail = events.after(world.engine, "default", requested)
    assert [event.kind for event in trail] == ["retrain_started", "gate_passed", "deployed"]
    assert [event.caused_by for event in trail] == [requested, trail[0].id, trail[1].id]
    assert trail[0].detail["pretrained_sha256"] == sha256(checkpoint.read_bytes())
    assert trail[1].detail["gate"]["fresh"]["rows"] == 47
    tried = {one["name"]: one["fresh"]["value"] for one in trail[1].detail["candidates"]["tried"]}
    assert set(tried) == {"recent_weighted", "all", "importance", "recent_only"}
    assert trail[1].detail["candidates"]["name"] in tried
    assert document["candidates"] == trail[1].detail["candidates"]

    model = models.get(world.engine, "default", result.version or "")
    assert model.parent == world.champion.manifest.version
    assert model.manifest.pretrained == world.champion.manifest.pretrained
    assert model.manifest.dataset.captures == 119  # of two that look alike and are judged on, one is left out
    assert world.retrain().outcome == "nothing_to_do"
    situation = read_situation(world.engine, world.settings)
    assert situation.accuracy_before == world.champion.manifest.metrics["accuracy"].value
    assert (situation.learnt_labels, situation.new_labels) == (trail[0].detail["labels"], 0)

    challenger = pinned_rows(_bundle(world, result.version or ""))
    before = pinned_rows(world.champion)
    assert {digest for digest, row in before.items() if row.split == "test"} <= {
        digest for digest, row in challenger.items() if row.split == "test"
    }

    # After going back, the same gate lets it through by hand: on rows that neither was trained on.
    deployments.roll_back(world.engine, "default", reason="a test", actor="test")
    by_hand = promote(world.engine, world.settings, result.version or "", actor="test")
    assert by_hand.passed, by_hand.why
    assert by_hand.gate is not None
    assert by_hand.gate.fresh == result.gate.fresh
    assert by_hand.gate.old == result.gate.old
    assert world.live == result.version


def test_two_classes_that_swapped_meaning_are_found_and_learnt_anew(world: World) -> None:
    swap = {"red": "green", "green": "red", "blue": "blue"}
    world.serve(150, relabel=swap.__getitem__)
    world.request("concept_drift")
    result = world.retrain()
    assert result.outcome == "promoted", result.why
    assert result.gate is not None
    assert {change.label: change.now for change in result.gate.changed} == {"red": "green", "green": "red"}
    assert result.gate.old is not None
    assert result.gate.old.rows == 18  # blue alone still means what it did
    assert result.gate.fresh is not None
    assert result.gate.fresh.challenger.value > 0.9
    assert result.left_out is not None
    assert result.left_out["original images of a class whose meaning changed"] == 120
    assert result.candidates is not None
    assert "120 older rows are left out in any case" in result.candidates.why
    assert "concept drift: green, red" in result.candidates.why
    assert result.document()["candidates"]["why"] == result.candidates.why
    # The old meanings are no argument for the old model, either.
    back = promote(world.engine, world.settings, world.champion.manifest.version, actor="test")
    assert back.gate is not None
    assert back.gate.old is not None
    assert back.gate.old.rows == 18


# --- staying as it was -----------------------------------------------------------------------------------


def test_wrong_labels_make_a_model_that_is_refused_listed_and_not_live(world: World) -> None:
    random = np.random.default_rng(5)
    world.serve(150, relabel=lambda label: str(random.choice(CLASSES)))
    requested = world.request()
    result = world.retrain()
    assert (result.outcome, result.exit_code) in {("refused", 11), ("waiting", 4)}
    assert world.live == world.champion.manifest.version
    assert result.version in {model.version for model in models.all_of(world.engine, "default")}
    [started, refused] = events.after(world.engine, "default", requested)
    assert (refused.kind, refused.caused_by) == (EventKind.GATE_REFUSED, started.id)
    assert refused.detail["gate"]["fresh"]["champion"]["value"] < 0.6
    assert "on 61 fresh rows the challenger has" in refused.detail["why"]
    assert world.retrain().outcome == "nothing_to_do"

    # By hand it is refused for the same reason, unless forced, which is on record.
    assert result.version is not None
    by_hand = promote(world.engine, world.settings, result.version, actor="test")
    assert by_hand.exit_code == 11
    assert world.live == world.champion.manifest.version
    with pytest.raises(InvalidParameter, match="--reason"):
        promote(world.engine, world.settings, result.version, force=True, actor="test")
    promote(world.engine, world.settings, result.version, force=True, reason="a test of the alarm", actor="test")
    assert world.live == result.version
    last = events.last(world.engine, "default", [EventKind.DEPLOYED])
    assert last is not None
    assert last.detail["forced"] is True
    assert last.detail["reason"] == "a test of the alarm"
    deployments.roll_back(world.engine, "default", reason="enough", actor="test")
    assert world.live == world.champion.manifest.version


def test_with_few_labels_it_waits_and_says_how_many_more(world: World) -> None:
    world.serve(50, inverted=True, relabel=truth)
    world.serve(50, inverted=True)
    world.request()
    result = world.retrain()
    assert (result.outcome, result.exit_code, result.version) == ("waiting", 4, None)
    assert "50 fresh labelled captures" in result.why
    assert "10 more" in result.why
    assert "retrain_started" not in world.kinds()
    assert open_request(world.engine, "default") is not None  # it stays open until there are enough


def test_nothing_is_done_when_nobody_asked(world: World) -> None:
    result = world.retrain()
    assert (result.outcome, result.exit_code) == ("nothing_to_do", 4)


def test_a_changed_pretrained_checkpoint_is_an_error_and_the_champion_stays(world: World, checkpoint: Path) -> None:
    world.serve(70, inverted=True, relabel=truth)
    before = checkpoint.read_bytes()
    try:
        torch.manual_seed(1)
        torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), checkpoint)
        with pytest.raises(WeightsChanged):
            world.retrain(if_due=False)
    finally:
        checkpoint.write_bytes(before)
    assert world.kinds()[-2:] == ["retrain_started", "retrain_failed"]
    assert world.live == world.champion.manifest.version


def test_a_missing_data_folder_is_an_error_and_the_champion_stays(world: World, tmp_path: Path) -> None:
    world.serve(70, inverted=True, relabel=truth)
    settings = world.settings.retrain.model_copy(update={"data": str(tmp_path / "gone")})
    world.settings = world.settings.model_copy(update={"retrain": settings})
    world.request()
    with pytest.raises(InvalidDataset, match="nothing at"):
        world.retrain()
    failed = events.last(world.engine, "default", [EventKind.RETRAIN_FAILED])
    assert failed is not None
    assert failed.detail["error"] == "InvalidDataset"
    assert world.live == world.champion.manifest.version
    assert open_request(world.engine, "default") is None  # it was answered, by a failure


def test_two_at_once_are_one_retrain(world: World) -> None:
    world.request()
    with leases.held(world.engine, "retrain:default", 60), pytest.raises(LeaseHeld) as caught:
        world.retrain()
    assert caught.value.exit_code == 4


def test_a_retrain_that_was_killed_is_taken_up_by_the_next_run(world: World) -> None:
    requested = world.request()
    started = events.add(world.engine, "default", EventKind.RETRAIN_STARTED, {}, caused_by=requested)
    assert open_request(world.engine, "default") is not None
    passed = events.add(world.engine, "default", EventKind.GATE_PASSED, {}, caused_by=started)
    assert open_request(world.engine, "default") is not None  # killed between the gate and the deployment
    deployments.deploy(
        world.engine, "default", world.champion.manifest.version, reason="", actor="test", caused_by=passed
    )
    assert open_request(world.engine, "default") is None


def test_a_challenger_of_a_champion_that_is_no_longer_live_is_not_deployed(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world.serve(70, inverted=True, relabel=truth)
    other = copy_of(world.champion, tmp_path)
    publish(other, world.engine, world.storage)

    def meanwhile(*arguments: Any, **options: Any) -> Fitted:
        deployments.deploy(world.engine, "default", other.manifest.version, reason="by somebody", actor="test")
        return Fitted(copy_of(world.champion, tmp_path), 0.0)

    monkeypatch.setattr(making, "fit", meanwhile)
    result = world.retrain(if_due=False)
    assert result.outcome == "refused"
    assert f"{other.manifest.version} went live while the challenger was trained" in result.why
    assert world.kinds()[-3:] == ["retrain_started", "deployed", "gate_refused"]
    assert world.live == other.manifest.version


def test_a_failure_leaves_the_champion_live_and_is_on_record(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.serve(70, inverted=True, relabel=truth)

    def broken(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(making, "fit", broken)
    with pytest.raises(OSError, match="Input/output"):
        retrain(world.engine, world.settings, if_due=False, reason="by hand, as a test", actor="cli:ann")
    failed = events.last(world.engine, "default", [EventKind.RETRAIN_FAILED])
    assert failed is not None
    assert failed.detail["why"] == "by hand, as a test"
    assert "Input/output" in failed.detail["reason"]
    requested, started = events.after(world.engine, "default")[-3:-1]
    assert [event.detail["actor"] for event in (requested, started, failed)] == ["cli:ann"] * 3
    assert requested.detail["trigger"] == "hand"
    assert [model.version for model in models.all_of(world.engine, "default")] == [world.champion.manifest.version]
    with leases.held(world.engine, "retrain:default", 1):
        pass  # the lease is free again


# --- the command -----------------------------------------------------------------------------------------


def test_the_command_prints_one_json_document_and_exits_with_4_when_there_is_nothing_to_do(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.engine.dispose()
    monkeypatch.setenv("PERENNIAL_RETRAIN__NICENESS", "0")  # this process has other tests to run
    done = perennial_here("retrain", "--if-due", "--json", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert json.loads(done.stdout)["outcome"] == "nothing_to_do"


def copy_of(bundle: Bundle, folder: Path) -> Bundle:
    """The same model under a version of its own."""

    def fill(place: Path) -> None:
        for name in bundle.manifest.files:
            shutil.copyfile(bundle.path / name, place / name)

    return write_bundle(folder, bundle.manifest.model_copy(update={"version": new_version(), "files": {}}), fill)


def _bundle(world: World, version: str) -> Bundle:
    model = models.get(world.engine, "default", version)
    return fetch_bundle(model.bundle_url, model.digest, world.storage, world.settings.cache_path)
