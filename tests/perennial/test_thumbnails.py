"""A small picture is a JPEG that keeps its shape, and small ones stay as they are."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from perennial.thumbnails import SIDE, data_uri, is_thumbnail, thumbnail


@pytest.mark.parametrize(
    ("height", "width", "size"), [(224, 224, (96, 96)), (300, 600, (96, 48)), (1000, 1, (1, 96)), (8, 8, (8, 8))]
)
def test_the_longer_side_is_bounded_and_the_shape_kept(height: int, width: int, size: tuple[int, int]) -> None:
    assert SIDE == 96
    jpeg = thumbnail(np.full((height, width, 3), (200, 40, 90), np.uint8))
    image = Image.open(io.BytesIO(jpeg))
    assert (image.format, image.size) == ("JPEG", size)
    assert np.abs(np.asarray(image, dtype=float) - (200, 40, 90)).max() < 6
    assert is_thumbnail(jpeg)
    assert not is_thumbnail(b"<svg onload=alert(1)>")
    head, _, body = data_uri(jpeg).partition(",")
    assert (head, base64.b64decode(body)) == ("data:image/jpeg;base64", jpeg)
