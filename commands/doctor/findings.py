"""What a check of `perennial doctor` found, and how to mend it."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Level = Literal["ok", "warning", "problem", "not checked"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` is what was looked at, `found` what was seen, `mend` one line that mends it; empty where all is well."""

    check: str
    level: Level
    found: str
    mend: str = ""

    def document(self) -> dict[str, str]:
        return {"check": self.check, "level": self.level, "found": self.found, "mend": self.mend}


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warning(check: str, found: str, mend: str) -> Finding:
    return Finding(check, "warning", found, mend)


def problem(check: str, found: str, mend: str) -> Finding:
    return Finding(check, "problem", found, mend)


def not_checked(check: str, why: str, mend: str = "") -> Finding:
    return Finding(check, "not checked", why, mend)


def make_writable(path: Path) -> str:
    """The command that lets this user write into a file or folder."""
    try:
        ours = path.stat().st_uid == os.geteuid()
    except OSError:
        ours = False
    quoted = shlex.quote(str(path))
    return f"chmod u+rwX {quoted}" if ours else f'sudo chown -R "$(id -u)" {quoted}'


def set_to(key: str, value: Any) -> str:
    """What gives a setting another value: where a variable holds it, the file would not be asked."""
    from commands.settings_file import in_toml

    variable = f"PERENNIAL_{key.replace('.', '__')}".upper()
    if variable in os.environ:
        return f"export {variable}={shlex.quote(str(value))}"
    return f"set {key} = {in_toml(value)} in perennial.toml"


def in_bytes(count: float) -> str:
    from rich.filesize import decimal

    return decimal(int(count))
