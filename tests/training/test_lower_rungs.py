"""The rungs without a learnt network can be asked for by name, exported and served like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perennial.bundle import Bundle
from perennial.graph import FLOAT32, Graph
from perennial.images import ImageLimits
from training import evaluate, strategy
from training.challenger import next_strategy
from training.datasets import LabelledImages, load
from training.fit import FitRequest, fit
from training.neighbours import NeighbourVotes, neighbour_logits
from training.verdict import verdict


def fitted(images: LabelledImages, folder: Path, name: str, budget: float = 60.0) -> Bundle:
    request = FitRequest(images, "shapes", "mobilenet_v3_small", "builtin", name, 64, seed=0, threads=1, budget=budget)
    return fit(request, bundles=folder / "models", cache=folder / "cache", limits=ImageLimits()).bundle


@pytest.fixture(scope="module")
def simple(shape_images: LabelledImages, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shapes by what is plain to see. Do not change it."""
    return fitted(shape_images, tmp_path_factory.mktemp("simple"), "simple")


@pytest.mark.parametrize("name", ["majority", "simple", "knn"])
def test_a_lower_rung_is_served_as_it_was_tried(
    name: str, shape_images: LabelledImages, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = request.getfixturevalue("simple") if name == "simple" else fitted(shape_images, tmp_path, name)
    manifest = bundle.manifest
    assert manifest.strategy == name
    assert manifest.ladder is not None
    (rung,) = (rung for rung in manifest.ladder.rungs if rung.tried)
    assert rung.name == name
    tested = shape_images.of("test")
    output = evaluate.score(Graph(bundle.graph, threads=1), tested, manifest.input)
    right = output.probabilities.argmax(axis=1) == [shape_images.classes.index(row.label) for row in tested]
    assert right.mean() == pytest.approx(manifest.metrics["accuracy"].value)
    if name == "majority":
        assert np.ptp(output.probabilities, axis=0).max() < 1e-6
    else:
        assert right.mean() > 0.5  # of three classes
    assert np.isfinite(output.embedding).all()
    assert output.embedding.std(axis=0).max() > 0.1  # it can be watched for drift
    assert FLOAT32 in manifest.precisions


def test_a_model_without_a_network_holds_none(simple: Bundle, shape_bundle: Bundle) -> None:
    assert shape_bundle.manifest.strategy == "linear_probe"
    assert simple.weights.stat().st_size < shape_bundle.weights.stat().st_size / 10
    assert "mobilenet" not in verdict(simple.manifest).headline
    assert simple.manifest.backbone == "mobilenet_v3_small"  # a retrain may need it
    assert next_strategy(simple.manifest) == "simple"  # as it was asked for


def test_auto_keeps_no_network_where_none_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    for at in range(90):
        label, colour = (("red", (180, 40, 40)), ("green", (40, 180, 40)), ("blue", (40, 40, 180)))[at % 3]
        pixels = np.clip(np.array(colour) + random.normal(0, 25, (64, 64, 3)), 0, 255).astype(np.uint8)
        path = tmp_path / "colours" / label / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    images = load(str(tmp_path / "colours"), validation=0.2, test=0.2, seed=0)
    monkeypatch.setattr(strategy._Ladder, "_climb_on", lambda self: None)
    monkeypatch.setattr(strategy, "_CONTROL_SHARE", 0.0)
    bundle = fitted(images, tmp_path, "auto")
    ladder = bundle.manifest.ladder
    assert ladder is not None
    assert ladder.transfer is not None
    assert ladder.transfer.simple_suffices
    assert bundle.manifest.strategy == ladder.chosen == "simple"
    took = {rung.name: rung.milliseconds for rung in ladder.rungs}
    assert took["simple"] is not None
    assert took["linear_probe"] is None  # its graph was never made
    assert bundle.manifest.metrics["accuracy"].value == 1.0
    assert next_strategy(bundle.manifest) == "auto"  # tomorrow's images may need a network
    said = verdict(bundle.manifest)
    assert any("there is no network in it" in note for note in said.notes)


@pytest.mark.parametrize("negative", [False, True])
def test_votes_of_neighbours_are_the_same_in_a_graph(negative: bool) -> None:
    rng = np.random.default_rng(0)
    train, asked = (rng.normal(0.2 if negative else 5.0, 0.5, (size, 8)).astype(np.float32) for size in (40, 10))
    labels = rng.integers(0, 3, 40).tolist()
    found = NeighbourVotes(train, labels, 3)(torch.from_numpy(asked)).numpy()
    assert np.allclose(found, neighbour_logits(train, labels, asked, 3), atol=1e-4)


def test_few_rows_have_few_neighbours() -> None:
    train = np.random.default_rng(0).random((3, 4)).astype(np.float32)
    found = NeighbourVotes(train, [0, 1, 1], 2)(torch.from_numpy(train)).numpy()
    assert np.allclose(found, neighbour_logits(train, [0, 1, 1], train, 2), atol=1e-4)
