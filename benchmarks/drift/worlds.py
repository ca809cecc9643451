"""Real images that a trained model has not seen, scored under every change once: what the trials draw from."""

from __future__ import annotations

import csv
import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from benchmarks.drift.shifts import Change, Pixels
from monitoring.composition import Collection
from monitoring.window import Reference, Scores, Window
from perennial.bundle import GRAPH, WEIGHTS, Bundle
from perennial.chance import ChanceEffects
from perennial.effects import chance_effects
from perennial.graph import OUTPUTS, PROPERTIES, Graph, GraphOutput
from perennial.images import ImageLimits
from training import datasets
from training.fit import FitRequest, fit

Indexes = NDArray[np.int64]

_BATCH: Final = 64
_PIXELS: Final = 32  # a side, for the principal components of raw pixels
_COMPONENTS: Final = 32


@dataclass(frozen=True)
class World:
    """A model, the images it never saw with their labels, and other images (sketches) that may come in their place.

    `scores` and `pixels` are by the name of a change, "" for none: what the graph said of each image [N], and the
    principal components of its raw pixels [N, 32], by axes that were fitted on the training images. `chance` is what a
    bundle says of its reference.
    """

    name: str
    classes: tuple[str, ...]
    labels: NDArray[np.str_]
    scores: Mapping[str, Scores]
    components: Mapping[str, NDArray[np.float32]]
    chance: ChanceEffects | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def reference(self, rows: Indexes) -> Reference:
        held_out = np.ones(len(rows), dtype=bool)
        return Reference(self.classes, PROPERTIES, self.scores[""].take(rows), held_out, chance=self.chance)


def joined(parts: list[Scores]) -> Scores:
    """One after the other."""
    return Scores(
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.embedding for part in parts]),
        np.concatenate([part.properties for part in parts]),
        np.concatenate([part.predicted for part in parts]),
        np.concatenate([part.confidence for part in parts]),
        tuple(label for part in parts for label in part.labels),
        tuple(digest for part in parts for digest in part.digests),
    )


def window_of(scores: Scores) -> Window:
    """As the monitor reads it, of images that all came in the same way."""
    whole = {"": 1.0}
    return Window(
        len(scores), None, None, scores, scores.answers, Collection(whole, whole, whole, whole, 1 / max(1, len(scores)))
    )


def relabelled(scores: Scores, labels: tuple[str | None, ...]) -> Scores:
    return Scores(
        scores.probabilities, scores.embedding, scores.properties, scores.predicted, scores.confidence, labels,
        scores.digests,
    )  # fmt: skip


def digits_on_disk(folder: Path) -> tuple[list[Path], list[str]]:
    """scikit-learn's 1,797 handwritten digits, 64 pixels a side."""
    data, paths, labels = load_digits(), [], []
    for at, (image, label) in enumerate(zip(data.images, data.target, strict=True)):
        path = folder / f"{at:04}.png"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((64, 64), Image.Resampling.BILINEAR)
            grey.convert("RGB").save(path)
        paths.append(path)
        labels.append(str(label))
    return paths, labels


def photos_on_disk(data: Path, kind: str) -> tuple[list[Path], list[str]]:
    """The shared photos, or sketches, of seven things."""
    found = sorted((data / "pacs" / kind).glob("*/*.*"))
    return found, [path.parent.name for path in found]


def steel_on_disk(data: Path) -> tuple[list[Path], list[str]]:
    """The shared photos of steel with six defects, 200 pixels a side."""
    found = sorted((data / "neu_surface_defects").glob("*/*.jpg"))
    return found, [path.parent.name for path in found]


def build(
    name: str,
    paths: list[Path],
    labels: list[str],
    changes: Mapping[str, Change],
    others: Mapping[str, tuple[list[Path], list[str]]],
    *,
    backbone: str,
    weights: str,
    image_size: int,
    train: int,
    folder: Path,
    seed: int = 0,
) -> World:
    """Train a probe on `train` of the images, and score all others under every change.

    Args:
        others: images of something else, by name; they are scored as they are.
        folder: keeps models, features and scores, so that the next build of the same takes a minute.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(paths))
    learnt, rest = order[:train], np.sort(order[train:])
    bundle = trained(
        name, [paths[at] for at in learnt], [labels[at] for at in learnt], backbone, weights, image_size, folder
    )
    graph, rule = Graph(bundle.graph, threads=os.cpu_count() or 1), bundle.manifest.input
    axes = PCA(_COMPONENTS, random_state=0).fit(_small(_pixels([paths[at] for at in learnt], rule.crop)))
    plain = _pixels([paths[at] for at in rest], rule.crop)
    truth = [labels[at] for at in rest]
    scores, components = {}, {}

    def add(change: str, pixels: Pixels, truth: list[str]) -> None:
        output = _output(graph, pixels, bundle, folder / "scored")
        scores[change] = _scored(output, truth, bundle.manifest.classes, change)
        components[change] = axes.transform(_small(pixels)).astype(np.float32)

    add("", plain, truth)
    for change, function in changes.items():
        # A source of chance of its own: what else is asked for leaves a change as it is.
        add(change, function(plain, np.random.default_rng([seed, zlib.crc32(change.encode())])), truth)
    for other, (their_paths, their_labels) in others.items():
        add(other, _pixels(their_paths, rule.crop), their_labels)
    known = scores[""]
    chance = chance_effects(known.properties, known.probabilities, known.predicted)
    return World(name, bundle.manifest.classes, np.array(truth), scores, components, chance)


def trained(
    name: str, paths: list[Path], labels: list[str], backbone: str, weights: str, image_size: int, folder: Path
) -> Bundle:
    """A probe on these images."""
    listed = folder / f"{name}.csv"
    listed.parent.mkdir(parents=True, exist_ok=True)
    with listed.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        writer.writerows((str(path.absolute()), label) for path, label in zip(paths, labels, strict=True))
    images = datasets.load(str(listed), validation=0.2, test=0.1, seed=0)
    request = FitRequest(
        images, name, backbone, weights, "linear_probe", image_size, seed=0, threads=os.cpu_count() or 1
    )
    return fit(request, bundles=folder / "models", cache=folder / "cache", limits=ImageLimits()).bundle


def _pixels(paths: list[Path], side: int) -> Pixels:
    found = np.empty((len(paths), side, side, 3), np.uint8)
    for at, path in enumerate(paths):
        with Image.open(path) as image:
            found[at] = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
    return found


def _small(pixels: Pixels) -> NDArray[np.float32]:
    size = (_PIXELS, _PIXELS)
    small = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for image in pixels]
    return np.stack(small).reshape(len(pixels), -1).astype(np.float32) / 255


def _output(graph: Graph, pixels: Pixels, bundle: Bundle, kept: Path) -> GraphOutput:
    """What the graph says of the images; kept there by the digests of the weights and of the pixels."""
    known = hashlib.sha256("".join(bundle.manifest.files[file].sha256 for file in (GRAPH, WEIGHTS)).encode())
    known.update(np.ascontiguousarray(pixels).data)
    path = kept / f"{known.hexdigest()}.npz"
    if not path.exists():
        parts = [graph.run(np.ascontiguousarray(pixels[at : at + _BATCH])) for at in range(0, len(pixels), _BATCH)]
        whole = {name: np.concatenate([getattr(part, name) for part in parts]) for name in OUTPUTS}
        kept.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part.npz")
        np.savez(unfinished, **whole)
        unfinished.rename(path)
    with np.load(path, allow_pickle=False) as found:
        return GraphOutput(*(found[name] for name in OUTPUTS))


def _scored(output: GraphOutput, labels: list[str], classes: tuple[str, ...], change: str) -> Scores:
    probabilities = output.probabilities
    return Scores(
        probabilities,
        output.embedding,
        output.properties,
        np.array(classes, dtype=object)[probabilities.argmax(axis=1)],
        probabilities.max(axis=1),
        tuple(labels),
        tuple(f"{change} {at}" for at in range(len(probabilities))),
    )
