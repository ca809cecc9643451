"""Small pictures for the operations page: of captured images and of the reference images that a check compared with."""

from __future__ import annotations

import re
import threading
from typing import Final

import sqlalchemy as sa

from perennial.errors import InvalidImage, StorageUnavailable, UnknownPicture
from perennial.images import ImageLimits, InputRule, prepare
from perennial.ledger import predictions
from perennial.storage import Storage, reference_key
from perennial.thumbnails import is_thumbnail, thumbnail

#: The longer side of a captured image's picture, in pixels.
SIDE: Final = 320
_MOST_BYTES: Final = 2**16  # of a reference image's thumbnail
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_VERSION: Final = re.compile(r"[0-9A-Za-z-]{1,64}")


class Pictures:
    """Reads the storage, on the caller's thread."""

    def __init__(self, storage: Storage, limits: ImageLimits) -> None:
        self._storage = storage
        self._limits = limits
        self._decoding = threading.Lock()

    def captured(self, engine: sa.Engine, prediction_id: str, rule: InputRule) -> bytes:
        """What the model saw of a captured image, as a JPEG.

        Raises:
            UnknownPicture: there is no such prediction, or its image is not kept.
            LedgerUnavailable: the database does not answer.
        """
        url = predictions.image_url(engine, prediction_id)
        if url is None:
            raise UnknownPicture(f"no image is kept of prediction {prediction_id[:40]!r}")
        try:
            data = self._storage.read(self._storage.key_of(url), self._limits.max_bytes)
            with self._decoding:  # one at a time: predictions come first
                return thumbnail(prepare(data, rule, self._limits).pixels, SIDE)
        except (StorageUnavailable, InvalidImage) as error:
            raise UnknownPicture(f"the image of {prediction_id} is no longer there, or cannot be read") from error

    def reference(self, name: str, version: str, digest: str) -> bytes:
        """A reference image's thumbnail, as a JPEG, if a check has shown it.

        Raises:
            UnknownPicture: there is none.
        """
        if not _DIGEST.fullmatch(digest) or not _VERSION.fullmatch(version):
            raise UnknownPicture("a reference image is named by a version and the sha256 of its bytes")
        try:
            data = self._storage.read(reference_key(name, version, digest), _MOST_BYTES)
        except StorageUnavailable as error:
            raise UnknownPicture(f"there is no picture of reference image {digest[:12]} of {version}") from error
        if len(data) > _MOST_BYTES or not is_thumbnail(data):
            raise UnknownPicture(f"what lies there is no picture of reference image {digest[:12]}")
        return data
