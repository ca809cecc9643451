from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from perennial.progress import Step
from training import backbones, stages
from training.augment import Augmentation, random_views, whole_views
from training.backbones import Backbone
from training.datasets import LabelledImages
from training.depthwise import strides_in_float32
from training.epochs import Checkpoint
from training.features import decode
from training.finetune import HEAD_PENALTY, EpochDone, Finetuned, Images, Recipe, Shelf, finetune
from training.probe import Probe, fixed_probe

SIZE = 48
RECIPE = Recipe(stages=1, epochs=3, image_size=SIZE, learning_rate=3e-3)


@pytest.fixture(scope="module")
def fabric() -> Any:
    from lightning_fabric import Fabric  # which brings torch's compiler

    found = Fabric(accelerator="cpu", devices=1, precision="32-true")
    found.launch()
    return found


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return backbones.load("mobilenet_v3_small", "builtin", image_size=SIZE)


@pytest.fixture(scope="module")
def images(shape_images: LabelledImages, backbone: Backbone) -> tuple[Images, Images]:
    """40 to learn from, 20 to judge by."""
    rows, pixels, _ = decode(shape_images.rows, backbone.rule)
    labels = np.array([shape_images.classes.index(row.label) for row in rows])
    every = Images(pixels, labels, np.ones(len(rows)))
    return _some(every, slice(0, 40)), _some(every, slice(40, 60))


def _some(images: Images, at: slice) -> Images:
    return Images(images.pixels[at], images.labels[at], images.weights[at])


Run = Callable[..., Finetuned]


def runs_in(folder: Path, backbone: Backbone, images: tuple[Images, Images], fabric: Any) -> Run:
    def run(recipe: Recipe = RECIPE, *, seed: int = 0, start: Probe | None = None, **changes: Any) -> Finetuned:
        given: dict[str, Any] = {"backbone": backbone, "train": images[0], "judged": images[1]} | changes
        given.setdefault("shelf", Shelf(folder))
        return finetune(
            given.pop("backbone"), start, given.pop("train"), given.pop("judged"), recipe,
            classes=3, seed=seed, fabric=fabric, stage="training", **given,
        )  # fmt: skip

    return run


@pytest.fixture
def run(backbone: Backbone, images: tuple[Images, Images], fabric: Any, tmp_path: Path) -> Run:
    return runs_in(tmp_path, backbone, images, fabric)


@pytest.fixture(scope="module")
def plain(
    backbone: Backbone, images: tuple[Images, Images], fabric: Any, tmp_path_factory: pytest.TempPathFactory
) -> Finetuned:
    """`run()`: what every other training is held against. Nobody changes it."""
    return runs_in(tmp_path_factory.mktemp("plain"), backbone, images, fabric)()


def same(one: Finetuned, other: Finetuned) -> bool:
    """Are they, to the last bit?"""
    these, those = states(one), states(other)
    return all(torch.equal(value, those[name]) for name, value in these.items())


def states(found: Finetuned) -> dict[str, torch.Tensor]:
    return dict(found.backbone.network.state_dict()) | {"head": torch.from_numpy(found.head.weight)}


def changed(found: Finetuned, before: Backbone) -> set[str]:
    old = before.network.state_dict()
    return {name for name, value in found.backbone.network.state_dict().items() if not torch.equal(value, old[name])}


def test_the_last_stage_and_the_head_learn_and_nothing_else_changes(run: Run, backbone: Backbone) -> None:
    before = {name: value.clone() for name, value in backbone.network.state_dict().items()}
    found = run()
    last = stages.stages(found.backbone)[-1]
    learnt = {id(value) for value in last.parameters()}
    own = {name for name, value in found.backbone.network.named_parameters() if id(value) in learnt}
    assert own
    assert changed(found, backbone) == own  # so BatchNorm's statistics are as they were
    assert found.head.weight.any()
    assert all(torch.equal(value, before[name]) for name, value in backbone.network.state_dict().items())
    assert not any(value.requires_grad for value in found.backbone.network.parameters())


def test_all_stages_learn_where_none_is_named(run: Run, backbone: Backbone) -> None:
    found = run(replace(RECIPE, stages=None, epochs=1))
    names = {name for name, _ in found.backbone.network.named_parameters()}
    assert changed(found, backbone) == names


def test_from_random_weights_batch_norm_learns_as_well(run: Run) -> None:
    start = backbones.load("mobilenet_v3_small", "none", image_size=SIZE)
    found = run(replace(RECIPE, stages=None, epochs=1, random_start=True), backbone=start)
    assert any(name.endswith("running_mean") for name in changed(found, start))


def test_it_learns(run: Run, images: tuple[Images, Images]) -> None:
    found = run(replace(RECIPE, stages=2, epochs=12))
    right = float((found.logits.argmax(axis=1) == images[1].labels).mean())
    assert right >= 0.75
    assert [point.epoch for point in found.curve] == list(range(1, 13))
    assert found.curve[-1].accuracy == pytest.approx(right)
    seconds = [point.seconds for point in found.curve]
    assert seconds == sorted(seconds)


def test_a_start_from_a_probe_answers_as_the_probe_before_anything_is_learnt(
    run: Run, backbone: Backbone, images: tuple[Images, Images]
) -> None:
    random = np.random.default_rng(0)
    head = Probe(random.normal(size=(3, backbone.width)).astype(np.float32), np.ones(3, np.float32), 1.0, {}, 1.0)
    found = run(replace(RECIPE, epochs=1, learning_rate=0.0, refit=False), start=head)
    with torch.inference_mode():
        features = backbone.network(backbones.normalised(torch.from_numpy(images[1].pixels), backbone)).numpy()
    assert np.allclose(found.logits, head.logits(features), atol=1e-3)


def test_in_the_end_the_head_is_a_probe_on_what_the_network_has_learnt(
    plain: Finetuned, images: tuple[Images, Images]
) -> None:
    found = plain

    def features(of: Images) -> Any:
        with torch.inference_mode():
            seen = backbones.normalised(torch.from_numpy(of.pixels), found.backbone)
            return found.backbone.network(seen).numpy()

    train, judged = (features(each) for each in images)
    head = fixed_probe(train, images[0].labels.tolist(), images[0].weights.tolist(), 3, HEAD_PENALTY, root=False)
    assert not found.head.root  # the features of this network may be negative
    assert np.allclose(found.logits, head.logits(judged), atol=0.02)
    assert found.curve[-1].accuracy == float((found.logits.argmax(axis=1) == images[1].labels).mean())


def test_strides_in_float32_compute_the_same_and_leave_the_network_as_it_was(backbone: Backbone) -> None:
    network, pixels = backbone.network, torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    strided = [each for each in network.modules() if isinstance(each, nn.Conv2d) and each.groups > 1 < max(each.stride)]
    kinds = [type(each) for each in strided]
    with torch.inference_mode():
        plain = network(pixels)
        with strides_in_float32(network):
            inside = [type(each) for each in strided]
            assert torch.equal(network(pixels), plain)
            with torch.autocast("cpu", torch.bfloat16):
                half = network(pixels)
    assert strided
    assert all(kind is not nn.Conv2d for kind in inside)
    assert [type(each) for each in strided] == kinds
    assert torch.nn.functional.cosine_similarity(half.float(), plain).min() > 0.99


def test_the_same_seed_gives_the_same_weights_and_another_does_not(run: Run, plain: Finetuned) -> None:
    first, again, other = plain, run(), run(seed=1)
    assert same(first, again)
    assert not torch.equal(states(first)["head"], states(other)["head"])


def test_an_interrupted_run_goes_on_exactly_where_it_was(run: Run, plain: Finetuned, tmp_path: Path) -> None:
    whole = plain
    checkpoint = Checkpoint(tmp_path / "run.safetensors", "this run")

    class Interrupted(Exception):
        pass

    def stop_in_the_third_epoch(step: Step) -> None:
        if step.stage == "training" and step.done > 2 * 64:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(checkpoint=checkpoint, progress=stop_in_the_third_epoch)
    steps: list[Step] = []
    resumed = run(checkpoint=checkpoint, progress=steps.append)
    assert sum(step.stage == "training" for step in steps) == 2  # the steps of one epoch
    assert same(whole, resumed)
    assert [point.accuracy for point in resumed.curve] == [point.accuracy for point in whole.curve]
    assert not list(tmp_path.glob("*.partial"))


def test_what_drops_out_is_the_same_in_a_resumed_run(run: Run, tmp_path: Path) -> None:
    start = backbones.load("mobilenet_v2", "none", image_size=32)  # has dropout before its head
    recipe = Recipe(None, 2, 32, random_start=True)
    whole = run(recipe, backbone=start)
    checkpoint = Checkpoint(tmp_path / "run.safetensors", "this run")

    def stop_after_the_first(done: EpochDone) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, backbone=start, checkpoint=checkpoint, record=stop_after_the_first)
    for _ in range(2):  # the second time there is nothing left to do
        resumed = run(recipe, backbone=start, checkpoint=checkpoint)
        assert same(whole, resumed)


def test_each_epoch_says_how_it_went(run: Run) -> None:
    said: list[EpochDone] = []
    found = run(replace(RECIPE, epochs=8), record=said.append)
    assert [done.epoch for done in said] == list(range(1, 9))
    # The last point is of the head that was fitted anew after that epoch.
    assert [done.accuracy for done in said[:-1]] == [point.accuracy for point in found.curve[:-1]]
    assert said[0].loss == pytest.approx(np.log(3), rel=0.3)  # a head of zeros knows nothing
    assert said[-1].loss < said[0].loss
    assert said[-1].learning_rate < said[2].learning_rate
    assert all(done.images_per_second > 0 for done in said)


def test_another_runs_checkpoint_or_a_damaged_one_is_not_used(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    first = run(checkpoint=Checkpoint(path, "this run"))
    steps: list[Step] = []
    other = run(checkpoint=Checkpoint(path, "another run"), progress=steps.append)
    assert sum(step.stage == "training" for step in steps) == 6
    path.write_bytes(b"scribbled over")
    again = run(checkpoint=Checkpoint(path, "this run"))
    for found in (other, again):
        assert same(first, found)


def test_a_row_without_weight_is_never_learnt_from(run: Run, images: tuple[Images, Images]) -> None:
    train = images[0]
    weights = (train.labels != 2).astype(np.float64)
    found = run(replace(RECIPE, epochs=6, label_smoothing=0.0), train=replace(train, weights=weights))
    assert not (found.logits.argmax(axis=1) == 2).any()


# --- views -----------------------------------------------------------------------------------------------


def test_views_are_of_the_size_asked_for_repeatable_and_within_range(images: tuple[Images, Images]) -> None:
    pixels = torch.from_numpy(images[0].pixels)
    one, same = (random_views(pixels, 32, torch.Generator().manual_seed(5), Augmentation()) for _ in range(2))
    assert one.shape == (40, 3, 32, 32)
    assert torch.equal(one, same)
    assert float(one.min()) >= 0.0
    assert float(one.max()) <= 255.0


def test_without_augmentation_a_view_is_the_image_and_mirroring_is_a_choice() -> None:
    pixels = torch.randint(0, 256, (16, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = pixels.permute(0, 3, 1, 2).float()
    nothing = Augmentation(smallest=1.0, mirror=False, light=0.0)
    views = random_views(pixels, 24, torch.Generator().manual_seed(0), nothing)
    # Its shape still changes by up to 4:3; what is not cut off is where it was.
    assert views.shape == plain.shape
    assert torch.equal(whole_views(pixels, 24, 1.0), plain)
    assert whole_views(pixels, 12, 0.5).shape == (16, 3, 12, 12)
    assert torch.equal(whole_views(pixels, 12, 0.5), plain[..., 6:18, 6:18])
    random = torch.Generator().manual_seed(3)
    mirrored = random_views(pixels, 24, random, replace(nothing, mirror=True))
    assert not torch.equal(mirrored, random_views(pixels, 24, torch.Generator().manual_seed(3), nothing))


def test_trainings_on_one_pool_share_views_and_come_out_the_same(
    run: Run, images: tuple[Images, Images], tmp_path: Path
) -> None:
    every = images[0]
    pool = Images(every.pixels, every.labels, every.weights, np.arange(40))
    part = Images(every.pixels, every.labels[10:], every.weights[10:], np.arange(10, 40))
    recipe = replace(RECIPE, epochs=3)

    def views(steps: list[Step]) -> list[Step]:
        return [step for step in steps if step.stage.endswith("views")]

    def shelf(name: str) -> Shelf:
        tmp_path.joinpath(name).mkdir()
        return Shelf(tmp_path / name, pool)

    shared, cold, warm, longer = shelf("shared"), list[Step](), list[Step](), list[Step]()
    run(recipe, train=part, shelf=shared, progress=cold.append)
    second = run(recipe, train=pool, shelf=shared, progress=warm.append)
    alone = run(recipe, train=pool, shelf=shelf("alone"))
    run(replace(recipe, epochs=5), train=pool, shelf=shared, progress=longer.append)
    assert views(cold)[-1].total == 3 * 40  # of all the pool, whichever part is learnt from
    assert not views(warm)
    assert views(longer)[-1].total == 2 * 40
    assert same(second, alone)
