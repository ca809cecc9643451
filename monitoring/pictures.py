"""Small pictures for a check's page: of captured images, from the storage, and of reference images, from the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pyarrow.parquet as pq
from pyarrow.lib import ArrowException

from perennial.bundle import Bundle
from perennial.errors import InvalidBundle, InvalidImage, StorageUnavailable
from perennial.images import ImageLimits, InputRule, prepare
from perennial.storage import Storage
from perennial.thumbnails import data_uri, is_thumbnail, thumbnail

#: The longer side of a captured image's picture, in pixels.
SIDE: Final = 160
#: A thumbnail of a bundle is a few thousand bytes; a larger one is not shown.
_MOST_BYTES: Final = 2**14
_READERS: Final = 4


def reference_thumbnails(bundle: Bundle) -> dict[str, bytes]:
    """JPEG by image digest, of the reference images that the bundle has thumbnails of; none in older bundles.

    Raises:
        InvalidBundle: the file is not one of thumbnails.
    """
    path = bundle.reference_images
    if path is None:
        return {}
    try:
        table = pq.read_table(path, columns=["image_digest", "image"])
        found = dict(zip(table["image_digest"].to_pylist(), table["image"].to_pylist(), strict=True))
    except (OSError, ArrowException, KeyError) as error:
        raise InvalidBundle(f"{path} cannot be read as thumbnails: {error}; train the model anew") from error
    return {
        digest: image
        for digest, image in found.items()
        if isinstance(image, bytes) and len(image) <= _MOST_BYTES and is_thumbnail(image)
    }


def captured_pictures(
    storage: Storage, urls: Sequence[str], rule: InputRule, limits: ImageLimits
) -> dict[str, tuple[str | None, str]]:
    """Of each URL a data URI of what the model saw of the image, or None and why there is none."""

    def read(url: str) -> bytes | StorageUnavailable:
        try:
            return storage.read(storage.key_of(url), limits.max_bytes)
        except StorageUnavailable as error:
            return error

    found: dict[str, tuple[str | None, str]] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        # Read side by side, decoded one at a time: a large one may take a gigabyte.
        for url, data in zip(urls, pool.map(read, urls), strict=True):
            if isinstance(data, StorageUnavailable):
                found[url] = None, "The image is no longer there, or cannot be read"
                continue
            try:
                found[url] = data_uri(thumbnail(prepare(data, rule, limits).pixels, SIDE)), ""
            except InvalidImage as error:
                found[url] = None, f"The image cannot be shown: {error}"
    return found
