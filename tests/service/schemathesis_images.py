"""Tells schemathesis what an image is; it loads this file by `SCHEMATHESIS_HOOKS`."""

from __future__ import annotations

import io

import schemathesis
from hypothesis import strategies
from PIL import Image


@strategies.composite
def images(draw: strategies.DrawFn, form: str) -> bytes:
    size = draw(strategies.tuples(strategies.integers(1, 60), strategies.integers(1, 60)))
    buffer = io.BytesIO()
    Image.new("RGB", size, draw(strategies.sampled_from(["red", "green", "blue"]))).save(buffer, form)
    return buffer.getvalue()


for name in ("jpeg", "png", "webp", "gif", "bmp", "tiff"):
    schemathesis.openapi.media_type(f"image/{name}", images(name))
