"""One training in this process: data in, accuracy on the test images out, by domain where there are several."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.training.draws import BACKBONE
from benchmarks.training.results import ACCURACY, SECONDS, Measurement
from perennial.bundle import Manifest
from perennial.graph import Graph
from perennial.images import ImageLimits
from perennial.settings_sections import TrainSettings
from training import datasets, evaluate
from training.datasets import Row, Skipped
from training.fit import FitRequest, fit

#: The rungs that can be served, from the cheapest to the dearest, and the one that picks.
AUTO: Final = "auto"
RUNGS: Final = ("linear_probe", "partial", "full", "scratch")
STRATEGIES: Final = (AUTO, *RUNGS)


@dataclass(frozen=True)
class Recipe:
    """What every training of a run has in common. `budget` is in seconds, `most` images a class and split are used."""

    weights: Path
    budget: float
    most: int | None = None


@dataclass(frozen=True)
class Trained:
    """What came of one training. `counts` is (right, tested) by domain, all test images under the empty name; `seconds`
    is reading the images and all of training, what `cache` already held not computed again."""

    manifest: Manifest
    skipped: tuple[Skipped, ...]
    counts: dict[str, tuple[int, int]]
    seconds: float


def train(
    data: Path, recipe: Recipe, *, strategy: str, seed: int, cache: Path, work: Path, domains: Sequence[str] = ()
) -> Trained:
    """As `perennial train` does, but for publishing the bundle, which is deleted.

    Args:
        data: a labelled folder or manifest.
        domains: names of folders whose test images are scored apart, by the finished bundle's graph.
    """
    defaults = TrainSettings()
    limits = ImageLimits()
    bundles = work / "bundles"
    began = time.perf_counter()
    images = datasets.load(str(data), validation=defaults.validation, test=defaults.test, seed=seed, limits=limits)
    fitted = fit(
        FitRequest(
            images=images, name="bench", backbone=BACKBONE, weights=str(recipe.weights.absolute()), strategy=strategy,
            image_size=0, seed=seed, threads=os.cpu_count() or 1, budget=recipe.budget,
        ),
        bundles=bundles, cache=cache, limits=limits,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    manifest = fitted.bundle.manifest
    tested = manifest.dataset.test
    counts = {"": (round(manifest.metrics[ACCURACY].value * tested), tested)}
    graph = Graph(fitted.bundle.graph) if domains else None
    unread = {skip.location for skip in fitted.skipped}
    for domain in domains:
        rows = [row for row in images.of("test") if domain in Path(row.location).parts and row.location not in unread]
        assert graph is not None
        counts[domain] = _counted(graph, rows, manifest)
    shutil.rmtree(fitted.bundle.path)
    return Trained(manifest, fitted.skipped, counts, seconds)


def measurements(task: str, method: str, seed: int, found: Trained) -> list[Measurement]:
    """One training as rows; `seconds` comes last. The accuracy's note is the strategy that was kept."""
    rows = []
    for domain, (right, tested) in found.counts.items():
        name = f"{ACCURACY}_{domain}" if domain else ACCURACY
        share = right / tested if tested else float("nan")
        rows.append(Measurement(task, method, seed, name, share, "share", note=found.manifest.strategy))
        rows.append(Measurement(task, method, seed, f"tested_{domain}" if domain else "tested", tested, "images"))
    learnt = found.manifest.dataset.train + found.manifest.dataset.validation
    rows.append(Measurement(task, method, seed, "learnt", learnt, "images"))
    return [*rows, Measurement(task, method, seed, SECONDS, found.seconds, "s")]


def _counted(graph: Graph, rows: Sequence[Row], manifest: Manifest) -> tuple[int, int]:
    if not rows:
        return 0, 0
    answers = evaluate.score(graph, rows, manifest.input).probabilities.argmax(axis=1)
    return sum(manifest.classes[at] == row.label for at, row in zip(answers, rows, strict=True)), len(rows)
