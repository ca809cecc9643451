"""`perennial models` and `perennial status`, on a real bundle and a real ledger."""

from __future__ import annotations

import getpass
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from PIL import Image
from typer.testing import CliRunner, Result

from commands import models as models_command
from commands import rollout as rollout_command
from commands.status import status
from perennial.bundle import Bundle, new_version, write_bundle
from perennial.errors import InvalidParameter, NoLiveModel, NothingToDo, UnknownModel
from perennial.images import ImageLimits
from perennial.ledger import EventKind, checks, deployments, events, open_ledger, rollouts
from perennial.settings import load_settings
from perennial.storage import Storage
from tests.in_process import perennial_here

# BentoML 1.4 imports a name that pathspec has deprecated.


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A real model of dark and bright pictures."""
    from training import datasets
    from training.fit import FitRequest, fit

    folder = tmp_path_factory.mktemp("models-command")
    for label, shade in (("bright", 180), ("dark", 20)):
        (folder / "data" / label).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (40, 40), (shade + 3 * number, shade, shade)).save(folder / f"data/{label}/{number}.png")
    images = datasets.load(str(folder / "data"), validation=0.2, test=0.3, seed=0)
    request = FitRequest(images, "default", "squeezenet1_1", "none", "linear_probe", 48, 0, 1)
    return fit(request, bundles=folder / "models", cache=folder / "cache", limits=ImageLimits()).bundle


class Shop:
    """A ledger with two registered models, and the command."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        from training.publish import publish

        settings = load_settings()
        self.folder = folder
        self.engine: sa.Engine = open_ledger(settings.ledger_url)
        self.versions = []
        for _ in range(2):
            copy = copy_of(bundle, folder)
            publish(copy, self.engine, Storage(settings.blobs_url))
            self.versions.append(copy.manifest.version)

    def deploy(self, version: str) -> None:
        deployments.deploy(self.engine, "default", version, reason="as a test", actor="test")

    @property
    def live(self) -> str:
        return deployments.live(self.engine, "default").version

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(models_command.app, list(arguments), catch_exceptions=True)


def copy_of(bundle: Bundle, folder: Path) -> Bundle:
    """The same model under a version of its own."""

    def fill(place: Path) -> None:
        for name in bundle.manifest.files:
            shutil.copyfile(bundle.path / name, place / name)

    return write_bundle(folder, bundle.manifest.model_copy(update={"version": new_version(), "files": {}}), fill)


@pytest.fixture
def shop(home: Path, trained: Bundle, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(trained, tmp_path)
    yield shop
    shop.engine.dispose()


def test_list_names_every_model_and_marks_the_live_one(shop: Shop) -> None:
    first, second = shop.versions
    shop.deploy(first)
    document = json.loads(shop.run("list", "--json").stdout)
    assert [(entry["version"], entry["live"]) for entry in document] == [(first, True), (second, False)]
    assert 0.0 <= document[0]["metrics"]["accuracy"]["low"] <= document[0]["metrics"]["accuracy"]["value"] <= 1.0
    assert document[0]["created_at"].startswith("20")
    shown = shop.run("list").stdout
    assert first in shown
    assert second in shown
    assert shown.count("live") == 1


def test_the_first_promotion_has_nothing_to_be_better_than(shop: Shop) -> None:
    first, _ = shop.versions
    done = shop.run("promote", first, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["outcome"] == "promoted"
    assert shop.live == first
    assert deployments.live(shop.engine, "default").actor == f"cli:{getpass.getuser()}"
    assert isinstance(shop.run("promote", first).exception, NothingToDo)


def test_a_model_that_cannot_be_shown_to_be_better_is_refused_with_code_11(shop: Shop) -> None:
    first, second = shop.versions
    shop.deploy(first)
    done = shop.run("promote", second, "--json")
    assert done.exit_code == 11, done.output
    document = json.loads(done.stdout)
    assert document["outcome"] == "refused"
    assert "no fresh labelled rows" in document["why"]
    assert document["gate"]["old"]["difference"]["value"] == 0.0
    assert shop.live == first
    refused = events.last(shop.engine, "default", [EventKind.GATE_REFUSED])
    assert refused is not None
    assert (refused.detail["version"], refused.detail["champion"]) == (second, first)
    assert "--force --reason" in shop.run("promote", second).stdout


def test_force_needs_a_reason_and_is_on_record(shop: Shop) -> None:
    first, second = shop.versions
    shop.deploy(first)
    without = shop.run("promote", second, "--force")
    assert isinstance(without.exception, InvalidParameter)
    assert shop.live == first
    done = shop.run("promote", second, "--force", "--reason", "the old one is broken")
    assert done.exit_code == 0, done.output
    assert shop.live == second
    deployed = events.last(shop.engine, "default", [EventKind.DEPLOYED])
    assert deployed is not None
    assert deployed.detail["forced"] is True
    assert deployed.detail["reason"] == "the old one is broken"
    assert deployed.detail["actor"] == f"cli:{getpass.getuser()}"


def test_a_bundle_that_was_tampered_with_is_not_promoted_even_by_force(shop: Shop) -> None:
    from perennial.errors import InvalidBundle
    from perennial.ledger import models

    first, second = shop.versions
    shop.deploy(first)
    storage = Storage(load_settings().blobs_url)
    path = storage.local_path(storage.key_of(models.get(shop.engine, "default", second).bundle_url) + "/graph.onnx")
    assert path is not None
    path.write_bytes(path.read_bytes() + b" ")
    assert isinstance(shop.run("promote", second, "--force", "--reason", "now").exception, InvalidBundle)
    assert shop.live == first


def test_rollback_returns_to_the_model_before_and_then_there_is_none(shop: Shop) -> None:
    first, second = shop.versions
    shop.deploy(first)
    shop.deploy(second)
    done = shop.run("rollback", "--reason", "it was worse", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["version"], document["replaces"]) == (first, second)
    assert shop.live == first
    event = events.last(shop.engine, "default", [EventKind.ROLLED_BACK])
    assert event is not None
    assert event.detail["reason"] == "it was worse"
    assert isinstance(shop.run("rollback").exception, NothingToDo)


def test_show_tells_a_models_story(shop: Shop) -> None:
    first, second = shop.versions
    shop.deploy(first)
    shop.run("promote", second)
    document = json.loads(shop.run("show", "--json").stdout)
    assert document["version"] == first
    assert document["live"] is True
    assert document["manifest"]["classes"] == ["bright", "dark"]
    assert [entry["reason"] for entry in document["deployments"]] == ["as a test"]
    assert [event["kind"] for event in document["events"]] == ["deployed", "gate_refused"]
    shown = shop.run("show", second).stdout
    assert "gate_refused" in shown
    assert "bright" in shown
    assert "refused" in shown
    assert "no fresh labelled rows" in shown
    assert isinstance(shop.run("show", "nonsense").exception, UnknownModel)


def test_show_writes_the_story_as_a_page(shop: Shop, tmp_path: Path) -> None:
    first, _ = shop.versions
    shop.deploy(first)
    done = shop.run("show", "--html", str(tmp_path / "story.html"))
    assert done.exit_code == 0, done.output
    html = (tmp_path / "story.html").read_text()
    assert first in html
    assert "It answers now." in html
    assert "Content-Security-Policy" in html
    wrong = shop.run("show", "--html", str(tmp_path / "nowhere" / "story.html"))
    assert isinstance(wrong.exception, InvalidParameter)
    assert "cannot be written" in str(wrong.exception)


def test_status_says_what_is_live_and_what_the_last_check_found(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NoLiveModel):
        status()
    shop.deploy(shop.versions[0])
    status(as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["model"]["version"] == shop.versions[0]
    assert (document["predictions"], document["window"]["labelled"], document["check"]) == (0, 0, None)
    checks.record(
        shop.engine,
        name="default",
        model_version=shop.versions[0],
        window={"rows": 0, "start": None, "end": None},
        verdict="insufficient_data",
        detail={"causes": []},
        report_url=None,
    )
    status()
    shown = capsys.readouterr().out
    assert "insufficient_data" in shown
    assert shop.versions[0] in shown
    assert "deployed" in shown


def test_an_unknown_version_is_a_usage_error_at_the_command_line(shop: Shop) -> None:
    shop.engine.dispose()
    done = perennial_here("models", "show", "nonsense", cwd=shop.folder)
    assert done.returncode == 2, done.stderr
    assert shop.versions[-1] in done.stderr
    assert not done.stdout


def test_a_rollout_is_shown_moved_on_by_force_and_stopped(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = shop.versions
    shop.deploy(first)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(rollout_command.app, list(arguments), catch_exceptions=True)

    def begin() -> None:
        rollouts.start(
            shop.engine,
            "default",
            champion=first,
            challenger=second,
            stages=["shadow", 0.1],
            reason="a test",
            actor="test",
        )

    assert isinstance(run("status").exception, NothingToDo)
    begin()
    document = json.loads(run("status", "--json").stdout)
    assert (document["version"], document["champion"], document["stage"]) == (second, first, "shadow")
    assert document["decision"]["action"] == "wait"
    status()
    assert f"{second}: shadow" in capsys.readouterr().out
    shown = run("status").stdout
    assert "shadow > 10 % of the traffic > all" in shown
    assert "0 of 200 images answered" in shown
    assert isinstance(run("advance", "--force").exception, InvalidParameter)
    waiting = run("advance", "--json")
    assert (waiting.exit_code, json.loads(waiting.stdout)["outcome"]) == (4, "waiting")
    assert run("advance", "--force", "--reason", "we looked").exit_code == 0
    advanced = events.last(shop.engine, "default", [EventKind.ROLLOUT_ADVANCED])
    assert advanced is not None
    assert (advanced.detail["forced"], advanced.detail["why"]) == (True, "forced: we looked")
    assert advanced.detail["actor"] == f"cli:{getpass.getuser()}"
    assert "stopped" in run("stop", "--reason", "enough").stdout
    assert isinstance(run("stop").exception, NothingToDo)

    begin()
    undone = shop.run("rollback")
    assert f"{second} is not rolled out any more; {first} goes on" in undone.stdout
    assert shop.live == first
    begin()
    assert run("advance", "--force", "--reason", "now").exit_code == 0
    assert "promoted" in run("advance", "--force", "--reason", "all").stdout
    assert shop.live == second
    assert isinstance(run("status").exception, NothingToDo)
