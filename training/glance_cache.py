"""Glances at images, kept on disk by the image's digest: a retrain reads all original images again, and need not decode
those that have not changed."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import PIL

from perennial.images import ImageLimits
from training.datasets import LabelledImages
from training.feature_cache import DamagedCache, FeatureCache
from training.glance import COLOUR_SIDE, SIDE, Glance, Metadata

_EDITION: Final = 1  # to be raised when a glance at the same bytes comes to show something else
_THUMBNAIL: Final = SIDE * SIDE + 2 * COLOUR_SIDE * COLOUR_SIDE  # bytes
_METADATA: Final = struct.Struct("<8s8sIIQh?x")  # format, mode, width, height, bytes, quality (0: none), exif
_WIDTH: Final = (_METADATA.size + _THUMBNAIL) // 4  # kept as the bytes of so many float32


def recall(cache: Path, digests: Iterable[str], limits: ImageLimits) -> dict[str, Glance]:
    """Those of these images that are known and within the limits, by digest."""
    with _opened(cache) as store:
        stored = store.find(list(digests))
        try:
            vectors = store.gather(list(stored.values()))
        except DamagedCache:  # it is empty now
            return {}
    found = {digest: _unpacked(vector.tobytes()) for digest, vector in zip(stored, vectors, strict=True)}
    return {digest: look for digest, look in found.items() if _within(look.metadata, limits)}


def remember(cache: Path, images: LabelledImages) -> None:
    """Keep what is known of images that were loaded with their thumbnails; of those that cannot be decoded, nothing."""
    with _opened(cache) as store:
        looks = {
            digest: Glance(images.metadata[digest], thumbnail)
            for digest, thumbnail in images.thumbnails.items()
            if thumbnail is not None
        }
        known = store.find(list(looks))
        packed = {digest: _packed(look) for digest, look in looks.items() if digest not in known}
        if packed:
            vectors = np.frombuffer(b"".join(packed.values()), np.float32).reshape(len(packed), _WIDTH)
            store.append(list(packed), vectors)


def _opened(cache: Path) -> FeatureCache:
    return FeatureCache(cache / "glances" / f"{_EDITION}-pillow-{PIL.__version__}", _WIDTH)


def _packed(look: Glance) -> bytes:
    of, thumbnail = look.metadata, look.thumbnail or b""
    texts = (text.encode("ascii") for text in (of.format, of.mode))
    return _METADATA.pack(*texts, of.width, of.height, of.bytes, of.quality or 0, of.exif) + thumbnail


def _unpacked(data: bytes) -> Glance:
    *texts, width, height, size, quality, exif = _METADATA.unpack_from(data)
    image_format, mode = (text.rstrip(b"\0").decode("ascii") for text in texts)
    metadata = Metadata(image_format, mode, width, height, size, quality or None, exif)
    return Glance(metadata, data[_METADATA.size :])


def _within(metadata: Metadata, limits: ImageLimits) -> bool:
    return metadata.bytes <= limits.max_bytes and metadata.width * metadata.height <= limits.max_pixels
