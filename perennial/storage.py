"""Blobs by URL (fsspec): captured images, bundles, reports. A local folder, S3, or anything fsspec speaks."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path
from typing import Any, Final

import fsspec

from perennial.errors import StorageUnavailable

_EXTENSIONS: Final = {
    "JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "MPO": "jpg",
}  # fmt: skip


class Storage:
    """A tree of blobs under one URL. Keys are relative paths with `/`. A reader never sees half a blob.

    Raises (every method):
        StorageUnavailable: the place cannot be reached, or the blob is not there.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            filesystem, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise StorageUnavailable(f"storage_url {url!r} cannot be used: {error}") from error
        self._files: Any = filesystem
        self._root = str(root).rstrip("/")
        self._local = "file" in (filesystem.protocol if isinstance(filesystem.protocol, tuple) else ())

    def url_of(self, key: str) -> str:
        return f"{self.url}/{_checked(key)}"

    def key_of(self, url: str) -> str:
        """The key of one of this storage's URLs."""
        if not url.startswith(self.url + "/"):
            raise StorageUnavailable(f"{url} is not in the storage {self.url}; was storage_url changed?")
        return _checked(url[len(self.url) + 1 :])

    def write(self, key: str, data: bytes) -> str:
        """Write a blob whole, replacing one that is there. Returns its URL."""
        path = self._path(key)
        try:
            if self._local:
                _write_local(Path(path), data)
            else:
                self._files.pipe_file(path, data)
        except Exception as error:  # each filesystem raises its own
            raise StorageUnavailable(f"{self.url_of(key)} cannot be written: {error}") from error
        return self.url_of(key)

    def read(self, key: str) -> bytes:
        try:
            return bytes(self._files.cat_file(self._path(key)))
        except Exception as error:
            raise StorageUnavailable(f"{self.url_of(key)} cannot be read: {error}") from error

    def exists(self, key: str) -> bool:
        try:
            return bool(self._files.exists(self._path(key)))
        except Exception as error:
            raise StorageUnavailable(f"{self.url} cannot be reached: {error}") from error

    def delete(self, key: str) -> None:
        """Delete a blob; one that is not there is no error."""
        try:
            self._files.rm_file(self._path(key))
        except FileNotFoundError:
            return
        except Exception as error:
            raise StorageUnavailable(f"{self.url_of(key)} cannot be deleted: {error}") from error

    def write_folder(self, key: str, folder: Path, last: str = "") -> str:
        """Copy the files of a folder; the one named `last` is written last, so that its presence means all are."""
        names = sorted((path.name for path in folder.iterdir() if path.is_file()), key=lambda name: name == last)
        for name in names:
            self.write(f"{key}/{name}", (folder / name).read_bytes())
        return self.url_of(key)

    def read_folder(self, key: str, folder: Path) -> None:
        """Copy the files under a key into an existing folder."""
        try:
            paths = list(self._files.find(self._path(key), maxdepth=1))
        except Exception as error:
            raise StorageUnavailable(f"{self.url_of(key)} cannot be listed: {error}") from error
        if not paths:
            raise StorageUnavailable(f"there is nothing at {self.url_of(key)}")
        for path in paths:
            name = str(path).rsplit("/", 1)[-1]
            (folder / name).write_bytes(self.read(f"{key}/{name}"))

    def local_path(self, key: str) -> Path | None:
        """Where a blob lies on this machine, if this storage is a local folder."""
        return Path(self._path(key)) if self._local else None

    def _path(self, key: str) -> str:
        return f"{self._root}/{_checked(key)}"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def capture_key(digest: str, image_format: str) -> str:
    """Where a captured image is kept: by the digest of its bytes, so the same image is kept once."""
    return f"captures/{digest[:2]}/{digest}.{_EXTENSIONS.get(image_format, 'bin')}"


def _checked(key: str) -> str:
    parts = key.split("/")
    if not key or any(part in ("", ".", "..") for part in parts) or "\\" in key:
        raise StorageUnavailable(f"{key!r} is not a storage key")
    return key


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
