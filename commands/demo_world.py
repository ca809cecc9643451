"""The demo's small world: scikit-learn's handwritten digits as images, and what happens to the camera.

1,797 real digits (8 x 8, sixteen grey levels; E. Alpaydin and C. Kaynak, 1998), drawn large enough for a network.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

SIDE: Final = 64

Change = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True, slots=True)
class Digit:
    """One handwritten digit: its 8 x 8 grey levels (0..255) and its class name, "0" to "9"."""

    levels: NDArray[np.uint8]
    label: str

    def png(self, change: Change | None = None) -> bytes:
        """The digit as a PNG of SIDE x SIDE pixels, seen through a camera that `change` changes."""
        image = Image.fromarray(self.levels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
        buffer = io.BytesIO()
        (change(image) if change else image).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


def digits(seed: int) -> list[Digit]:
    """All 1,797 digits in a random order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    levels = np.clip(data.images * (255.0 / 16.0), 0, 255).astype(np.uint8)
    return [Digit(levels[index], str(data.target[index])) for index in order]


def write_folder(folder: Path, some: Sequence[Digit], labels: Sequence[str] | None = None) -> Path:
    """Write digits as an ImageFolder; with `labels`, into the folders that these name instead of the true ones."""
    for number, digit in enumerate(some):
        label = digit.label if labels is None else labels[number]
        path = folder / label / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(digit.png())
    return folder


def dark_and_soft_lens(image: Image.Image) -> Image.Image:
    """The lamp weakens and the lens goes out of focus: every image alike, each still readable."""
    return ImageEnhance.Brightness(image).enhance(0.6).filter(ImageFilter.GaussianBlur(2.0))


def turned_camera(image: Image.Image) -> Image.Image:
    """The camera is mounted sideways: brightness and contrast stay as they were, shapes do not."""
    return image.transpose(Image.Transpose.ROTATE_90)


def swapped(label: str, pair: tuple[str, str]) -> str:
    """The label after two classes have swapped their meaning."""
    return {pair[0]: pair[1], pair[1]: pair[0]}.get(label, label)
