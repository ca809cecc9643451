"""What the built-in checkpoint is worth: probes on handwritten digits with ten labelled images a class.

The digits are scikit-learn's own 1,797 (8 x 8 pixels), upscaled bilinearly to the checkpoint's input. A probe is a
logistic regression on frozen, pooled, standardised features, its L2 penalty chosen by five-fold cross-validation on
the labelled rows alone. Its peers run in the same splits: the same network with random weights (torchvision's own
initialisation, a new one each seed), and the logistic regression on the 64 pixels, as they are, since that is the
stronger of the two ways.

    python -m benchmarks.transfer
    python -m benchmarks.transfer --also fractals=fractals.safetensors
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from safetensors import safe_open
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from training.pretrain import MEAN, STD, builtin_checkpoint

BACKBONE = "mobilenet_v3_small"
RESULTS = Path(__file__).parent / "results"
_PENALTIES = np.logspace(-4, 2, 7)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measurement:
    """One number: the accuracy of one method on the digits not trained on, for one draw of the labelled ones."""

    task: str
    method: str
    seed: int
    metric: str
    value: float
    unit: str


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval by Student's t over the seeds."""

    mean: float
    low: float
    high: float


def interval(values: list[float]) -> Interval:
    """Mean and 95 % t-interval; at least two values."""
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Interval(mean, mean - half, mean + half)


def digits() -> tuple[Floats, NDArray[np.int64]]:
    """scikit-learn's digits: pixels ``[1797, 64]`` in 0..1 and labels."""
    pixels, labels = load_digits(return_X_y=True)
    return pixels / 16, labels.astype(np.int64)


def embed(pixels: Floats, checkpoint: Path | None, *, seed: int = 0, size: int = 64) -> Floats:
    """Pooled features ``[N, 576]`` of frozen weights: a checkpoint's, or random ones where there is none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = torchvision.models.get_model(BACKBONE, weights=None)
    if checkpoint is not None:
        with safe_open(checkpoint, "pt") as file:
            size = int((file.metadata() or {}).get("input_size", size))
            network.load_state_dict({k: file.get_tensor(k).float() for k in file.keys()}, strict=False)  # noqa: SIM118
    body = network.features.eval()
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    small = torch.from_numpy(pixels.reshape(-1, 1, 8, 8)).float()
    large = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    images = (large * 255).round() / 255  # whole grey levels, as in an image file
    with torch.inference_mode():
        parts = [body((part.expand(-1, 3, -1, -1) - mean) / std).mean((2, 3)) for part in torch.split(images, 128)]
    return torch.cat(parts).double().numpy()


def probe_accuracy(features: Floats, labels: NDArray[np.int64], *, per_class: int, seed: int, scale: bool) -> float:
    """Accuracy on all rows but the ``per_class`` of each class that the probe was fitted to."""
    random = np.random.default_rng(seed)
    rows = [random.permutation(np.flatnonzero(labels == k))[:per_class] for k in np.unique(labels)]
    fitted = np.zeros(len(labels), bool)
    fitted[np.concatenate(rows)] = True
    probe = make_pipeline(StandardScaler() if scale else "passthrough", LogisticRegression(max_iter=3000))
    grid = {"logisticregression__C": _PENALTIES}
    search = GridSearchCV(probe, grid, cv=5, scoring="neg_log_loss").fit(features[fitted], labels[fitted])
    return float((search.predict(features[~fitted]) == labels[~fitted]).mean())


def measure(checkpoints: dict[str, Path], seeds: range, per_class: int = 10) -> list[Measurement]:
    """Every method on the same splits; ``checkpoints`` by the name they get in the table."""
    pixels, labels = digits()
    learnt = {name: embed(pixels, path) for name, path in checkpoints.items()}
    task = f"digits, {per_class} a class"
    rows = []
    for seed in seeds:
        methods = learnt | {"random weights": embed(pixels, None, seed=seed), "pixels": pixels}
        for method, features in methods.items():
            scale = method != "pixels"
            value = probe_accuracy(features, labels, per_class=per_class, seed=seed, scale=scale)
            rows.append(Measurement(task, method, seed, "accuracy", value, "share"))
    return rows


def by_method(rows: list[Measurement]) -> dict[str, list[float]]:
    """Accuracies by method, in order of the seeds."""
    table: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: row.seed):
        table.setdefault(row.method, []).append(row.value)
    return table


def differences(rows: list[Measurement], method: str = "built-in") -> dict[str, Interval]:
    """How far ``method`` is ahead of each of the others, seed by seed."""
    table = by_method(rows)
    return {
        other: interval([a - b for a, b in zip(table[method], values, strict=True)])
        for other, values in table.items()
        if other != method
    }


def hardware() -> str:
    """A short name of this machine for a file name: architecture and processors."""
    return re.sub(r"[^a-z0-9]+", "-", f"{platform.machine()}-{os.cpu_count()}cpu".lower())


def write(rows: list[Measurement], path: Path) -> None:
    """One measurement a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Measurement.__dataclass_fields__)
        for row in rows:
            writer.writerow([row.task, row.method, row.seed, row.metric, f"{row.value:.6f}", row.unit])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--checkpoint", type=Path, help="instead of the built-in one")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=PATH", help="a further checkpoint")
    parser.add_argument("--out", type=Path, default=RESULTS / f"transfer-{hardware()}.csv")
    chosen = parser.parse_args()
    checkpoints = {"built-in": chosen.checkpoint or builtin_checkpoint(BACKBONE)}
    checkpoints |= {name: Path(path) for name, path in (pair.split("=", 1) for pair in chosen.also)}
    rows: list[Measurement] = []
    for per_class in (10, 60):
        part = measure(checkpoints, range(chosen.seeds), per_class)
        print(f"\n{part[0].task}: accuracy, mean of {chosen.seeds} seeds and 95 % t-interval")
        for method, values in by_method(part).items():
            it = interval(values)
            print(f"  {method:<16} {it.mean:.3f}  [{it.low:.3f}, {it.high:.3f}]")
        print("  built-in ahead of, in points, paired:")
        for other, it in differences(part).items():
            print(f"  {other:<16} {100 * it.mean:+.1f}  [{100 * it.low:+.1f}, {100 * it.high:+.1f}]")
        rows += part
    write(rows, chosen.out)
    print(f"\nwrote {chosen.out}")


if __name__ == "__main__":
    main()
