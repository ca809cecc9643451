"""Small pictures as JPEG bytes: of reference images in a bundle, of captured ones in a page."""

from __future__ import annotations

import base64
import io
from typing import Final

from PIL import Image

from perennial.images import Pixels

#: The longer side of a reference image's thumbnail, in pixels.
SIDE: Final = 96
_QUALITY: Final = 65
_JPEG: Final = b"\xff\xd8\xff"


def thumbnail(pixels: Pixels, side: int = SIDE) -> bytes:
    """uint8 [H, W, 3] as a JPEG whose longer side is at most `side`; what is smaller keeps its size."""
    image = Image.fromarray(pixels)
    scale = side / max(image.size)
    if scale < 1:
        width, height = (max(1, round(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BOX)  # every pixel counts, and none twice
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def is_thumbnail(data: bytes) -> bool:
    """Do these bytes begin as `thumbnail` writes them?"""
    return data.startswith(_JPEG)


def data_uri(jpeg: bytes) -> str:
    """For the `src` of an image in a page that carries it in itself."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
