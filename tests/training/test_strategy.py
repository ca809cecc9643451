from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from perennial.bundle import Bundle, Ladder, open_bundle
from perennial.errors import InvalidParameter
from perennial.graph import Graph
from perennial.images import ImageLimits
from perennial.progress import Step
from training import deep, evaluate, recipes, selection
from training.backbones import Backbone
from training.datasets import LabelledImages, load
from training.evidence import LEAST_GAIN, expected_gain
from training.fit import FitRequest, fit
from training.rungs import NAMES

FIXED_SIZE = 64
SHORT = 4  # epochs, where a test asks what is done and not how well


def fitted(
    images: LabelledImages, folder: Path, strategy: str, budget: float = 60.0, steps: list[Step] | None = None
) -> Bundle:
    request = FitRequest(
        images, "shapes", "mobilenet_v3_small", "builtin", strategy, FIXED_SIZE, seed=0, threads=1, budget=budget
    )
    return fit(
        request,
        bundles=folder / "models",
        cache=folder / "cache",
        limits=ImageLimits(),
        progress=steps.append if steps is not None else (lambda step: None),
    ).bundle


def ladder_of(bundle: Bundle) -> Ladder:
    assert bundle.manifest.ladder is not None
    return bundle.manifest.ladder


def train_shortly(patch: pytest.MonkeyPatch) -> None:
    def short(name: str, images: int, backbone: Backbone, epochs: int | None = None) -> recipes.Recipe:
        return recipes.recipe(name, images, backbone, min(epochs or SHORT, SHORT))

    patch.setattr(deep, "recipe", short)


@pytest.fixture(scope="module")
def climbed(shape_images: LabelledImages, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    with pytest.MonkeyPatch.context() as patch:
        train_shortly(patch)
        return fitted(shape_images, tmp_path_factory.mktemp("auto"), "auto", budget=100.0)


def test_auto_tries_the_rungs_in_order_and_says_what_it_found(climbed: Bundle) -> None:
    ladder = ladder_of(open_bundle(climbed.path, climbed.digest))
    names = [rung.name for rung in ladder.rungs]
    assert names == [name for name in NAMES if name in names]
    assert {"majority", "simple", "knn", "linear_probe"} <= {rung.name for rung in ladder.rungs if rung.tried}
    assert ladder.chosen == climbed.manifest.strategy
    assert ladder.selection == "5-fold cross-validation over 42 images"
    for rung in ladder.rungs:
        if rung.tried:
            assert rung.accuracy is not None
            assert rung.accuracy.low <= rung.accuracy.value <= rung.accuracy.high
            assert rung.log_loss is not None
        else:
            assert rung.why
    assert ladder.signals is not None
    assert (ladder.signals.images, ladder.signals.classes, ladder.signals.fewest_in_a_class) == (42, 3, 14)
    prices = {rung.name: rung for rung in ladder.rungs}
    assert prices["simple"].multiply_adds < prices["linear_probe"].multiply_adds / 100
    assert prices["linear_probe"].milliseconds is not None
    for name in ("auto chose it", "majority", "simple", "knn"):
        assert name in climbed.manifest.why


def test_auto_gives_the_three_indicators_of_transfer(climbed: Bundle) -> None:
    transfer = ladder_of(climbed).transfer
    assert transfer is not None
    assert transfer.verdict in ("positive", "none", "negative")
    assert transfer.alone is not None
    assert transfer.alone_random is not None
    assert transfer.final is not None
    scratch = next(rung for rung in ladder_of(climbed).rungs if rung.name == "scratch")
    assert scratch.tried
    assert transfer.final_from_scratch is not None
    assert len(scratch.curve) == scratch.epochs
    assert any("from scratch" in line for line in transfer.says)


@pytest.mark.parametrize("strategy", ["partial", "scratch"])
def test_a_rung_can_be_asked_for_and_its_graph_is_what_was_trained(
    strategy: str, shape_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_shortly(monkeypatch)
    steps: list[Step] = []
    bundle = fitted(shape_images, tmp_path, strategy, budget=0.001, steps=steps)  # a budget binds auto only
    manifest = bundle.manifest
    assert manifest.strategy == strategy
    assert "asked for" in manifest.why
    rungs = {rung.name: rung for rung in ladder_of(bundle).rungs}
    assert rungs[strategy].tried
    assert rungs[strategy].epochs > 0
    assert not list((tmp_path / "cache" / "training").glob("*.safetensors"))  # no checkpoint is left behind
    assert [path.name for path in (tmp_path / "models").iterdir()] == [manifest.version]
    output = evaluate.score(Graph(bundle.graph, threads=1), shape_images.of("test"), manifest.input)
    right = output.probabilities.argmax(axis=1) == [
        shape_images.classes.index(row.label) for row in shape_images.of("test")
    ]
    assert right.mean() == pytest.approx(manifest.metrics["accuracy"].value)
    assert np.isfinite(output.embedding).all()
    # The embedding's axes are those of the trained network's own features.
    assert 0.2 < float(output.embedding.std(axis=0)[0]) < 3.0
    assert parquet.read_table(bundle.reference).num_rows == 30


def test_of_more_images_what_is_kept_learns_from_the_validation_ones_in_the_end(
    shape_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "FEW", 30)
    bundle = fitted(shape_images, tmp_path, "partial")
    ladder = ladder_of(bundle)
    judged, learnt = len(shape_images.of("validation")), len(shape_images.of("train"))
    assert ladder.selection == f"{judged} validation images"
    assert f"{learnt} training images" in bundle.manifest.why
    assert f"from the validation images as well, {learnt + judged} in all" in bundle.manifest.why
    table = parquet.read_table(bundle.reference).to_pydict()
    held_out = {digest for digest, out in zip(table["id"], table["held_out"], strict=True) if out}
    assert held_out == {row.digest for row in shape_images.of("test")}
    tried = next(rung for rung in ladder.rungs if rung.name == "partial")
    assert tried.accuracy is not None
    assert 0 < tried.epochs < 20  # of the recipe


def test_without_time_the_probe_is_kept_and_what_was_not_tried_is_named(
    tmp_path: Path, write_shapes: Callable[..., Path]
) -> None:
    images = load(str(write_shapes(tmp_path / "data", count=60)), validation=0.2, test=0.2, seed=0)
    ladder = ladder_of(fitted(images, tmp_path, "auto", budget=0.001))
    assert ladder.chosen == "linear_probe"
    skipped = {rung.name: rung.why for rung in ladder.rungs if not rung.tried}
    assert {"partial", "scratch"} <= set(skipped)
    assert "not one epoch" in skipped["scratch"]
    assert "budget" in skipped["partial"] or "prediction" in skipped["partial"]


def test_more_images_and_more_errors_promise_more_of_fine_tuning() -> None:
    assert expected_gain(error=0.2, images=20) == 0.0
    assert expected_gain(0.05, 243) < LEAST_GAIN < expected_gain(0.2, 70) < expected_gain(0.2, 243)
    assert expected_gain(0.08, 1300) > expected_gain(0.08, 500) > LEAST_GAIN
    assert expected_gain(0.1, 10**9) <= 0.05
    assert expected_gain(0.024, 1170) < LEAST_GAIN  # of photos: what is left is not learnt
    assert expected_gain(0.005, 10**9) == 0.0


@pytest.mark.parametrize(
    ("error", "images", "gained"),
    [(0.304, 70, 0.061), (0.199, 700, 0.111), (0.121, 1300, 0.056), (0.054, 40, -0.022), (0.046, 243, -0.026),
     (0.022, 70, -0.006), (0.013, 350, -0.006), (0.024, 60, -0.002), (0.009, 300, 0.004)],
)  # fmt: skip
def test_what_is_expected_is_about_what_nine_tasks_gained(error: float, images: int, gained: float) -> None:
    assert expected_gain(error, images) == pytest.approx(max(0.0, gained), abs=0.011)
    assert (expected_gain(error, images) >= LEAST_GAIN) == (gained >= LEAST_GAIN)


def test_a_probe_is_aligned_to_unlabelled_images_and_says_so(
    shape_images: LabelledImages, tmp_path: Path, write_shapes: Callable[..., Path]
) -> None:
    target = write_shapes(tmp_path / "target", count=20, seed=9)
    request = FitRequest(
        shape_images, "shapes", "mobilenet_v3_small", "builtin", "auto", 0, seed=0, threads=1, target=str(target)
    )
    folders = {"bundles": tmp_path / "models", "cache": tmp_path / "cache"}
    manifest = fit(request, **folders, limits=ImageLimits()).bundle.manifest
    assert manifest.strategy == "linear_probe"
    assert "aligned to 60 unlabelled target images" in manifest.why
    assert manifest.metrics["accuracy"].value >= 0.6
    with pytest.raises(InvalidParameter, match="linear_probe"):
        fit(replace(request, strategy="partial"), **folders, limits=ImageLimits())


def test_a_teacher_is_asked_before_anything_else_and_wants_enough_images(
    shape_images: LabelledImages, tmp_path: Path
) -> None:
    request = FitRequest(
        shape_images, "shapes", "mobilenet_v3_small", "builtin", "linear_probe", 64, seed=0, threads=1,
        teacher="mobilenet_v3_small:builtin",
    )  # fmt: skip
    with pytest.raises(InvalidParameter, match="30 images are too few to learn from a teacher"):
        fit(request, bundles=tmp_path / "models", cache=tmp_path / "cache", limits=ImageLimits())
    with pytest.raises(InvalidParameter, match="nonesuch"):
        fit(
            replace(request, teacher="nonesuch"), bundles=tmp_path / "models", cache=tmp_path / "cache",
            limits=ImageLimits(),
        )  # fmt: skip
