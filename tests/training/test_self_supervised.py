"""Claims about continued pretraining on images without labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from commands.main import app
from perennial.errors import InvalidDataset, InvalidParameter, PerennialError
from perennial.images import InputRule
from perennial.progress import Step
from tests.training.conftest import WriteShapes
from training import backbones, embedder, unlabelled
from training.datasets import DEFAULT_LIMITS
from training.probe import Floats, fixed_probe, never_negative
from training.self_supervised import Continued, EpochEnd, Recipe, continue_pretraining, contrast, pretrain_on

BACKBONE = "mobilenet_v3_small"
QUICK = Recipe(epochs=1, batch=16, image_size=32)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.training.conftest import write_shapes_to

    return write_shapes_to(tmp_path_factory.mktemp("pictures") / "any", count=16)


def quick(folder: Path, out: Path, seed: int = 0, recipe: Recipe = QUICK) -> Continued:
    return pretrain_on(folder, out, weights="builtin", backbone=BACKBONE, recipe=recipe, seed=seed)


def test_what_is_written_is_taken_by_weights(pictures: Path, tmp_path: Path) -> None:
    done = quick(pictures, tmp_path / "mine.safetensors")
    start = backbones.load(BACKBONE, "builtin")
    loaded = backbones.load(BACKBONE, str(done.path), image_size=done.image_size)
    assert loaded.weights_sha256 == done.sha256
    assert loaded.width == start.width
    assert done.images == 48
    moved = [
        name
        for name, value in loaded.network.named_parameters()
        if not torch.equal(value, dict(start.network.named_parameters())[name])
    ]
    assert len(moved) > 50
    with safe_open(done.path, "pt") as file:
        said = file.metadata()
    assert json.loads(said["from"]) == {"source": "builtin", "sha256": start.weights_sha256}
    assert said["input_size"] == "64"


def test_the_same_seed_writes_the_same_bytes(pictures: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (quick(pictures, tmp_path / f"{at}.safetensors", seed) for at, seed in enumerate((3, 3, 4)))
    assert first.sha256 == again.sha256 != other.sha256
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random numbers were touched"


def test_it_learns_and_reports(pictures: Path, tmp_path: Path) -> None:
    ends: list[EpochEnd] = []
    steps: list[Step] = []
    images = unlabelled.load(pictures, threads=1)
    pixels = unlabelled.pixels_of(
        images, InputRule(resize=40, crop=32), tmp_path / "pixels.npy", threads=1, limits=DEFAULT_LIMITS
    )
    start = backbones.load(BACKBONE, "builtin")
    before = {name: value.clone() for name, value in start.network.state_dict().items()}
    recipe = Recipe(epochs=4, batch=16, image_size=32)
    _, loss = continue_pretraining(start, pixels, recipe, report=ends.append, progress=steps.append)
    assert [end.epoch for end in ends] == [1, 2, 3, 4]
    assert ends[-1].loss == loss < ends[0].loss
    assert steps[-1].done == steps[-1].total == 4 * 48
    assert all(torch.equal(value, before[name]) for name, value in start.network.state_dict().items())


def test_the_contrast_is_least_where_views_match() -> None:
    rows = torch.nn.functional.normalize(torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    same, crossed = (float(contrast(torch.cat([rows, other]), 0.2)) for other in (rows, rows.roll(1, dims=0)))
    assert same < 0.5 < crossed


@pytest.mark.parametrize(
    "recipe", [Recipe(epochs=0), Recipe(batch=2), Recipe(image_size=16), Recipe(batch=64)], ids=str
)
def test_what_cannot_be_trained_is_refused_and_nothing_is_written(
    pictures: Path, tmp_path: Path, recipe: Recipe
) -> None:
    with pytest.raises(InvalidParameter):
        quick(pictures, tmp_path / "mine.safetensors", recipe=recipe)
    assert not list(tmp_path.iterdir())


def test_a_run_that_diverges_leaves_what_was_there(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.safetensors"
    out.write_bytes(b"before")
    with pytest.raises(PerennialError, match="diverged"):
        quick(pictures, out, recipe=Recipe(epochs=1, batch=16, image_size=32, learning_rate=1e30))
    assert out.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing", "utf-8")
    with pytest.raises(InvalidDataset, match=r"no image that can be read \(1 skipped"):
        quick(tmp_path, tmp_path / "mine.safetensors")
    with pytest.raises(InvalidDataset, match="there is no folder"):
        quick(tmp_path / "absent", tmp_path / "mine.safetensors")


# --- the command -----------------------------------------------------------------------------------------


def test_the_command_continues_from_weights(home: Path, tmp_path: Path, write_shapes: WriteShapes) -> None:
    folder, out = write_shapes(tmp_path / "data", count=43), tmp_path / "mine.safetensors"
    words = ["pretrain", "--from", "builtin", "--data", str(folder), "--backbone", BACKBONE, "--epochs", "1"]
    done = CliRunner().invoke(app, [*words, "--image-size", "32", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["images"] == 129
    assert backbones.load(BACKBONE, str(out), image_size=64).weights_sha256 == said["sha256"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["x.safetensors", "--from", "builtin"], "go together"),
        (["x.safetensors", "--data", "."], "go together"),
        (["--from", "builtin", "--data", "."], "say once where"),
        (["x.safetensors", "--out", "y.safetensors"], "say once where"),
        (["x.pth", "--from", "builtin", "--data", "."], "end in .safetensors"),
        (["x.safetensors", "--from", "builtin", "--data", ".", "--glyphs", "3"], "--glyphs"),
    ],
)
def test_options_that_do_not_go_together_are_refused(home: Path, words: list[str], why: str) -> None:
    done = CliRunner().invoke(app, ["pretrain", *words])
    assert isinstance(done.exception, InvalidParameter)
    assert why in str(done.exception)


# --- what it gains ---------------------------------------------------------------------------------------


def accuracies(values: Floats, labels: np.ndarray, draws: int = 3) -> np.ndarray:
    found = []
    for draw in range(draws):
        random = np.random.default_rng(draw)
        fitted = np.concatenate([random.choice(np.flatnonzero(labels == at), 10, False) for at in range(6)])
        rest = np.setdiff1d(np.arange(len(labels)), fitted)
        probe = fixed_probe(
            values[fitted], labels[fitted].tolist(), [1.0] * len(fitted), 6, 0.1, root=never_negative(values)
        )
        found.append((probe.logits(values[rest]).argmax(axis=1) == labels[rest]).mean())
    return np.array(found)


def test_weights_that_know_no_photo_gain_much_on_steel(test_data: Path, tmp_path: Path) -> None:
    """640 images and 8 epochs: .50 to .76. ImageNet's weights gain nothing, which is why this starts from others."""
    folder = test_data / "neu_surface_defects"
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    for label in classes:
        for path in sorted((folder / label).iterdir())[::5]:
            (tmp_path / "steel").mkdir(exist_ok=True)
            (tmp_path / "steel" / f"{label}~{path.name}").symlink_to(path)
    start = backbones.load(BACKBONE, "builtin")
    images = unlabelled.load(tmp_path / "steel", threads=1)
    labels = np.array([classes.index(Path(row.location).name.split("~")[0]) for row in images.rows])
    pixels = unlabelled.pixels_of(images, start.rule, tmp_path / "pixels.npy", threads=1, limits=DEFAULT_LIMITS)
    trained, _ = continue_pretraining(start, pixels, Recipe(epochs=6))
    before, after = (accuracies(embedder.TorchEmbedder(each)(pixels), labels) for each in (start, trained))
    assert (after - before).min() > 0.05
    assert (after - before).mean() > 0.1
