from __future__ import annotations

import json
from pathlib import Path

import pytest
import torchvision
import typer
from typer.testing import CliRunner

from commands import backbones, console
from training.catalog import entries

app = typer.Typer()
app.command()(backbones.backbones)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_every_classification_network_is_listed_and_none_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.models, "get_model", lambda *_, **__: pytest.fail("a network was built"))
    listed = {entry.name: entry for entry in entries()}
    assert list(listed) == torchvision.models.list_models(module=torchvision.models)
    assert len(listed) >= 80
    resnet = listed["resnet50"]
    assert (resnet.parameters, resnet.input_size, resnet.edition) == (25_557_032, 224, "IMAGENET1K_V1")
    assert resnet.top1 == pytest.approx(76.13)
    assert resnet.gflops == pytest.approx(4.09, abs=0.01)
    assert resnet.megabytes == pytest.approx(97.8, abs=0.1)
    assert (resnet.license, resnet.at_hand) == (None, ())
    assert listed["inception_v3"].input_size == 299
    assert listed["mobilenet_v3_small"].at_hand == ("builtin",)


def test_weights_of_other_terms_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "width", 120)
    own_terms = {entry.name for entry in entries() if entry.license}
    assert own_terms == {"regnet_y_128gf", "vit_h_14"}  # those that have no weights of torchvision's own training
    shown = CliRunner().invoke(app, []).stdout
    assert "SWAG_E2E_V1 *" in shown
    assert "read them before commercial use: https://github.com/facebookresearch/SWAG" in shown


def test_json_is_one_document_in_the_order_that_was_asked_for() -> None:
    result = CliRunner().invoke(app, ["--sort", "top1", "--json"])
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    accuracies = [entry["top1"] for entry in document]
    assert accuracies == sorted(accuracies, reverse=True)
    assert set(document[0]) == {
        "name", "parameters", "gflops", "input_size", "top1", "megabytes", "edition", "license", "url", "at_hand",
    }  # fmt: skip


def test_only_those_at_hand_with_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "resnet50.pth").touch()
    result = CliRunner().invoke(app, ["--weights", str(tmp_path / "mine"), "--at-hand", "--json"])
    assert {entry["name"]: entry["at_hand"] for entry in json.loads(result.stdout)} == {
        "mobilenet_v3_small": ["builtin"], "resnet50": [str(tmp_path / "mine" / "resnet50.pth")],
    }  # fmt: skip
