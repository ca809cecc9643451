"""Blobs by URL (fsspec): captured images, bundles, reports. A local folder, S3, or anything fsspec speaks."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import fsspec

from perennial.errors import StorageUnavailable

_EXTENSIONS: Final = {
    "JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "MPO": "jpg",
}  # fmt: skip


#: What the filesystems of fsspec call the moment a blob was written.
_MODIFIED: Final = ("LastModified", "last_modified", "mtime", "updated", "created")
#: The names of temporary files, as `_write_local` gives them.
_LEFTOVER: Final = ".?*.????????"


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob in a listing: its size in bytes and when it was written."""

    key: str
    bytes: int
    modified: datetime


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
                _write_local(Path(path), data, Path(self._root))
            else:
                self._files.pipe_file(path, data)
        except Exception as error:  # each filesystem raises its own
            raise StorageUnavailable(f"{self.url_of(key)} cannot be written: {error}") from error
        return self.url_of(key)

    def read(self, key: str, most: int | None = None) -> bytes:
        """A blob's bytes; of one that is longer than `most`, the first `most` + 1."""
        end = {} if most is None else {"start": 0, "end": most + 1}
        try:
            return bytes(self._files.cat_file(self._path(key), **end))
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

    def delete_all(self, keys: Sequence[str]) -> None:
        """Delete many blobs with as few requests as the storage allows; those that are not there are no error."""
        if not keys:
            return
        if self._local:
            for key in keys:
                self.delete(key)
            return
        try:
            self._files.rm([self._path(key) for key in keys])
        except FileNotFoundError:  # somebody else was faster with one of them
            for key in keys:
                self.delete(key)
        except Exception as error:
            raise StorageUnavailable(f"{len(keys)} blobs of {self.url} cannot be deleted: {error}") from error
        # A bulk delete may refuse every key and yet report success.
        if self.exists(keys[0]):
            raise StorageUnavailable(f"{self.url_of(keys[0])} cannot be deleted: is deleting allowed there?")

    def listing(self, key: str) -> list[Blob]:
        """The blobs directly under a key, in no order; none if there is nothing."""
        if self._local:
            return _listing_local(Path(self._path(key)), key, self.url_of(key))
        return [
            Blob(f"{key}/{_name(info)}", int(info["size"]), _modified(info))
            for info in self._entries(key)
            if info["type"] == "file"
        ]

    def folders(self, key: str) -> list[str]:
        """The keys directly under a key that have others under them, in order."""
        if self._local:
            return _folders_local(Path(self._path(key)), key, self.url_of(key))
        found = (f"{key}/{_name(info)}" for info in self._entries(key) if info["type"] == "directory")
        return sorted(found)

    def _entries(self, key: str) -> list[dict[str, Any]]:
        path = self._path(key)
        try:
            # What a filesystem remembers of an earlier listing is stale, and a million entries are too many to keep.
            self._files.invalidate_cache(path)
            found = self._files.ls(path, detail=True)
            self._files.invalidate_cache(path)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise StorageUnavailable(f"{self.url_of(key)} cannot be listed: {error}") from error
        return [info for info in found if str(info["name"]).rstrip("/") != path]

    def leftovers(self, key: str, before: datetime) -> list[Blob]:
        """Temporary files under a key that a crash left behind, last written before a moment."""
        folder = Path(self._path(key))
        if not self._local or not folder.is_dir():
            return []
        found = []
        for path in folder.glob(_LEFTOVER):
            try:
                state = path.stat()
            except FileNotFoundError:  # it was not left behind: its writer has just finished
                continue
            modified = datetime.fromtimestamp(state.st_mtime, UTC)
            if modified < before:
                found.append(Blob(f"{key}/{path.name}", state.st_size, modified))
        return found

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


def reference_key(name: str, version: str, digest: str) -> str:
    """Where the thumbnail of a reference image is kept that a check has shown."""
    return f"references/{name}/{version}/{digest}.jpg"


def _checked(key: str) -> str:
    parts = key.split("/")
    if not key or any(part in ("", ".", "..") for part in parts) or "\\" in key:
        raise StorageUnavailable(f"{key!r} is not a storage key")
    return key


def _write_local(path: Path, data: bytes, root: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # One folder up: a folder that is read whole, as a bundle's is, never holds what a crash left half written.
    folder = path.parent if path.parent == root else path.parent.parent
    temporary = folder / f".{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _listing_local(folder: Path, key: str, url: str) -> list[Blob]:
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if entry.name.startswith(".") or not entry.is_file(follow_symlinks=False):
                        continue
                    state = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # deleted since it was listed
                    continue
                found.append(Blob(f"{key}/{entry.name}", state.st_size, datetime.fromtimestamp(state.st_mtime, UTC)))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageUnavailable(f"{url} cannot be listed: {error}") from error
    return found


def _folders_local(folder: Path, key: str, url: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(f"{key}/{entry.name}" for entry in entries if entry.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageUnavailable(f"{url} cannot be listed: {error}") from error


def _name(info: Mapping[str, Any]) -> str:
    return str(info["name"]).rstrip("/").rsplit("/", 1)[-1]


def _modified(info: Mapping[str, Any]) -> datetime:
    for name in _MODIFIED:
        value = info.get(name)
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    raise StorageUnavailable(f"{info['name']} has no time of writing, so nothing there can be pruned by age")
