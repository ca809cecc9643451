"""The text of a `perennial.toml`, from the settings' own descriptions, so that it says what is so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from perennial.settings import Settings

#: The settings that most installations change, by section; the others are in docs/settings.md.
USED_MOST: Final = {
    "": ("name", "home", "database_url", "storage_url"),
    "train": ("backbone", "weights", "strategy", "budget"),
    "serve": ("host", "port", "workers", "capture", "precision", "max_bytes", "min_free_bytes", "access_log"),
    "monitor": ("window", "min_rows", "min_labels", "interval", "schedule", "report", "port"),
    "retrain": ("data", "min_labels", "on_drift", "schedule", "every_labels", "cooldown", "margin", "niceness"),
    "rollout": ("stages", "rows"),
    "retention": ("images_days", "images_bytes", "rows_days", "rows_max"),
    "notify": ("webhooks", "secret", "events"),
}
_HEAD: Final = """\
# Settings of Perennial. All of them, with every bound: docs/settings.md.
# Commented out is the default. Variables override this file: [serve] port is PERENNIAL_SERVE__PORT.
# Is it right so? perennial doctor
"""


def text(defaults: Settings, *, name: str | None = None, everything: bool = False) -> str:
    """A settings file that changes nothing but the name, if one is given."""
    fields = Settings.model_fields
    lines = [_HEAD]
    for key in fields if everything else USED_MOST[""]:
        if isinstance(getattr(defaults, key), BaseModel):
            continue
        if key == "name" and name is not None:
            lines.append(f"# {_why(fields[key])}\nname = {in_toml(name)}\n")
        else:
            lines.append(_entry(key, fields[key], getattr(defaults, key)))
    for section in fields:
        values = getattr(defaults, section)
        if not isinstance(values, BaseModel):
            continue
        inside = type(values).model_fields
        lines.append(f"\n# {_first_sentence(type(values).__doc__ or '')}\n[{section}]")
        chosen = inside if everything else USED_MOST[section]
        lines += [_entry(key, inside[key], getattr(values, key)) for key in chosen]
    return "\n".join(lines).rstrip() + "\n"


def in_toml(value: Any) -> str:
    """A setting's value as TOML. Text is written as in JSON, which TOML's basic strings contain."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(in_toml(each) for each in value)}]"
    if isinstance(value, str | Path):
        return json.dumps(str(value))
    raise TypeError(f"{type(value).__name__} is no setting's type that a file can hold")


def _entry(key: str, field: FieldInfo, default: Any) -> str:
    return f"# {_why(field)}\n# {key} = {in_toml(default)}\n"


def _why(field: FieldInfo) -> str:
    return _first_sentence(field.description or "")


def _first_sentence(said: str) -> str:
    # A capital has to follow: "e.g. this" ends no sentence.
    return re.split(r"(?<=\.)\s+(?=[A-Z`])", " ".join(said.split()), maxsplit=1)[0]
