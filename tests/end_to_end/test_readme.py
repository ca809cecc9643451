"""Every command of the README runs as it stands there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commands.demo_traffic import served
from tests.in_process import perennial_here

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def commands() -> list[str]:
    """The lines of the README's shell blocks, without their comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"\s{2,}#.*$", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def write_photos(folder: Path) -> None:
    """Ants are dark discs on light, bees light squares on dark."""
    random = np.random.default_rng(0)
    for label, dark in (("ants", True), ("bees", False)):
        (folder / label).mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(150, 255, (64, 64, 3)) if dark else random.integers(0, 90, (64, 64, 3))
            y, x = np.mgrid[:64, :64] - random.integers(20, 44)
            inside = x**2 + y**2 < 150 if dark else (abs(x) < 12) & (abs(y) < 12)
            pixels[inside] = 30 if dark else 220
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{number}.jpg")


def test_the_readme_names_the_two_commands() -> None:
    assert commands()[:2] == ["make demo", "make test"]
    for target, runs in (("demo", "perennial demo"), ("test", "-m pytest")):
        plan = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert runs in plan


def test_ci_runs_the_same_test_command() -> None:
    assert re.search(r"^make test\b", (ROOT / ".ci" / "run").read_text("utf-8"), flags=re.MULTILINE)


@pytest.mark.timeout(600)
def test_every_command_runs(
    perennial: Callable[..., Any], home: Path, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    write_photos(tmp_path / "photos")
    shutil.copy(tmp_path / "photos" / "bees" / "0.jpg", tmp_path / "photo.jpg")
    shutil.copy(tmp_path / "photos" / "ants" / "0.jpg", tmp_path / "other.jpg")
    monkeypatch.setenv("PERENNIAL_SERVE__PORT", str(free_port))
    monkeypatch.setenv("PERENNIAL_MONITOR__PORT", "0")  # the watcher of another test may have it
    monkeypatch.setenv("PERENNIAL_TRAIN__WEIGHTS", "builtin")  # ImageNet's would be downloaded
    monkeypatch.setenv("PERENNIAL_TRAIN__BUDGET", "5")  # that it runs is asked here, not what it finds
    home.mkdir(exist_ok=True)
    todo = [line for line in commands() if not line.startswith(("make ", "source "))]
    before, after = todo[: todo.index("perennial serve")], todo[todo.index("perennial serve") + 1 :]
    assert len(before) == 1
    assert len(after) > 10
    perennial(*shlex.split(before[0])[1:])
    prediction = ""
    # What has nothing to do says so with exit code 4: no traffic has drifted here, nor is it enough to test.
    nothing_to_do = {
        "perennial retrain --if-due",
        "perennial ui",
        "perennial models rollback",
        "perennial rollout status",
    }
    with served(free_port, home / "server.log", keep=False):
        for line in after:
            words = shlex.split(line.replace("http://127.0.0.1:3000", f"http://127.0.0.1:{free_port}"))
            if words[0] == "perennial":
                perennial(*words[1:], code=4 if line in nothing_to_do else 0)
                continue
            assert words[0] == "curl", line
            words = [word.replace('"ID"', f'"{prediction}"') for word in words]
            done = subprocess.run(
                ["curl", "--silent", "--show-error", "--fail-with-body", "--noproxy", "*", *words[1:]],
                cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            answer = json.loads(done.stdout)
            if "prediction_id" in answer:
                prediction = answer["prediction_id"]
                assert answer["label"] == "bees"
            if line.endswith("/v1/feedback"):
                assert answer["accepted"] == 1
    assert prediction


def test_every_link_of_the_readme_leads_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) > 5
    missing = [target for target in targets if not target.startswith("http") and not (ROOT / target).exists()]
    assert not missing


def test_help_answers_for_every_verb() -> None:
    for words in ([], ["train"], ["serve"], ["ui"], ["models", "promote"]):
        done = perennial_here(*words, "--help", cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout
