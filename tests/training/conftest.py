"""Small image folders, and one real training run on them for all the tests that only look at its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from training import lean_torchvision  # noqa: F401 - before a test imports torchvision, and with it torch's compiler

# isort: split
import torch
from PIL import Image, ImageDraw

from perennial.bundle import Bundle
from perennial.images import ImageLimits
from tests.training.retrain_world import champion, checkpoint, photos, shared_cache, world
from training import datasets
from training.fit import FitRequest, fit

__all__ = ["champion", "checkpoint", "photos", "shared_cache", "world"]  # fixtures

SHAPES = ("disc", "square", "stripes")
WriteShapes = Callable[..., Path]


def draw_shape(label: str, random: np.random.Generator, side: int = 56) -> Image.Image:
    """A shape of a random colour and place on a noisy ground."""
    ground = random.integers(0, 90, (side, side, 3), dtype=np.uint8)
    image = Image.fromarray(ground)
    pen = ImageDraw.Draw(image)
    colour = tuple(int(value) for value in random.integers(130, 256, 3))
    size = int(random.integers(side // 3, side // 2))
    left, top = (int(value) for value in random.integers(2, side - size - 2, 2))
    if label == "disc":
        pen.ellipse((left, top, left + size, top + size), fill=colour)
    elif label == "square":
        pen.rectangle((left, top, left + size, top + size), fill=colour)
    else:
        for at in range(0, size, 6):
            pen.line((left, top + at, left + size, top + at), fill=colour, width=2)
    return image


def write_shapes_to(
    folder: Path, *, classes: Sequence[str] = SHAPES, count: int = 20, seed: int = 0, suffix: str = "png"
) -> Path:
    random = np.random.default_rng(seed)
    for at, label in enumerate(classes):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            draw_shape(SHAPES[at % len(SHAPES)], random).save(folder / label / f"{number:03d}.{suffix}")
    return folder


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small work on several threads mostly waits for them."""
    torch.set_num_threads(1)


@pytest.fixture
def write_shapes() -> WriteShapes:
    """Writes a folder of class folders: `write_shapes(folder, classes=("disc", "square"), count=20)`."""
    return write_shapes_to


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images, 3 classes. Do not write into it."""
    return write_shapes_to(tmp_path_factory.mktemp("shapes") / "data")


@pytest.fixture(scope="session")
def shape_images(shapes: Path) -> datasets.LabelledImages:
    return datasets.load(str(shapes), validation=0.2, test=0.3, seed=0)


@pytest.fixture(scope="session")
def shape_bundle(shape_images: datasets.LabelledImages, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A real model of the shapes on the built-in weights. Do not change it."""
    folder = tmp_path_factory.mktemp("shape-model")
    request = FitRequest(shape_images, "shapes", "mobilenet_v3_small", "builtin", "linear_probe", 0, seed=0, threads=1)
    return fit(request, bundles=folder / "models", cache=folder / "cache", limits=ImageLimits()).bundle
