"""Tasks made here, each honest about one thing: transfer hurts, a simple baseline suffices, copies straddle the split.

Images are drawn with NumPy and Pillow from a seed: the same seed gives the same files.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

#: Pixels a side. ImageNet networks resize to 256 and cut out 224: at this size no pixel is blurred into another.
SIDE: Final = 256
_PERMUTATION_SEED: Final = 5
_SHAPES: Final = ("discs", "squares", "triangles")
_HUES: Final = {"red": 0, "green": 85, "blue": 170}  # of 256, as Pillow counts them
_HUE_SPREAD: Final = 14


def permuted_gratings(folder: Path, *, images: int = 240, side: int = SIDE, seed: int = 0) -> Path:
    """Transfer hurts: upright and level gratings, all pixels of which changed places by one fixed permutation.

    What a network learnt on photos, that neighbours belong together, is wrong here: a linear head on random features
    does better than on pretrained ones. Colour histograms are the same in both classes.

    Args:
        images: in both classes together.

    Returns:
        `folder`, with one folder a class.
    """
    places = np.random.default_rng(_PERMUTATION_SEED).permutation(side * side)
    across = np.linspace(-1, 1, side)
    for number in range(images):
        label, random = ("level", "upright")[number % 2], np.random.default_rng([seed, number])
        wave = 40 * np.sin(np.pi * random.uniform(1, 3) * across + random.uniform(0, 2 * np.pi))
        grating = np.broadcast_to(wave if label == "upright" else wave[:, None], (side, side))
        noisy = 128 + grating + random.normal(0, 8, (side, side))
        _save(_grey(noisy.ravel()[places].reshape(side, side)), folder / label / f"{number:04}.png")
    return folder


def colour_patches(folder: Path, *, images: int = 180, side: int = SIDE, seed: int = 0) -> Path:
    """The simple baseline suffices: patches of a hue in any light, with grain. The hue is the class.

    Returns:
        `folder`, with one folder a class.
    """
    for number in range(images):
        label, random = list(_HUES)[number % len(_HUES)], np.random.default_rng([seed, number])
        hue = (_HUES[label] + random.integers(-_HUE_SPREAD, _HUE_SPREAD + 1)) % 256
        light = _smooth(random, side) * 70 + random.uniform(110, 170) + random.normal(0, 10, (side, side))
        patch = np.empty((side, side, 3), np.uint8)
        patch[..., 0], patch[..., 1] = hue, random.integers(120, 220)
        patch[..., 2] = np.clip(light, 20, 255)
        _save(Image.fromarray(patch, "HSV").convert("RGB"), folder / label / f"{number:04}.png")
    return folder


def planted_duplicates(
    folder: Path, *, train: int = 120, held_out: int = 45, planted: int = 12, side: int = SIDE, seed: int = 0
) -> tuple[Path, tuple[Path, ...]]:
    """A split that is not clean: drawings of shapes in train/ and val/, and among the former copies of the latter.

    A copy is encoded, resized, brightened or mirrored anew, as copies are that a search engine finds twice.

    Returns:
        `folder`, with train/ and val/ of class folders, and the copies in it.
    """
    for number in range(train + held_out):
        label, split = _SHAPES[number % len(_SHAPES)], "train" if number < train else "val"
        drawing = _drawing(label, np.random.default_rng([seed, number]), side)
        _save(drawing, folder / split / label / f"{number:04}.jpg")
    originals = sorted((folder / "val").glob("*/*.jpg"))
    some = [originals[at] for at in np.linspace(0, len(originals) - 1, planted).astype(int)]
    return folder, tuple(_copy(path, number) for number, path in enumerate(some))


def _copy(path: Path, number: int) -> Path:
    with Image.open(path) as image:
        kind = ("encoded", "resized", "brightened", "mirrored")[number % 4]
        size = round(image.width * 0.7)
        changed = {
            "encoded": lambda: image.convert("RGB"),
            "resized": lambda: image.resize((size, size), Image.Resampling.BICUBIC),
            "brightened": lambda: ImageEnhance.Brightness(image).enhance(1.12),
            "mirrored": lambda: ImageOps.mirror(image),
        }[kind]()
        copy = path.parents[2] / "train" / path.parent.name / f"{path.stem}-{kind}.jpg"
        changed.save(copy, quality=60)
    return copy


def _drawing(label: str, random: np.random.Generator, side: int) -> Image.Image:
    ground = np.stack([_smooth(random, side) * 60 + random.uniform(60, 190) for _ in range(3)], axis=-1)
    picture = Image.fromarray(np.clip(ground + random.normal(0, 6, ground.shape), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(random.integers(3, 7)):
        x, y = random.uniform(0.1, 0.9, 2) * side
        size = random.uniform(0.06, 0.18) * side
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        if label == "discs":
            draw.ellipse([x - size, y - size, x + size, y + size], fill=colour)
        else:
            sides = 4 if label == "squares" else 3
            draw.regular_polygon((x, y, size), sides, rotation=int(random.integers(0, 360)), fill=colour)
    return picture.filter(ImageFilter.GaussianBlur(0.7))


def _smooth(random: np.random.Generator, side: int) -> NDArray[np.float64]:
    """A field [side, side] in about -1..1 without edges."""
    coarse = Image.fromarray(random.uniform(-1, 1, (4, 4)).astype(np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float64)


def _grey(values: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8)).convert("RGB")


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if path.suffix == ".png" else "JPEG", **({} if path.suffix == ".png" else {"quality": 90}))
    path.write_bytes(buffer.getvalue())


def names(paths: Sequence[Path]) -> frozenset[str]:
    """The paths as `perennial train` lists them."""
    return frozenset(str(path.absolute()) for path in paths)
