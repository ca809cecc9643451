"""May this user write where Perennial keeps its things, and nobody else?"""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path
from typing import Final

from commands.doctor.findings import Finding, make_writable, ok, problem, set_to, warning
from perennial.settings import Settings

_CHECK: Final = "home"


def look(settings: Settings) -> list[Finding]:
    folder = settings.home_path
    if not folder.exists():
        above = next(path for path in folder.parents if path.exists())
        if os.access(above, os.W_OK | os.X_OK):
            return [ok(_CHECK, f"{folder} is not there yet; it is made at the first use")]
        return [problem(_CHECK, f"{folder} cannot be made: {above} is not writable", _ours(folder))]
    if not folder.is_dir():
        return [problem(_CHECK, f"{folder} is a file", set_to("home", "~/.perennial"))]
    places = [folder, *(path for path in (settings.journal_path.parent, settings.cache_path) if path.is_dir())]
    closed = [path for path in places if not os.access(path, os.R_OK | os.W_OK | os.X_OK)]
    if closed:
        user = os.geteuid()
        return [problem(_CHECK, f"{path} cannot be written by user {user}", make_writable(path)) for path in closed]
    if folder.stat().st_mode & stat.S_IWOTH:
        said = f"everybody on this machine can write into {folder}: models, the ledger and captured images"
        return [warning(_CHECK, said, f"chmod o-w {shlex.quote(str(folder))}")]
    return [ok(_CHECK, f"{folder}, writable")]


def _ours(folder: Path) -> str:
    quoted = shlex.quote(str(folder))
    return f'sudo install --directory --owner "$(id -u)" {quoted}'
