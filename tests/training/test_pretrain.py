"""Claims about the generated images, the training on them, and the checkpoint that is shipped."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors import safe_open

from benchmarks import transfer
from perennial.errors import InvalidParameter, WeightsUnavailable
from training import fractals, glyphs, pretrain
from training.distortions import distort

BACKBONE = "mobilenet_v3_small"


def tiny(out: Path, **changes: int) -> pretrain.PretrainResult:
    sizes: dict[str, Any] = {"epochs": 1, "images_per_class": 16, "glyph_classes": 5, "fractal_classes": 3, "seed": 7}
    return pretrain.pretrain(out, **(sizes | changes))


def shipped_recipe() -> dict[str, int]:
    with safe_open(pretrain.builtin_checkpoint(BACKBONE), "pt") as file:
        recipe: dict[str, int] = json.loads(file.metadata()["recipe"])
    return recipe


@pytest.fixture(scope="module")
def shipped_characters() -> tuple[str, ...]:
    return glyphs.choose_characters(shipped_recipe()["glyph_classes"])


# --- the images ------------------------------------------------------------------------------------------


def test_no_glyph_class_is_a_digit(shipped_characters: tuple[str, ...]) -> None:
    assert len(shipped_characters) == shipped_recipe()["glyph_classes"]
    for character in shipped_characters:
        assert unicodedata.numeric(character, None) is None, character
        assert not unicodedata.category(character).startswith("N"), character
        assert not any(part.isdigit() for part in unicodedata.normalize("NFKD", character)), character


@pytest.mark.parametrize("character", [*"0123456789", *"OoIl|", "²", "①", "Ⅷ", "٣", "О", "ο", "З", "Ƨ"])
def test_a_digit_or_its_double_is_no_candidate(character: str) -> None:
    assert not glyphs.is_candidate(character)


def test_no_chosen_character_is_drawn_like_a_digit(shipped_characters: tuple[str, ...]) -> None:
    digits = np.stack([glyphs.draw(digit, "DejaVuSans").ravel() for digit in "0123456789"])
    digits -= digits.mean(1, keepdims=True)
    digits /= np.linalg.norm(digits, axis=1, keepdims=True)
    for character in shipped_characters:
        drawn = glyphs.draw(character, "DejaVuSans").ravel()
        drawn = drawn - drawn.mean()
        assert (digits @ drawn).max() / np.linalg.norm(drawn) < 0.9, character


def test_more_classes_than_the_fonts_have_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = dict.fromkeys("ACE", ("DejaVuSans",))
    monkeypatch.setattr(glyphs, "_coverage", lambda: few)
    with pytest.raises(InvalidParameter, match="3 distinct characters, 17"):
        tiny(tmp_path / "x.safetensors", glyph_classes=17)


def test_distorted_images_keep_their_range_and_the_same_seed_draws_the_same() -> None:
    fields = torch.from_numpy(glyphs.glyph_atlas(3).fields[:20]).float().unsqueeze(1)
    first, again, other = (distort(fields, 64, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (20, 3, 64, 64)
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # Every image still shows something.
    assert float(first.flatten(1).std(1).min()) > 0.005


def test_a_fractal_class_is_one_system_and_its_changed_copies() -> None:
    atlas = fractals.fractal_atlas(3, seed=5)
    assert atlas.fields.shape == (24, 64, 64)
    assert np.bincount(atlas.labels).tolist() == [8, 8, 8]
    assert len(np.unique(atlas.fields.reshape(24, -1), axis=0)) == 24
    assert ((atlas.fields > 0).mean((1, 2)) > 0.002).all()
    assert np.array_equal(atlas.fields, fractals.fractal_atlas(3, seed=5).fields)
    assert not np.array_equal(atlas.fields, fractals.fractal_atlas(3, seed=6).fields)


# --- training --------------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_weights(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (tiny(tmp_path / f"{i}.safetensors", seed=seed) for i, seed in enumerate((7, 7, 8)))
    assert first.sha256 == again.sha256 != other.sha256
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random numbers were touched"


def test_pretraining_learns_and_reports_each_epoch(tmp_path: Path) -> None:
    seen: list[pretrain.PretrainProgress] = []
    result = pretrain.pretrain(
        tmp_path / "x.safetensors", epochs=3, images_per_class=256, glyph_classes=4, fractal_classes=0, image_size=32,
        progress=seen.append,
    )  # fmt: skip
    assert [p.epoch for p in seen] == [1, 2, 3]
    assert seen[-1].images == result.images == 3 * 1024
    assert seen[-1].loss < seen[0].loss
    assert not list(tmp_path.glob(".*")), "a half-written file was left behind"


@pytest.mark.parametrize(
    "changes",
    [{"epochs": 0}, {"images_per_class": 0}, {"glyph_classes": 1, "fractal_classes": 0}, {"image_size": 16}],
)
def test_a_recipe_that_cannot_be_trained_is_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    with pytest.raises(InvalidParameter):
        tiny(tmp_path / "x.safetensors", **changes)


def test_an_unknown_backbone_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="mobilenet_v3_small"):
        pretrain.pretrain(tmp_path / "x.safetensors", backbone="vgg16")
    with pytest.raises(WeightsUnavailable, match=r"vgg16.*mobilenet_v3_small"):
        pretrain.builtin_checkpoint("vgg16")


# --- the checkpoint that is shipped ----------------------------------------------------------------------


def test_the_builtin_checkpoint_is_small_and_says_how_it_was_made() -> None:
    path = pretrain.builtin_checkpoint(BACKBONE)
    assert path.stat().st_size <= 4 * 2**20
    with safe_open(path, "pt") as file:
        said = file.metadata()
        assert all(file.get_tensor(key).dtype == torch.float16 for key in file.keys())  # noqa: SIM118
    assert said["backbone"] == BACKBONE
    recipe = json.loads(said["recipe"])
    assert said["seed"] == str(recipe["seed"])
    assert said["input_size"] == str(recipe["image_size"])
    assert "printed glyphs" in said["families"]
    assert len(json.loads(said["mean"])) == len(json.loads(said["std"])) == 3
    assert set(json.loads(said["libraries"])) >= {"torch", "torchvision", "matplotlib"}
    assert len(said["source_sha256"]) == 64


def test_the_builtin_checkpoint_fits_torchvisions_network() -> None:
    network = torchvision.models.get_model(BACKBONE, weights=None)
    with safe_open(pretrain.builtin_checkpoint(BACKBONE), "pt") as file:
        state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    fit = network.load_state_dict(state, strict=False)
    assert not fit.unexpected_keys
    assert all(key.startswith("classifier.") or key.endswith("num_batches_tracked") for key in fit.missing_keys)
    assert all(bool(value.isfinite().all()) for value in state.values())
    assert all(float(value.min()) >= 0 for key, value in state.items() if key.endswith("running_var"))


def test_the_builtin_checkpoint_beats_random_weights_and_pixels() -> None:
    """Two of the benchmark's five splits; the whole of it is `python -m benchmarks.transfer`."""
    rows = transfer.measure({"built-in": pretrain.builtin_checkpoint(BACKBONE)}, range(2))
    ahead = transfer.differences(rows)
    assert ahead["random weights"].mean > 0.06
    assert ahead["pixels"].mean > 0.01
