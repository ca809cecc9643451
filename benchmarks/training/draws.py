"""Draws of training images from the shared data, as CSV manifests that point at it; what is not drawn is the test."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

TEST_DATA: Final = Path(os.environ.get("PERENNIAL_TEST_DATA", "../shared/data"))
WEIGHTS: Final = "weights/mobilenet_v2_imagenet.pth"
BACKBONE: Final = "mobilenet_v2"
_IMAGES: Final = (".jpg", ".jpeg", ".png", ".bmp")
_PHOTOS, _SKETCHES = 1000, 300

#: (the shared data, the folder to write into, seed, most images a class and split or None) -> what to train on
Make = Callable[[Path, Path, int, int | None], Path]
#: class -> its images
Classes = Mapping[str, list[Path]]


@dataclass(frozen=True)
class Draw:
    """A task of the shared data. `domains` are folders of it whose test images are scored apart as well."""

    name: str
    make: Make
    domains: tuple[str, ...] = ()


def classes_of(folder: Path) -> dict[str, list[Path]]:
    """The images of each class folder, sorted."""
    found = {
        each.name: sorted(path for path in each.iterdir() if path.suffix.lower() in _IMAGES)
        for each in sorted(folder.iterdir())
        if each.is_dir() and not each.name.startswith(".")
    }
    if not found:
        raise SystemExit(f"{folder} has no class folders; give --test-data the folder with the real images")
    return found


def rest_is_test(folder: str, per_class: int) -> Make:
    """So many images a class to train on, drawn by the seed; all others are the test."""

    def make(data: Path, into: Path, seed: int, most: int | None) -> Path:
        random = np.random.default_rng([seed, 1])
        rows = []
        for label, paths in classes_of(data / folder).items():
            train, test = _split(paths, per_class, random, most)
            rows += _rows(train, label, "train") + _rows(test, label, "test")
        return _write(rows, into / f"{folder.replace('/', '-')}-{per_class}-{seed}.csv")

    return make


def own_split(folder: str) -> Make:
    """Everything, split by `perennial train` itself (by the seed)."""

    def make(data: Path, into: Path, seed: int, most: int | None) -> Path:
        if most is None:
            return data / folder
        rows = [row for label, paths in classes_of(data / folder).items() for row in _rows(paths[:most], label, "")]
        return _write(rows, into / f"{folder.replace('/', '-')}-{seed}.csv")

    return make


def ants_and_bees(per_class: int | None) -> Make:
    """Ants and bees: the official validation photos are the test; so many a class to train on, or all."""

    def make(data: Path, into: Path, seed: int, most: int | None) -> Path:
        random = np.random.default_rng([seed, 1])
        rows = []
        for label, paths in classes_of(data / "hymenoptera" / "train").items():
            train, _ = _split(paths, per_class or len(paths), random, most)
            test = classes_of(data / "hymenoptera" / "val")[label][:most]
            rows += _rows(train, label, "train") + _rows(test, label, "test")
        return _write(rows, into / f"hymenoptera-{per_class or 'all'}-{seed}.csv")

    return make


def photos_and_sketches(data: Path, into: Path, seed: int, most: int | None) -> Path:
    """1,000 photos and 300 sketches of the same seven things to train on; the others of both are the test."""
    random = np.random.default_rng([seed, 1])
    rows = []
    for folder, count in (("pacs/photo", _PHOTOS), ("pacs/sketch", _SKETCHES)):
        every = [(path, label) for label, paths in classes_of(data / folder).items() for path in paths[:most]]
        order = random.permutation(len(every))
        drawn = frozenset(order[: count if most is None else min(count, len(every) // 2)].tolist())
        for at, (path, label) in enumerate(every):
            rows += _rows([path], label, "train" if at in drawn else "test")
    return _write(rows, into / f"photos-sketches-{seed}.csv")


#: By name. The number is of images a class to train on.
DRAWS: Final = {
    draw.name: draw
    for draw in (
        Draw("hymenoptera-20", ants_and_bees(20)),
        Draw("hymenoptera-60", ants_and_bees(60)),
        Draw("hymenoptera-all", ants_and_bees(None)),
        *(Draw(f"steel-{count}", rest_is_test("neu_surface_defects", count)) for count in (10, 50, 150)),
        Draw("photo", own_split("pacs/photo")),
        *(Draw(f"photo-{count}", rest_is_test("pacs/photo", count)) for count in (10, 50)),
        *(Draw(f"sketch-{count}", rest_is_test("pacs/sketch", count)) for count in (10, 40, 100)),
        Draw("photos+sketches", photos_and_sketches, ("photo", "sketch")),
    )
}


def copy_ants_and_bees(data: Path, into: Path, most: int | None) -> Path:
    """The official folder; where it is to be smaller, a copy with so many images a class and split."""
    if most is None:
        return data / "hymenoptera"
    for split in ("train", "val"):
        for label, paths in classes_of(data / "hymenoptera" / split).items():
            target = into / "hymenoptera" / split / label
            target.mkdir(parents=True, exist_ok=True)
            for path in paths[:most]:
                shutil.copy(path, target)
    return into / "hymenoptera"


def _split(
    paths: list[Path], count: int, random: np.random.Generator, most: int | None
) -> tuple[list[Path], list[Path]]:
    order = random.permutation(len(paths))
    train = [paths[at] for at in order[: min(count, most or count)]]
    return train, sorted(paths[at] for at in order[count:])[:most]


def _rows(paths: Iterable[Path], label: str, split: str) -> list[tuple[str, str, str]]:
    return [(str(path.absolute()), label, split) for path in paths]


def _write(rows: list[tuple[str, str, str]], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "label", "split"])
        writer.writerows(rows)
    return path
