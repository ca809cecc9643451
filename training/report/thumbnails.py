"""Small pictures that a page carries in itself."""

from __future__ import annotations

import base64
import io
from typing import Final

from PIL import Image

from perennial.errors import InvalidDataset, InvalidImage
from perennial.images import ImageLimits, InputRule, prepare
from training.datasets import Row, read_bytes

SIDE: Final = 160
_QUALITY: Final = 80
# A crop of twice the resized short side holds the whole frame, squashed; of frames longer than 2:1 their middle.
_WHOLE: Final = InputRule(resize=SIDE, crop=2 * SIDE)


def thumbnail(row: Row, limits: ImageLimits) -> str | None:
    """The image as a JPEG data URI, upright, its longer side 160 pixels; None where it is gone, was changed since it
    was listed, or cannot be decoded."""
    try:
        found = prepare(read_bytes(row), _WHOLE, limits)
    except (InvalidDataset, InvalidImage):
        return None
    width, height = found.header.width, found.header.height
    scale = SIDE / max(width, height)
    size = (max(SIDE // 2, round(width * scale)), max(SIDE // 2, round(height * scale)))
    buffer = io.BytesIO()
    Image.fromarray(found.pixels).resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
