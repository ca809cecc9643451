"""Several real processes, as torchrun starts them, against one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from perennial.errors import PerennialError
from perennial.images import ImageLimits
from training import backbones, datasets, deep, features, processes, recipes, strategy, together
from training.finetune import EpochDone, Finetuned
from training.processes import Place
from training.recipes import Recipe
from training.together import Hardware, Job, Workplace
from training.views import Images

SIDE = 48
EPOCHS = 2
LEARNT = 33  # the last batch has one image: fewer than there are processes
HARDWARE = Hardware("cpu", "32-true")
#: Sums of float32 in another order differ in the last bits (1e-6 was seen), and AdamW divides by the gradient's own
#: size, which makes the most of that where it is next to nothing. A batch of one, counted twice, made 1e-1.
TOLERANCE = 1e-4


def trained(recipe: Recipe, weights: str, folder: Path, record: Callable[[EpochDone], None] | None = None) -> Finetuned:
    random = np.random.default_rng(0)
    labels = np.tile(np.arange(3), 15)
    pixels = random.integers(0, 90, (len(labels), SIDE, SIDE, 3), dtype=np.uint8)
    for at, label in enumerate(labels):
        pixels[at, 8 + 4 * label : 28 + 4 * label, 8:32, label] += 120
    np.save(folder / "pixels.npy", pixels)
    backbone = backbones.load("mobilenet_v3_small", weights, image_size=SIDE)
    job = Job(
        backbone, None, folder / "pixels.npy", np.arange(LEARNT), labels[:LEARNT], np.ones(LEARNT), recipe, 3, 0,
        "test", folder, HARDWARE, threads=1,
    )  # fmt: skip
    rest = np.arange(LEARNT, len(labels))
    judged = Images(pixels, labels[rest], np.ones(len(rest)), rest)
    return Workplace().train(job, judged, **({"record": record} if record else {}))


def partly(folder: Path) -> dict[str, torch.Tensor]:
    return _numbers(trained(Recipe(1, 2, SIDE, 3e-3), "builtin", folder))


def from_scratch(folder: Path) -> dict[str, torch.Tensor]:
    return _numbers(trained(Recipe(None, 2, SIDE, 1e-3, random_start=True, refit=False), "none", folder))


def chosen(folder: Path, data: Path) -> dict[str, torch.Tensor]:
    """What the ladder makes of the rung `partial`, in few epochs."""
    images = datasets.load(str(data), validation=0.2, test=0.3, seed=0)
    backbone = backbones.load("mobilenet_v3_small", "builtin", image_size=SIDE)
    embedded = features.embed(images.rows, backbone, folder / "cache", threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deep, "recipe", lambda *given: recipes.recipe(*given[:3], EPOCHS))
        found = strategy.choose(
            images, embedded, backbone,
            strategy.Climb("partial", 60.0, 0, 1, ImageLimits(), folder, folder / "cache", hardware=HARDWARE),
        )  # fmt: skip
    assert found.strategy == "partial"
    return {
        "probabilities": torch.from_numpy(found.probabilities),
        "temperature": torch.tensor([found.temperature]),
        "accuracies": torch.tensor([rung.accuracy.value for rung in found.ladder.rungs if rung.accuracy]),
        "head": torch.from_numpy(found.head.weight),
    }


def _numbers(found: Finetuned) -> dict[str, torch.Tensor]:
    state = {name: value.contiguous() for name, value in found.backbone.network.state_dict().items()}
    curve = torch.tensor([point.accuracy for point in found.curve])
    logits = torch.from_numpy(found.logits)
    return state | {"head": torch.from_numpy(found.head.weight), "curve": curve, "logits": logits}


def stop(done: EpochDone) -> None:
    raise PerennialError("stopped in the midst of it")


def _main(out: Path, data: Path, what: str) -> None:
    torch.set_num_threads(1)
    if processes.place().rank:
        together.follow()
        return
    with tempfile.TemporaryDirectory() as folder, processes.leading():
        if what == "stop":
            trained(Recipe(1, 2, SIDE), "builtin", Path(folder), record=stop)
        save_file(partly(Path(folder)), out / "partly")
        save_file(from_scratch(Path(folder)), out / "from_scratch")
        save_file(chosen(Path(folder), data), out / "chosen")


def torchrun(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300)


def test_two_processes_give_what_one_does(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    ran = torchrun(tmp_path / "two", shapes, "all")
    assert ran.returncode == 0, ran.stderr
    one = {
        "partly": partly(tmp_path / "one"),
        "from_scratch": from_scratch(tmp_path / "one"),
        "chosen": chosen(tmp_path / "one", shapes),
    }
    for name, expected in one.items():
        two = load_file(tmp_path / "two" / name)
        assert two.keys() == expected.keys()
        for key, value in expected.items():
            worst = float((two[key].double() - value.double()).abs().max())
            scale = max(1.0, float(value.double().abs().max()))
            assert worst <= TOLERANCE * scale, (name, key, worst)
    start = backbones.load("mobilenet_v3_small", "builtin", image_size=SIDE).network.state_dict()
    moved = max(float((one["partly"][key] - value).abs().max()) for key, value in start.items())
    assert moved > 5 * TOLERANCE  # so that what is compared is what was learnt


def test_an_error_of_one_ends_both_and_is_told_once(shapes: Path, tmp_path: Path) -> None:
    ran = torchrun(tmp_path, shapes, "stop")
    assert ran.returncode != 0
    assert ran.stderr.count("PerennialError: stopped in the midst of it") == 1
    assert "Connection closed" not in ran.stderr


def test_without_torchrun_there_is_one_process_and_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")  # a variable that other programs set as well
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert processes.place() == Place(0, 1, 0, 1, 0)
    with processes.leading():
        assert not processes.joined()
        assert not torch.distributed.is_initialized()
        assert processes.broadcast("mine") == "mine"


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
