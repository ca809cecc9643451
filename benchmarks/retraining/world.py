"""A home in which a model of photos is live, and sketches of the same things have come and been labelled."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

from benchmarks.resilience.server import say, serving
from benchmarks.serving.material import TEST_DATA, Bodies, environment

CAPTURES: Final = 300
_PHOTOS, _SKETCHES = TEST_DATA / "pacs" / "photo", TEST_DATA / "pacs" / "sketch"
_WEIGHTS: Final = TEST_DATA / "weights" / "mobilenet_v2_imagenet.pth"
_BODIES: Final = 32


@dataclass(frozen=True)
class World:
    """`home` is put back to what `before` holds by `reset`: what a ledger names lies at a path, so it cannot move."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def before(self) -> Path:
        return self.folder / "before"

    def reset(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.before, self.home)

    def bodies(self) -> Bodies:
        """Photos, as requests."""
        paths = _shuffled(_PHOTOS)[:_BODIES]
        listing = self.folder / "bodies.txt"
        listing.write_text("".join(f"{path}\n" for path in paths), "utf-8")
        return Bodies(listing, "image/jpeg")


def prepare(folder: Path) -> World:
    """Train on all photos, serve, send `CAPTURES` sketches and label them; what an earlier run left there is used."""
    for needed in (_PHOTOS, _SKETCHES, _WEIGHTS):
        if not needed.exists():
            raise SystemExit(f"the retraining benchmark needs {needed}; see PERENNIAL_TEST_DATA")
    world = World(folder.absolute())
    if world.before.is_dir():
        return world
    shutil.rmtree(world.home, ignore_errors=True)
    world.home.mkdir(parents=True)
    say("training the champion")
    perennial(
        world.home, "train", str(_PHOTOS.absolute()), "--backbone", "mobilenet_v2",
        "--weights", str(_WEIGHTS.absolute()), "--strategy", "linear_probe", "--json",
    )  # fmt: skip
    sketches = _shuffled(_SKETCHES)[:CAPTURES]
    with serving(world.home) as server, httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:

        def label(path: Path) -> dict[str, str]:
            answer = http.post("/v1/predict", content=path.read_bytes())
            answer.raise_for_status()
            return {"prediction_id": answer.json()["prediction_id"], "label": path.parent.name}

        with ThreadPoolExecutor(4) as clients:
            given = list(clients.map(label, sketches))
        _accept(http, given)
    world.home.rename(world.before)
    world.reset()
    return world


def perennial(home: Path, *arguments: str) -> dict[str, Any]:
    """Run a verb; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "commands.main", *arguments],
        env=environment(home), cwd=home, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode not in (0, 11):  # done, or refused by the gate
        raise SystemExit(f"perennial {arguments[0]} failed:\n{done.stdout}{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _accept(http: httpx.Client, given: list[dict[str, str]]) -> None:
    """Predictions come into the ledger a moment after their answers; labels for them are taken from then on."""
    for _ in range(100):
        answer = http.post("/v1/feedback", json=given)
        if answer.status_code == 200 and answer.json()["accepted"] == len(given):
            return
        time.sleep(0.2)
    raise SystemExit(f"the labels were not accepted: {answer.status_code} {answer.text}")


def _shuffled(folder: Path) -> list[Path]:
    paths = sorted(path.absolute() for path in folder.glob("*/*"))
    return [paths[index] for index in np.random.default_rng(0).permutation(len(paths))]
