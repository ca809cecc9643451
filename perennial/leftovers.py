"""What a crash leaves behind: files half written, reports whose check was never written, bundles never registered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from perennial.bundle import MANIFEST
from perennial.ledger import checks, models
from perennial.storage import Blob, Storage

_REPORTS: Final = "reports"
_BUNDLES: Final = "bundles"


@dataclass(frozen=True, slots=True)
class Places:
    """Where training works and keeps copies on this machine: the folder `home`, and BentoML's home."""

    home: Path
    bentoml: Path


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that nothing refers to."""

    path: Path
    bytes: int


def find_leftovers(engine: sa.Engine, storage: Storage, before: datetime) -> list[Blob]:
    """Those in storage last written before a moment; what works now has written its own since.

    Raises:
        LedgerUnavailable, StorageUnavailable.
    """
    found = [blob for folder in ("captures", _REPORTS) for blob in storage.leftovers(folder, before)]
    for model in storage.folders(_REPORTS):
        found += storage.leftovers(model, before)
        named = checks.report_urls(engine, model.removeprefix(f"{_REPORTS}/"))
        if not any(url.startswith(f"{storage.url_of(model)}/") for url in named):
            continue  # it may be another ledger's, or the storage was moved: then nothing is known of these
        found += [
            blob
            for version in storage.folders(model)
            for blob in storage.listing(version)
            if blob.modified < before and storage.url_of(blob.key) not in named
        ]
    registered = models.bundle_urls(engine)
    for model in storage.folders(_BUNDLES):
        found += storage.leftovers(model, before)
        if not any(url.startswith(f"{storage.url_of(model)}/") for url in registered.values()):
            continue
        for version in storage.folders(model):
            blobs = storage.listing(version)
            if storage.url_of(version) not in registered.values() and all(blob.modified < before for blob in blobs):
                found += blobs
    return found


def find_folders(engine: sa.Engine, places: Places, before: datetime) -> list[Folder]:
    """Folders on this machine in which nothing was written since a moment: where training worked when it was killed,
    and its bundles that it could not register any more. A whole bundle that `perennial train` made stays: only its
    copies go.

    Raises:
        LedgerUnavailable.
    """
    registered = set(models.bundle_urls(engine))
    work, store = places.home / "models", places.bentoml / "models"
    found = [path for folder in (work, places.home / "cache" / _BUNDLES) for path in _folders(folder, ".*")]
    found += [path for path in _unregistered(work, registered) if _is_challenger(path)]
    for model in _folders(store, "perennial-*"):
        found += _unregistered(model, registered)
    return [Folder(path, size) for path in found for size, newest in [_extent(path)] if newest < before]


def _unregistered(folder: Path, registered: set[str]) -> list[Path]:
    versions = list(_folders(folder, "[!.]*"))
    if not any(path.name in registered for path in versions):
        return []  # another ledger's, perhaps
    return [path for path in versions if path.name not in registered]


def _is_challenger(bundle: Path) -> bool:
    try:
        return json.loads((bundle / MANIFEST).read_bytes()).get("parent") is not None
    except (OSError, ValueError):
        return False  # not a bundle: it is not known what it is


def _folders(folder: Path, pattern: str) -> Iterator[Path]:
    return (path for path in sorted(folder.glob(pattern)) if path.is_dir() and not path.is_symlink())


def _extent(folder: Path) -> tuple[int, datetime]:
    """Bytes in a folder, and when something in it was last written."""
    try:
        states = [path.lstat() for path in (folder, *folder.rglob("*"))]
    except FileNotFoundError:  # somebody is at work there
        return 0, datetime.max.replace(tzinfo=UTC)
    return sum(state.st_size for state in states), datetime.fromtimestamp(max(s.st_mtime for s in states), UTC)
