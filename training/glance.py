"""One look at an image's bytes: what the file says of itself, and a thumbnail to know its near-duplicates by."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from threading import Lock
from typing import Final

import numpy as np
from PIL import Image

from perennial.errors import InvalidImage
from perennial.images import FORMATS, ImageHeader, ImageLimits, InputRule, Pixels, prepare, read_header

#: A thumbnail is SIDE x SIDE of luma, then Cb and Cr of COLOUR_SIDE x COLOUR_SIDE each; one byte a value, by rows.
SIDE: Final = 32
COLOUR_SIDE: Final = 8
# A crop of twice the resized short side holds the whole frame, squashed; of frames longer than 2:1 their middle.
_WHOLE: Final = InputRule(resize=SIDE, crop=2 * SIDE)
# Of formats that have no scaled decoding, one large file at a time: each reader would hold all pixels of its own.
_LARGE: Final = 4 * 2**20
_one_large_image = Lock()

# The luma table of the JPEG standard (ITU-T T.81, K.1), which most encoders scale by a quality of 1..100.
_LUMA: Final = np.array(
    [
        16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
        14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
        49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
    ]
)  # fmt: skip
_SCALES: Final = [5000 // quality if quality < 50 else 200 - 2 * quality for quality in range(1, 101)]
_SUMS: Final = np.array([np.clip((_LUMA * scale + 50) // 100, 1, 255).sum() for scale in _SCALES])


@dataclass(frozen=True, slots=True)
class Metadata(ImageHeader):
    """What a file says of itself: `bytes` its size; `quality` the JPEG quality (1..100) whose quantisation is nearest,
    None for other formats; `exif`: it has EXIF tags."""

    bytes: int
    quality: int | None
    exif: bool


@dataclass(frozen=True, slots=True)
class Glance:
    """`thumbnail` is None where the header is fine and the pixels are not."""

    metadata: Metadata
    thumbnail: bytes | None


def glance(data: bytes, limits: ImageLimits) -> Glance:
    """Read the header and a thumbnail.

    Raises:
        InvalidImage: the header cannot be read or is over the limits. Pixels that cannot be decoded raise nothing.
    """
    large = len(data) > _LARGE and not data.startswith(b"\xff\xd8")
    try:
        with _one_large_image if large else contextlib.nullcontext():
            prepared = prepare(data, _WHOLE, limits)
    except InvalidImage:
        return Glance(_metadata(data, read_header(data, limits)), None)
    return Glance(_metadata(data, prepared.header), _thumbnail(prepared.pixels))


def _thumbnail(pixels: Pixels) -> bytes:
    colours = Image.fromarray(pixels).convert("YCbCr")
    # Averages over 2 x 2 pixels: sampling alone would make a resized copy differ in what is finer than the grid.
    luma = colours.getchannel("Y").reduce(2)
    _, blue, red = colours.reduce(2 * SIDE // COLOUR_SIDE).split()
    return luma.tobytes() + blue.tobytes() + red.tobytes()


def _metadata(data: bytes, header: ImageHeader) -> Metadata:
    quality: int | None = None
    exif = False
    # The header was read already; a broken EXIF block is no reason to refuse good pixels.
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        quality = _quality(getattr(image, "quantization", None))
        exif = "exif" in image.info  # getexif() would decode a PNG to look behind its pixels
    return Metadata(header.format, header.mode, header.width, header.height, len(data), quality, exif)


def _quality(tables: dict[int, list[int]] | None) -> int | None:
    if not tables:
        return None
    luma = sum(tables[min(tables)])
    return int(np.abs(_SUMS - luma).argmin()) + 1
