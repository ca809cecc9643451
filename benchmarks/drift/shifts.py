"""Changes of images, each a function of pixels: those of Failing Loudly, and those that a camera makes.

Failing Loudly is Rabanser, Guennemann and Lipton, "Failing loudly: an empirical study of methods for detecting dataset
shift", NeurIPS 2019; its adversarial shift is left out, for it needs an attack on a model of its own.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

Pixels = NDArray[np.uint8]
#: uint8 [N, H, W, 3] and a source of chance -> the same, changed.
Change = Callable[[Pixels, np.random.Generator], Pixels]

#: Degrees, share of the side, shear, zoom, and whether mirror images come too.
_IMAGE_SHIFTS: Final = {
    "small": (10.0, 0.05, 0.1, 0.1, False),
    "medium": (40.0, 0.2, 0.2, 0.2, True),
    "large": (90.0, 0.4, 0.3, 0.4, True),
}
_NOISE: Final = {"small": 1.0, "medium": 10.0, "large": 100.0}  # of 255


def gaussian_noise(pixels: Pixels, random: np.random.Generator, sigma: float) -> Pixels:
    noisy = pixels + random.normal(0.0, sigma, pixels.shape)
    return np.asarray(noisy.round().clip(0, 255).astype(np.uint8))


def moved(
    pixels: Pixels, random: np.random.Generator, degrees: float, shift: float, shear: float, zoom: float, mirror: bool
) -> Pixels:
    """Each image turned, moved, sheared and zoomed at random, up to so much."""
    found = []
    for image in pixels:
        side = image.shape[0]
        angle, slant = np.deg2rad(random.uniform(-degrees, degrees)), random.uniform(-shear, shear)
        scale = random.uniform(1 - zoom, 1 + zoom)
        cosine, sine = np.cos(angle), np.sin(angle)
        matrix = np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[1, slant], [0, 1]]) / scale
        centre = np.array([side / 2, side / 2])
        offset = centre - matrix @ (centre + random.uniform(-shift, shift, 2) * side)
        coefficients = (matrix[0, 0], matrix[0, 1], offset[0], matrix[1, 0], matrix[1, 1], offset[1])
        background = tuple(int(value) for value in np.median(image[0], axis=0))
        drawn = Image.fromarray(image).transform(
            (side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=background
        )
        if mirror and random.random() < 0.5:
            drawn = drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        found.append(np.asarray(drawn))
    return np.stack(found)


def _each(change: Callable[[Image.Image], Image.Image]) -> Change:
    def apply(pixels: Pixels, random: np.random.Generator) -> Pixels:
        return np.stack([np.asarray(change(Image.fromarray(image)).convert("RGB")) for image in pixels])

    return apply


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    written = io.BytesIO()
    image.save(written, "JPEG", quality=quality)
    return Image.open(written)


def _hue(image: Image.Image, turn: int) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point(lambda level: (level + turn) % 256)
    return Image.merge("HSV", (turned, saturation, value))


def _zoomed(image: Image.Image, kept: float) -> Image.Image:
    side = image.width
    edge = round(side * (1 - kept) / 2)
    return image.crop((edge, edge, side - edge, side - edge)).resize((side, side), Image.Resampling.BILINEAR)


def _turned(image: Image.Image, degrees: float) -> Image.Image:
    background = tuple(int(value) for value in np.median(np.asarray(image)[0], axis=0))
    return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=background)


def _brightness(factor: float) -> Change:
    return _each(lambda image: ImageEnhance.Brightness(image).enhance(factor))


def _contrast(factor: float) -> Change:
    return _each(lambda image: ImageEnhance.Contrast(image).enhance(factor))


def _blur(times: float) -> Change:
    return _each(lambda image: image.filter(ImageFilter.GaussianBlur(times * max(1.0, image.width / 112))))


#: Of Failing Loudly, at full strength; which share of the rows is changed is delta.
FAILING_LOUDLY: Final[dict[str, Change]] = {
    **{f"noise {size}": partial(gaussian_noise, sigma=sigma) for size, sigma in _NOISE.items()},
    **{
        f"image {size}": partial(moved, degrees=turn, shift=shift, shear=shear, zoom=zoom, mirror=mirror)
        for size, (turn, shift, shear, zoom, mirror) in _IMAGE_SHIFTS.items()
    },
}
#: What happens to a camera, a file or a scene.
CAMERA: Final[dict[str, Change]] = {
    "brightness": _brightness(0.65),
    "contrast": _contrast(0.6),
    "blur": _blur(1.0),
    "noise": partial(gaussian_noise, sigma=20.0),
    "JPEG quality": _each(lambda image: _jpeg(image, 10)),
    "hue": _each(lambda image: _hue(image, 20)),
    "crop and zoom": _each(lambda image: _zoomed(image, 0.6)),
    "rotation": _each(lambda image: image.transpose(Image.Transpose.ROTATE_90)),
}
#: The same at other strengths.
STRENGTHS: Final[dict[str, Change]] = {
    "brightness 0.4": _brightness(0.4),
    "brightness 0.2": _brightness(0.2),
    "contrast 0.35": _contrast(0.35),
    "contrast 0.15": _contrast(0.15),
    "blur x2": _blur(2.0),
    "blur x4": _blur(4.0),
    "JPEG quality 5": _each(lambda image: _jpeg(image, 5)),
    "JPEG quality 2": _each(lambda image: _jpeg(image, 2)),
    "hue 60": _each(lambda image: _hue(image, 60)),
    "hue 128": _each(lambda image: _hue(image, 128)),
    "crop and zoom 0.4": _each(lambda image: _zoomed(image, 0.4)),
    "crop and zoom 0.25": _each(lambda image: _zoomed(image, 0.25)),
    "rotation 20": _each(lambda image: _turned(image, 20)),
    "rotation 45": _each(lambda image: _turned(image, 45)),
}
#: Change -> its names above, the mildest first.
BY_STRENGTH: Final[dict[str, tuple[str, ...]]] = {
    "brightness": ("brightness", "brightness 0.4", "brightness 0.2"),
    "contrast": ("contrast", "contrast 0.35", "contrast 0.15"),
    "blur": ("blur", "blur x2", "blur x4"),
    "noise": ("noise small", "noise medium", "noise", "noise large"),
    "JPEG quality": ("JPEG quality", "JPEG quality 5", "JPEG quality 2"),
    "hue": ("hue", "hue 60", "hue 128"),
    "crop and zoom": ("crop and zoom", "crop and zoom 0.4", "crop and zoom 0.25"),
    "rotation": ("rotation 20", "rotation 45", "rotation"),
    "image": ("image small", "image medium", "image large"),
}
