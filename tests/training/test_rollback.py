"""A model that turns out to be worse is undone by itself, on real models, and one that is not stays."""

from __future__ import annotations

import functools
import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from commands import models as models_command
from commands.status import status
from commands.watch import Watcher
from perennial.bundle import Bundle, new_version, write_bundle
from perennial.errors import InvalidBundle, LeaseHeld, LeaseLost, StorageUnavailable
from perennial.ids import new_id
from perennial.images import ImageLimits
from perennial.ledger import EventKind, deployments, events, labels, leases, predictions, retention, watches
from perennial.ledger.connect import writing
from perennial.ledger.labels import Feedback
from perennial.ledger.requests import Trigger, open_request
from perennial.ledger.schema import leases as leases_table
from perennial.ledger.schema import watched_rows
from perennial.ledger.watches import Tally
from perennial.progress import Step
from perennial.story import tell
from perennial.story_page import render
from tests.training.retrain_world import CLASSES, SEED, SIDE, World, answering, begin, truth
from training import datasets, due, rollback
from training.fit import FitRequest, fit
from training.promote import promote
from training.publish import publish
from training.rollback import Look, judge, roll_back_if_worse
from training.situation import fresh_since, read_situation


@pytest.fixture(scope="session")
def mistaught(photos: Path, checkpoint: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A real model, trained on the same photos with the labels of two classes swapped."""
    folder = tmp_path_factory.mktemp("mistaught")
    for label, source in zip(CLASSES, ("green", "blue", "red"), strict=True):
        shutil.copytree(photos / source, folder / "data" / label)
    images = datasets.load(str(folder / "data"), validation=0.15, test=0.3, seed=SEED)
    request = FitRequest(images, "default", "squeezenet1_1", str(checkpoint), "linear_probe", SIDE, SEED, 2)
    return fit(request, bundles=folder / "models", cache=shared_cache, limits=ImageLimits()).bundle


@pytest.fixture(params=["sqlite", "postgresql"])
def shared_world(request: pytest.FixtureRequest, home: Path, champion: Bundle, shared_cache: Path) -> Iterator[World]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""
    yield from begin(home, champion, shared_cache, url)


def force(world: World, bundle: Bundle) -> World:
    """The same world with a bundle forced in; it answers from now on."""
    publish(bundle, world.engine, world.storage)
    promote(world.engine, world.settings, bundle.manifest.version, force=True, reason="trust me", actor="test")
    return replace(world, champion=bundle, graph=answering(bundle.graph))


def copy_of(bundle: Bundle, folder: Path) -> Bundle:
    """The same model under a version of its own."""

    def fill(place: Path) -> None:
        for name in bundle.manifest.files:
            shutil.copyfile(bundle.path / name, place / name)

    return write_bundle(folder, bundle.manifest.model_copy(update={"version": new_version(), "files": {}}), fill)


def choose(world: World, **changes: Any) -> None:
    """Change the settings of `[retrain]`."""
    settings = world.settings.retrain.model_copy(update=changes)
    world.settings = world.settings.model_copy(update={"retrain": settings})


def look(world: World) -> Look:
    return roll_back_if_worse(world.engine, world.settings)


def kept(world: World) -> int:
    with world.engine.connect() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(watched_rows)).scalar_one())


# --- the decision ----------------------------------------------------------------------------------------


def test_of_a_thousand_models_that_are_no_better_and_no_worse_hardly_any_is_undone() -> None:
    random = np.random.default_rng(6)
    runs, rows, alpha = 1000, 200, 0.01

    @functools.cache
    def worse(alone: tuple[int, int]) -> bool:
        return judge(Tally(0, 0, 0, 0, *alone), labels=rows, alpha=alpha)[0] == "worse"

    undone = 0
    for _ in range(runs):
        live, before = random.random((2, rows)) < 0.9  # each has nine of ten right
        after_each = zip((live & ~before).cumsum().tolist(), (before & ~live).cumsum().tolist(), strict=True)
        undone += any(worse(alone) for alone in after_each)
    assert undone <= alpha * runs


@pytest.mark.parametrize(("accuracy", "found"), [(0.5, 1.0), (0.65, 0.97), (0.75, 0.6)])
def test_models_that_are_much_worse_are_undone_within_the_window(accuracy: float, found: float) -> None:
    random = np.random.default_rng(7)
    undone = 0
    for _ in range(200):
        before, live = random.random(200) < 0.9, random.random(200) < accuracy
        found_by = (live, before, live & ~before, before & ~live)
        tally = Tally(200, 200, *(int(each.sum()) for each in found_by))
        undone += judge(tally, labels=200, alpha=0.01)[0] == "worse"
    assert undone >= found * 200


def test_enough_labels_without_proof_are_a_pass() -> None:
    assert judge(Tally(199, 199, 100, 100, 5, 5), labels=200, alpha=0.01)[0] == "open"
    assert judge(Tally(200, 200, 100, 100, 5, 5), labels=200, alpha=0.01)[0] == "passed"
    assert judge(Tally(200, 200, 100, 140, 5, 45), labels=200, alpha=0.01)[0] == "worse"
    assert judge(Tally(9, 9, 0, 9, 0, 9), labels=200, alpha=0.01)[0] == "worse"


# --- undone by itself ------------------------------------------------------------------------------------


def test_a_bad_model_forced_in_is_rolled_back_by_itself_within_its_window(
    shared_world: World, mistaught: Bundle
) -> None:
    world, good = shared_world, shared_world.live
    world.serve(20, relabel=truth)  # of the good one: not what the bad one is judged on
    bad = force(world, mistaught)
    assert look(world).why.startswith(f"nothing to compare on since {mistaught.manifest.version} went live; on 200 ")
    outcomes = []
    for _ in range(20):
        bad.serve(5, relabel=truth)
        outcomes.append(look(world))
        if outcomes[-1].outcome != "watching":
            break
    *before, last = outcomes
    assert (last.outcome, last.exit_code, last.live, world.live) == ("rolled_back", 0, good, good)
    assert before, "five labels prove nothing"
    assert {each.outcome for each in before} == {"watching"}
    assert {each.exit_code for each in before} == {4}

    forced, undone = events.after(world.engine, "default", kinds=[EventKind.DEPLOYED, EventKind.ROLLED_BACK])[-2:]
    assert (undone.kind, undone.caused_by) == (EventKind.ROLLED_BACK, forced.id)
    detail = undone.detail
    assert (detail["version"], detail["replaces"], detail["actor"]) == (good, mistaught.manifest.version, "watch")
    assert detail["digests"] == {good: world.champion.digest, mistaught.manifest.version: mistaught.digest}
    assert "worse beyond chance" in detail["reason"]
    numbers = detail["watch"]
    assert numbers == last.numbers
    assert numbers["rows"] == 5 * len(outcomes) <= numbers["of"] == 200
    assert numbers["evidence"] >= numbers["needed"] == 100
    assert numbers["live"]["high"] < numbers["before"]["low"]
    assert numbers["only_before"] > numbers["only_live"]
    # What it says of the live model is what that one answered.
    rows = predictions.labelled_captures(world.engine, [mistaught.manifest.version])
    right = sum(row.prediction.label == row.true_label for row in rows)
    assert numbers["live"]["value"] == pytest.approx(right / len(rows))

    assert look(world).outcome == "nothing_to_do", "what was gone back to is not watched"
    story = tell(world.engine, "default", mistaught.manifest.version)
    assert story.status == "rolled back"
    [comparison] = story.comparisons
    assert (comparison.outcome, comparison.compared_with, comparison.event) == ("rolled back", good, undone.id)
    assert "which it replaced" in render(story)


def test_a_model_that_is_as_good_stays_and_a_look_costs_only_what_is_new(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(world, watch_labels=30)
    twin = force(world, copy_of(world.champion, tmp_path))
    twin.serve(20, relabel=truth)
    found = look(world)
    assert (found.outcome, found.numbers and found.numbers["rows"], kept(world)) == ("watching", 20, 20)
    assert found.numbers is not None
    assert found.numbers["live"] == found.numbers["before"], "the same graph has the same answers"
    story = tell(world.engine, "default", twin.live)
    assert [each.outcome for each in story.comparisons] == ["open"]

    with monkeypatch.context() as patch:
        patch.setattr(rollback, "Graph", None)  # nothing is asked of the model before
        assert look(world).numbers == found.numbers
    twin.serve(10, relabel=truth)
    last = look(world)
    assert (last.outcome, last.exit_code, world.live) == ("passed", 4, twin.champion.manifest.version)
    assert last.numbers is not None
    assert last.numbers["rows"] == 30
    passed = events.last(world.engine, "default", [EventKind.WATCH_PASSED])
    assert passed is not None
    assert (passed.detail["version"], passed.detail["watch"]) == (world.live, last.numbers)
    assert "not worse beyond chance" in passed.detail["why"]
    assert look(world).outcome == "nothing_to_do"
    story = tell(world.engine, "default", world.live)
    assert [each.outcome for each in story.comparisons] == ["passed"]
    assert "which it replaced" in render(story)


def test_no_more_images_are_looked_at_than_the_watch_needs(world: World, tmp_path: Path) -> None:
    choose(world, watch_labels=10)
    force(world, copy_of(world.champion, tmp_path)).serve(18, relabel=truth)
    found = look(world)
    assert (found.outcome, found.numbers and found.numbers["labelled"], kept(world)) == ("passed", 10, 10)


def test_a_label_that_is_corrected_counts_as_it_is_now(world: World, mistaught: Bundle) -> None:
    bad = force(world, mistaught)
    rows = bad.serve(6, relabel=truth)
    first = look(world).numbers
    assert first is not None
    assert first["only_before"] > 0
    labels.add(world.engine, [Feedback(row.id, row.label) for row in rows])
    second = look(world).numbers
    assert second is not None
    assert (second["rows"], second["live"]["value"], second["only_before"]) == (6, 1.0, 0)
    assert kept(world) == 6


def test_an_image_that_was_sent_twice_counts_once(world: World, mistaught: Bundle) -> None:
    bad = force(world, mistaught)
    rows = bad.serve(4, relabel=truth)
    again = [replace(row, id=new_id()) for row in rows]
    predictions.record(world.engine, again)
    labels.add(world.engine, [Feedback(row.id, "red") for row in again])
    found = look(world)
    assert found.numbers is not None
    assert found.numbers["rows"] == 4


# --- where something is amiss ----------------------------------------------------------------------------


def test_images_that_are_gone_or_damaged_are_left_out_counted_and_said(world: World, mistaught: Bundle) -> None:
    bad = force(world, mistaught)
    rows = bad.serve(10, relabel=truth)
    expired, deleted, damaged = rows[:3]
    retention.forget_images(world.engine, [expired.image_digest])
    assert deleted.image_url
    assert damaged.image_url
    world.storage.delete(world.storage.key_of(deleted.image_url))
    world.storage.write(world.storage.key_of(damaged.image_url), b"not it")
    found = look(world)
    assert found.numbers is not None
    assert (found.numbers["rows"], found.numbers["skipped"], found.numbers["without_image"]) == (7, 2, 1)
    assert {skip.location for skip in found.skipped} == {deleted.image_url, damaged.image_url}
    assert "2 could not be compared, such as" in found.why
    assert "the images of 1 labelled predictions were not captured, or not kept" in found.why
    json.dumps(found.document())


@pytest.mark.parametrize("fault", ["gone", "changed"])
def test_without_the_bundle_of_the_model_before_the_live_one_stays(world: World, mistaught: Bundle, fault: str) -> None:
    bad = force(world, mistaught)
    bad.serve(20, relabel=truth)
    stored = world.settings.home / "storage" / "bundles" / "default" / world.champion.manifest.version
    if fault == "gone":
        shutil.rmtree(stored)
    else:
        os.truncate(stored / "graph.onnx", 1000)
    with pytest.raises((StorageUnavailable, InvalidBundle), match=r"stays live, as .* put its bundle back"):
        look(world)
    assert (world.live, kept(world)) == (mistaught.manifest.version, 0)


def test_a_look_whose_lease_was_taken_over_changes_nothing(world: World, mistaught: Bundle) -> None:
    bad = force(world, mistaught)
    bad.serve(40, relabel=truth)

    def lose(_: Step) -> None:
        with writing(world.engine) as connection:
            connection.execute(sa.update(leases_table).values(holder="another 1 2"))

    with pytest.raises(LeaseLost):
        roll_back_if_worse(world.engine, world.settings, progress=lose)
    assert (world.live, kept(world)) == (mistaught.manifest.version, 0)
    with writing(world.engine) as connection:
        connection.execute(sa.delete(leases_table))
    assert look(world).outcome == "rolled_back", "the next one finishes"


def test_what_somebody_else_deployed_meanwhile_stays(world: World, mistaught: Bundle, tmp_path: Path) -> None:
    bad = force(world, mistaught)
    bad.serve(40, relabel=truth)
    other = copy_of(world.champion, tmp_path)

    def meanwhile(step: Step) -> None:
        if step.done == step.total:
            force(world, other)

    found = roll_back_if_worse(world.engine, world.settings, progress=meanwhile)
    assert (found.outcome, found.live, world.live) == ("nothing_to_do", *(other.manifest.version,) * 2)
    assert "nothing was changed" in found.why


def test_two_that_look_at_once_go_back_once(shared_world: World, mistaught: Bundle) -> None:
    world = shared_world
    bad = force(world, mistaught)
    bad.serve(40, relabel=truth)
    start = threading.Barrier(2)
    ended: list[str] = []

    def run() -> None:
        start.wait()
        try:
            ended.append(look(world).outcome)
        except LeaseHeld:
            ended.append("held")

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(ended) in (["held", "rolled_back"], ["nothing_to_do", "rolled_back"])
    assert deployments.count_rollbacks(world.engine, "default") == {watches.ACTOR: 1}
    assert leases.holders(world.engine, "watch:") == []


# --- what follows ----------------------------------------------------------------------------------------


def test_after_a_rollback_nothing_is_retrained_at_once_and_never_judged_on_the_same_labels(
    world: World, mistaught: Bundle
) -> None:
    world.serve(80, relabel=truth)
    bad = force(world, mistaught)
    bad.serve(40, relabel=truth)
    requested = world.request()
    assert open_request(world.engine, "default") is not None
    assert look(world).outcome == "rolled_back"
    assert open_request(world.engine, "default") is None, "what was asked of the bad model is answered"

    choose(world, every_labels=50)
    found = due.decide(read_situation(world.engine, world.settings), world.settings.retrain)
    assert (found.due, 3500 < found.cooldown_left <= 3600) == (False, True)
    assert "the last retrain or rollback was less than retrain.cooldown ago" in found.why

    choose(world, cooldown=0.0)
    assert world.request() > requested  # the check of the model that is live again asks, too
    request = open_request(world.engine, "default")
    assert request is not None
    assert not due.is_worth_a_try(world.engine, world.settings)
    waiting = world.retrain()
    assert (waiting.outcome, waiting.labels) == ("waiting", 0), "its labels from before let the bad one through"
    assert fresh_since(world.engine, "default", request, by_hand=True) is None, "a person may ask all the same"
    world.serve(60, relabel=truth)
    assert due.is_worth_a_try(world.engine, world.settings)
    decision = due.decide(read_situation(world.engine, world.settings), world.settings.retrain)
    assert decision.trigger is Trigger.DRIFT


# --- as it is run ----------------------------------------------------------------------------------------


def test_the_command_says_what_it_found_and_needs_no_reason(
    world: World, mistaught: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(models_command.app, ["rollback", *arguments])

    assert "it replaced no other model" in run("--if-worse").stdout
    bad = force(world, mistaught)
    bad.serve(3, relabel=truth)
    assert "InvalidParameter" in repr(run("--if-worse", "--reason", "x").exception)
    done = run("--if-worse", "--json")
    assert (done.exit_code, json.loads(done.stdout)["outcome"]) == (4, "watching")
    status(as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["watch"]["rows"], document["watch"]["of"]) == (3, 200)
    status()
    assert "on 3 of 200 labelled" in capsys.readouterr().out
    shown = CliRunner().invoke(models_command.app, ["show"]).stdout
    assert "open" in shown
    assert "on 3 labelled images" in " ".join(shown.split())

    bad.serve(40, relabel=truth)
    done = run("--if-worse")
    assert done.exit_code == 0
    assert done.stdout.startswith("rolled back, ")
    status(as_json=True)
    assert json.loads(capsys.readouterr().out)["watch"] is None
    choose(world, watch_labels=0)
    assert look(world).why == "retrain.watch_labels is 0"


def test_the_watcher_looks_in_a_process_of_its_own(
    world: World, mistaught: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    watcher = Watcher(world.settings)
    assert watcher._look_after()
    assert capsys.readouterr().err == "", "nothing is started where no watch is on"
    good = world.live
    force(world, mistaught).serve(40, relabel=truth)
    with leases.held(world.engine, "watch:default", 60):
        assert watcher._look_after(), "it is no failure that another watcher was faster"
    assert "another process looks at it just now" in " ".join(capsys.readouterr().err.split())
    assert world.live != good
    assert watcher._look_after()
    assert world.live == good
    assert "since it went live: rolled back, on 40 labelled images" in " ".join(capsys.readouterr().err.split())
