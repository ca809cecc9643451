"""How much memory and time `perennial train` takes on many images, stage by stage.

The images are small JPEGs (96 pixels a side, about 3 kB) of made-up classes, a colour and a pattern each, that are
written first. They are then trained on in a process of its own. Of each stage the table has the seconds and the most
memory that was resident in it (`VmHWM` of Linux): pages of files that are mapped count as well, the libraries' too.

    python -m benchmarks.training_memory --images 20000
    python -m benchmarks.training_memory --weights mobilenet_v2_imagenet.pth --strategy auto --budget 120
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.transfer import RESULTS, hardware

CLASSES = 7
SIDE = 96
#: The bound on the whole run.
MOST_MEGABYTES = 2000


@dataclass(frozen=True)
class Stage:
    """`peak_megabytes` is the most that was resident while the stage ran, `seconds` how long it did. The stage `whole`
    is all of them."""

    images: int
    backbone: str
    strategy: str
    stage: str
    seconds: float
    peak_megabytes: int


def make(count: int, folder: Path) -> None:
    """JPEGs in a folder a class: clouds of the class's colour under its pattern, none like another."""
    random, colours = np.random.default_rng(0), np.random.default_rng(7).random((CLASSES, 3), np.float32)
    across = np.arange(SIDE)
    for label in range(CLASSES):
        Path(folder, f"class {label}").mkdir(parents=True)
    for at in range(count):
        label = at % CLASSES
        coarse = random.random((12, 12, 3), np.float32) * 0.7 + colours[label] * 0.3
        clouds = Image.fromarray((255 * coarse).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        noise = random.integers(-8, 8, (SIDE, SIDE, 1))
        waves = (10 * np.sin(across * (label + 2) / 6)).astype(np.int64)
        pixels = (np.asarray(clouds) + noise + waves[None, :, None]).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(Path(folder, f"class {label}", f"{at:06d}.jpg"), quality=80)


def train(data: Path, home: Path, chosen: argparse.Namespace) -> None:
    """Train in this process, and print the stages as JSON, one a line."""
    stages = _Stages()
    stages.begin("starting")
    from perennial.ledger import open_ledger
    from perennial.progress import Step
    from perennial.settings import Settings
    from perennial.settings_sections import TrainSettings
    from training.train import train as run

    how = {name: getattr(chosen, name) for name in ("backbone", "weights", "strategy", "budget")}
    settings = Settings(home=home, train=TrainSettings.model_validate(how))

    def follow(step: Step) -> None:
        stages.begin(step.stage)
        if step.done == step.total:  # what comes after it and does not say its name
            stages.begin(f"after {step.stage}")

    run(open_ledger(settings.ledger_url), settings, str(data), follow)
    stages.begin("")


class _Stages:
    """Prints what a stage took when the next one begins."""

    def __init__(self) -> None:
        self._name, self._began = "", time.perf_counter()

    def begin(self, name: str) -> None:
        if name == self._name:
            return
        if self._name:
            seconds = time.perf_counter() - self._began
            print(json.dumps({"stage": self._name, "seconds": seconds, "peak_megabytes": _peak()}), flush=True)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
        self._name, self._began = name, time.perf_counter()


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 // 10**6


def measure(images: Path, chosen: argparse.Namespace) -> list[Stage]:
    """Every stage of a run in a process of its own, and `whole`."""
    what = (chosen.images, chosen.backbone, chosen.strategy)
    with tempfile.TemporaryDirectory(prefix="perennial-") as home:
        command = [sys.executable, "-m", "benchmarks.training_memory", "--child", str(images), home]
        for name in ("backbone", "weights", "strategy", "budget"):
            command += [f"--{name}", str(getattr(chosen, name))]
        environment = os.environ | {"BENTOML_HOME": str(Path(home, "bentoml"))}
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert child.stdout is not None
        found = []
        for line in child.stdout:
            facts = json.loads(line)
            found.append(Stage(*what, **facts))
            print(f"{found[-1].stage:<44} {found[-1].seconds:>8.1f} s {found[-1].peak_megabytes:>6} MB", flush=True)
        if child.wait() != 0:
            raise SystemExit(f"the run ended with {child.returncode}")
    seconds, peak = sum(stage.seconds for stage in found), max(stage.peak_megabytes for stage in found)
    return [*found, Stage(*what, "whole", seconds, peak)]


def write(stages: list[Stage], path: Path) -> None:
    """One stage a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Stage))
        for stage in stages:
            writer.writerow(f"{value:.1f}" if isinstance(value, float) else value for value in asdict(stage).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", default="default", help="as of `perennial train`")
    parser.add_argument("--strategy", default="linear_probe", help="as of `perennial train`")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds, for the strategy auto")
    parser.add_argument("--folder", type=Path, help="where the images are, or are to be and to stay")
    parser.add_argument("--out", type=Path, default=RESULTS / f"training-memory-{hardware()}.csv")
    parser.add_argument("--child", nargs=2, type=Path, metavar=("DATA", "HOME"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        data, home = chosen.child
        train(data, home, chosen)
        return
    with tempfile.TemporaryDirectory(prefix="perennial-") as temporary:
        folder = chosen.folder or Path(temporary, "images")
        if not folder.exists():
            print(f"writing {chosen.images:,} images")
            make(chosen.images, folder)
        stages = measure(folder, chosen)
    whole = stages[-1]
    write(stages, chosen.out)
    verdict = "within" if whole.peak_megabytes <= MOST_MEGABYTES else "OVER"
    print(
        f"\n{whole.images:,} images: {whole.seconds:,.0f} s and at most {whole.peak_megabytes:,} MB resident, "
        f"{verdict} {MOST_MEGABYTES:,} MB\nwrote {chosen.out}"
    )


if __name__ == "__main__":
    main()
