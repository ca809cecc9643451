"""Is there room for what is recorded, and for what retention lets grow?"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from commands.doctor.findings import Finding, in_bytes, ok, problem, set_to, warning
from perennial.errors import StorageUnavailable
from perennial.settings import Settings
from perennial.storage import Storage

_CHECK: Final = "disk"
_LEAST: Final = "serve.min_free_bytes"


def look(settings: Settings) -> list[Finding]:
    journal = _there(settings.journal_path)
    found = [_room(journal, shutil.disk_usage(journal).free, settings.serve.min_free_bytes)]
    home = _there(settings.home_path)
    if home.stat().st_dev != journal.stat().st_dev:
        found.append(_room(home, shutil.disk_usage(home).free, settings.serve.min_free_bytes))
    captures = _captures(settings)
    limit = settings.retention.images_bytes
    if captures is not None and limit:
        free = shutil.disk_usage(_there(captures)).free
        if free < limit:  # what is there already counts as well, and may be a million files: looked at only then
            found += _growth(captures, free, _size(captures), limit)
    return found


def _room(place: Path, free: int, least: int) -> Finding:
    where = f"{in_bytes(free)} free at {place}"
    mend = f"make room there (perennial prune --dry-run says what it frees); or {set_to(_LEAST, free // 4)}"
    if free < least:
        return problem(_CHECK, f"{where}; with less than {_LEAST} = {least:,} no prediction is answered", mend)
    if free < 2 * least:
        return warning(_CHECK, f"{where}; with less than twice {_LEAST} = {least:,} no image is captured", mend)
    return ok(_CHECK, where)


def _growth(captures: Path, free: int, used: int, limit: int) -> list[Finding]:
    if used + free >= limit:
        return []
    said = (
        f"captured images may grow to retention.images_bytes = {limit:,}, but at {captures} there are "
        f"{in_bytes(used)} and {in_bytes(free)} free"
    )
    return [warning(_CHECK, said, set_to("retention.images_bytes", (used + free) // 2))]


def _captures(settings: Settings) -> Path | None:
    try:
        return Storage(settings.blobs_url).local_path("captures")
    except StorageUnavailable:  # which the check of the storage says
        return None


def _size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # pruned just now
                continue
    return total


def _there(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())
