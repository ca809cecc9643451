"""A disk that fills in the midst of training: which one, and what to do about it."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from perennial.errors import DiskFull
from perennial.settings import Settings
from perennial.storage import Storage

_CODES: Final = (errno.ENOSPC, errno.EDQUOT)
#: The last: no room for the memory that the connections to a database share.
_SQLITE_CODES: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
#: Libraries written in C++ and Rust raise classes of their own, and end with the system's words.
_WORDS: Final = "no space left on device"


@contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """Says of a disk that is full which ones there are and what is free on each.

    Raises:
        DiskFull: in place of whatever error a full disk was the cause of.
    """
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        free = sorted((shutil.disk_usage(place).free, str(place)) for place in _disks(settings))
        room = ", ".join(f"{bytes_ / 1e6:,.0f} MB at {place}" for bytes_, place in free)
        raise DiskFull(
            f"{error}. What was half written is removed; free now: {room}. Make room there (`perennial prune` removes "
            "what is not kept any longer), then start it again"
        ) from error


def _is_full(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _CODES:
            return True
        if isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", None) in _SQLITE_CODES:
            return True
        if _WORDS in str(cause).lower():
            return True
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return False


def _disks(settings: Settings) -> list[Path]:
    """The places that training writes to, one a disk."""
    storage = Storage(settings.blobs_url).local_path("bundles")
    model_store = os.environ.get("BENTOML_HOME")
    places = [
        settings.home_path / "models",
        settings.cache_path / "embeddings",
        *([storage] if storage is not None else []),
        *([Path(model_store) / "models"] if model_store else []),
        Path(tempfile.gettempdir()),
    ]
    found: dict[int, Path] = {}
    for place in places:
        there = next(path for path in (place, *place.parents) if path.exists())
        found.setdefault(there.stat().st_dev, there)
    return list(found.values())
