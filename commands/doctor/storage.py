"""Can an object be written to the storage, read back and deleted?"""

from __future__ import annotations

import secrets
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from commands.doctor.findings import Finding, make_writable, ok, problem, set_to
from perennial.errors import StorageUnavailable
from perennial.settings import Settings
from perennial.storage import Storage

if TYPE_CHECKING:
    import sqlalchemy as sa

_CHECK: Final = "storage"


def look(settings: Settings, engine: sa.Engine | None) -> list[Finding]:
    try:
        storage = Storage(settings.blobs_url)
    except StorageUnavailable as error:
        if settings.blobs_url.startswith("s3"):
            return [problem(_CHECK, error.detail, "pip install 'perennial[s3]'")]
        mend = f"{set_to('storage_url', '')} (that is a folder in {settings.home_path}), or to a URL that fsspec knows"
        return [problem(_CHECK, error.detail, mend)]
    probe = storage.local_path("probe")
    folder = probe.parent if probe is not None else None
    if folder is not None and not folder.exists():
        return [_missing(folder, settings, engine)]
    key, data = f"doctor-{secrets.token_hex(8)}", secrets.token_bytes(64)
    began = time.monotonic()
    try:
        storage.write(key, data)
        try:
            same = storage.read(key) == data
        finally:
            storage.delete(key)
    except StorageUnavailable as error:
        return [problem(_CHECK, error.detail, _reach(folder, settings))]
    if not same:
        said = f"{settings.blobs_url} gives back other bytes than were written"
        return [problem(_CHECK, said, "set storage_url to another place; what is in this one cannot be trusted")]
    took = time.monotonic() - began
    return [ok(_CHECK, f"{settings.blobs_url}: an object written, read and deleted in {took * 1000:.0f} ms")]


def _missing(folder: Path, settings: Settings, engine: sa.Engine | None) -> Finding:
    # Making the folder anew would hide that what the ledger names is gone.
    if engine is None or not _names_bundles(engine):
        return ok(_CHECK, f"{folder} is not there yet; it is made at the first use")
    said = f"the storage folder {folder} is gone, with the models that the ledger names"
    mend = f"mount it or move it back to {shlex.quote(str(folder))}; or set storage_url to where it is"
    return problem(_CHECK, said, mend)


def _names_bundles(engine: sa.Engine) -> bool:
    from perennial.ledger import models

    return bool(models.bundle_urls(engine))


def _reach(folder: Path | None, settings: Settings) -> str:
    if folder is not None:
        return make_writable(folder)
    return f"correct storage_url ({settings.blobs_url}) or its credentials: they must allow writing, reading, deleting"
