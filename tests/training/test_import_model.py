from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
import typer
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score
from typer.testing import CliRunner, Result

from commands import console, import_model
from perennial.bundle import Bundle, open_bundle
from perennial.errors import InvalidDataset, InvalidParameter, WeightsUnavailable
from perennial.graph import BFLOAT16, FLOAT32, Graph
from perennial.images import ImageLimits, InputRule, prepare
from perennial.settings import Settings
from training.backbones import load_with_head, normalised
from training.export import Whitening, fit_whitening, fixed_projection
from training.import_model import LEAST_REFERENCE, backbone_of, list_images
from training.material import original_data

app = typer.Typer()
app.command()(import_model.import_model)


def call(*arguments: str) -> Result:
    """`perennial import ...`; an error of ours is raised."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `perennial import ...` on one thread; an error of ours is raised."""
    monkeypatch.setattr(console.invocation, "config", None)
    return call


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a whole MobileNetV3, classifier included; random, so that it needs no download."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v3_small.pth"
    torch.save(torchvision.models.mobilenet_v3_small(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def imported(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `perennial import --json` says of it, without images, in a home of its own. Do not change the bundle."""
    home = tmp_path_factory.mktemp("imported") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console.invocation, "config", None)
        for variable, value in {"PERENNIAL_HOME": home, "BENTOML_HOME": home / "bentoml"}.items():
            patch.setenv(variable, str(value))
        patch.setenv("PERENNIAL_TRAIN__THREADS", "1")
        said = call("torchvision:mobilenet_v3_small", "--weights", str(whole), "--image-size", "64", "--json")
    document: dict[str, Any] = json.loads(said.stdout)
    return document


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """100 images, half of them in a folder that is called as an ImageNet class; one file is cut off."""
    random = np.random.default_rng(0)
    for at in range(100):
        folder = tmp_path / "photos" / ("Goldfish" if at % 2 else "unsorted")
        folder.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (5, 5, 3), np.uint8))
        small.resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"{at}.png")
    whole = (tmp_path / "photos" / "unsorted" / "0.png").read_bytes()
    (tmp_path / "photos" / "cut.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path / "photos"


def test_an_imported_network_answers_as_torchvisions_does(imported: dict[str, Any], whole: Path) -> None:
    document = imported
    assert (document["strategy"], document["classes"], document["live"]) == ("imported", 1000, True)
    assert document["reference"] == {"images": 0, "labelled": 0}
    assert "the monitor has no reference" in document["why"]
    bundle = open_bundle(Path(document["bundle"]))
    assert bundle.manifest.classes[:2] == ("tench", "goldfish")
    assert len(set(bundle.manifest.classes)) == 1000
    network = torchvision.models.mobilenet_v3_small(weights=None).eval()
    network.load_state_dict(torch.load(whole, weights_only=True))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    images = ((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = torch.softmax(network(images), dim=1).numpy()
    assert np.abs(Graph(bundle.graph, threads=1).run(pixels).probabilities - expected).max() < 1e-3


def test_without_images_the_bundle_has_an_empty_reference_and_claims_nothing(imported: dict[str, Any]) -> None:
    bundle = open_bundle(Path(imported["bundle"]))
    assert pq.read_table(bundle.reference).num_rows == 0
    assert bundle.reference_images is None
    manifest = bundle.manifest
    assert (manifest.metrics, manifest.per_class, manifest.certificates) == ({}, {}, {})
    assert manifest.precisions == (FLOAT32,)
    assert (manifest.dataset.train, manifest.dataset.validation, manifest.dataset.test) == (0, 0, 0)


def test_a_folder_of_images_becomes_the_reference_and_class_folders_label_it(
    run: Callable[..., Result], whole: Path, photos: Path
) -> None:
    options = ("--weights", str(whole), "--image-size", "64", "--data", str(photos))
    result = run("torchvision:mobilenet_v3_small", *options, "--json")
    document = json.loads(result.stdout)
    assert document["reference"] == {"images": 100, "labelled": 50}
    assert [Path(each.partition(": ")[0]).name for each in document["skipped"]] == ["cut.png"]
    assert "cut.png" in result.stderr
    assert set(document["metrics"]) == {"accuracy", "nll", "ece"}
    bundle = open_bundle(Path(document["bundle"]))
    assert bundle.manifest.per_class["goldfish"].support == 50
    table = pq.read_table(bundle.reference).to_pydict()
    assert sorted(table["label"], key=str) == [None] * 50 + ["goldfish"] * 50
    assert all(table["held_out"])
    assert set(table["format"]) == {"PNG"}
    assert all(table["mode"])
    assert all(side > 0 for side in (*table["width"], *table["height"]))
    assert np.array(table["embedding"]).shape == (100, 32)
    assert set(bundle.manifest.certificates) >= {FLOAT32}
    assert (BFLOAT16 in bundle.manifest.precisions) == (bundle.reference_in(BFLOAT16) is not None)
    assert bundle.reference_images is not None
    assert pq.read_table(bundle.reference_images)["image_digest"].to_pylist() == sorted(set(table["image_digest"]))
    assert pq.read_table(bundle.path / "dataset.parquet").num_rows == 0  # nothing was trained on


def test_the_embedding_is_fitted_to_no_image_so_that_others_of_a_kind_look_the_same(test_data: Path) -> None:
    weights = test_data / "weights" / "mobilenet_v2_imagenet.pth"
    backbone, head = load_with_head("mobilenet_v2", str(weights), image_size=96)
    rule = backbone.rule
    folder = test_data / "hymenoptera"
    pixels = [prepare(path.read_bytes(), rule).pixels for path in sorted(folder.rglob("*.jpg"))[::3]]
    with torch.inference_mode():
        features = backbone.network(normalised(torch.from_numpy(np.stack(pixels)), backbone)).numpy()
    half = np.random.default_rng(0).permutation(len(features)) % 2 == 0

    def told_apart(whitening: Whitening) -> float:
        embedding = (features - whitening.centre) @ whitening.components.T
        forest = RandomForestClassifier(50, random_state=0, n_jobs=1)
        return float(cross_val_score(forest, embedding, half, cv=5, scoring="roc_auc").mean())

    assert abs(told_apart(fixed_projection(1280, head.weight.numpy())) - 0.5) < 0.12
    assert told_apart(fit_whitening(features[half])) > 0.65  # what must not be done


def test_a_retrain_of_an_imported_model_asks_for_data_and_takes_it(
    imported: dict[str, Any], shapes: Path, settings: Settings
) -> None:
    bundle = open_bundle(Path(imported["bundle"]))
    with pytest.raises(InvalidDataset, match=r"there is nothing at .*torchvision:mobilenet_v3_small"):
        original_data(bundle, settings, ImageLimits())
    given = settings.model_copy(update={"retrain": settings.retrain.model_copy(update={"data": str(shapes)})})
    assert original_data(bundle, given, ImageLimits()).classes == ("disc", "square", "stripes")


def test_a_second_import_is_registered_and_not_live(run: Callable[..., Result], whole: Path) -> None:
    options = ("torchvision:mobilenet_v3_small", "--weights", str(whole), "--image-size", "64")
    assert "It is live" in run(*options).stdout
    assert "perennial models promote" in run(*options).stdout


# --- what cannot be imported -----------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["resnet50", "timm:resnet50", "torchvision", "torchvision:resnet51"])
def test_a_source_that_there_is_not_is_refused(source: str) -> None:
    with pytest.raises(InvalidParameter, match="perennial backbones"):
        backbone_of(source)


@pytest.mark.parametrize("weights", ["builtin", "none"])
def test_weights_without_a_classifier_are_refused(weights: str) -> None:
    with pytest.raises(InvalidParameter, match="no ImageNet classifier"):
        load_with_head("mobilenet_v3_small", weights)


def test_a_file_without_the_classifier_or_with_another_is_refused(whole: Path, tmp_path: Path) -> None:
    state = torch.load(whole, weights_only=True)
    torch.save({key: value for key, value in state.items() if not key.startswith("classifier")}, tmp_path / "body.pth")
    with pytest.raises(WeightsUnavailable, match=r"4 missing \(classifier\.0\.weight"):
        load_with_head("mobilenet_v3_small", str(tmp_path / "body.pth"))
    torch.save(state | {"classifier.3.weight": torch.zeros(2, 1024)}, tmp_path / "two.pth")
    with pytest.raises(WeightsUnavailable, match=r"1 of another shape \(classifier\.3\.weight\)"):
        load_with_head("mobilenet_v3_small", str(tmp_path / "two.pth"))


def test_too_few_images_for_a_reference_are_refused(photos: Path, tmp_path: Path) -> None:
    for path in list(photos.rglob("*.png"))[LEAST_REFERENCE - 1 :]:
        path.unlink()
    with pytest.raises(InvalidDataset, match=f"needs at least {LEAST_REFERENCE}"):
        list_images(str(photos), ("goldfish",), InputRule(64, 64), ImageLimits())
    with pytest.raises(InvalidDataset, match="is no folder"):
        list_images(str(tmp_path / "gone"), ("goldfish",), InputRule(64, 64), ImageLimits())


# --- every kind of head ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alexnet", "convnext_tiny", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_features_and_head_together_are_the_whole_network(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "whole.pth")
    backbone, head = load_with_head(name, str(tmp_path / "whole.pth"), image_size=64)
    images = normalised(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8), backbone)
    with torch.inference_mode():
        assert torch.allclose(head(backbone.network(images)), network(images), atol=1e-5)
    assert not any(parameter.requires_grad for parameter in (*backbone.network.parameters(), *head.parameters()))


def test_real_ants_and_bees_are_known_at_once(test_data: Path, run: Callable[..., Result]) -> None:
    weights = test_data / "weights" / "mobilenet_v2_imagenet.pth"
    if not weights.is_file():
        pytest.skip(f"no {weights.name}")
    folder = test_data / "hymenoptera" / "val"
    document = json.loads(
        run("torchvision:mobilenet_v2", "--weights", str(weights), "--data", str(folder), "--json").stdout
    )
    bundle = open_bundle(Path(document["bundle"]))
    answers = _answers(bundle, folder)
    right = np.mean([answer == label.removesuffix("s") for label, answer in answers])
    assert 0.76 < right < 0.82  # .79, as the README of the data says
    _equals_torch(bundle, weights, folder)


def _answers(bundle: Bundle, folder: Path) -> list[tuple[str, str]]:
    labels = {_digest(path): path.parent.name for path in folder.rglob("*.jpg")}
    table = pq.read_table(bundle.reference).to_pydict()
    return [(labels[digest], guess) for digest, guess in zip(table["id"], table["predicted"], strict=True)]


def _digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def _equals_torch(bundle: Bundle, weights: Path, folder: Path) -> None:
    network = torchvision.models.mobilenet_v2(weights=None).eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    backbone, _ = load_with_head("mobilenet_v2", str(weights))
    some = sorted(folder.rglob("*.jpg"))[:6]
    pixels = np.stack([prepare(path.read_bytes(), bundle.manifest.input).pixels for path in some])
    with torch.inference_mode():
        expected = torch.softmax(network(normalised(torch.from_numpy(pixels), backbone)), dim=1).numpy()
    found = Graph(bundle.graph, threads=1).run(pixels).probabilities
    assert np.abs(found - expected).max() < 1e-3
