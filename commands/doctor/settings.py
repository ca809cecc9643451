"""Do the settings load, and do they make sense together?"""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from commands.doctor.findings import Finding, ok, problem, set_to, warning
from perennial import settings as loading
from perennial.errors import InvalidSettings
from perennial.settings import CONFIG_FILE, CONFIG_VARIABLE, Settings

_CHECK: Final = "settings"


def look(config: Path | None, name: str | None) -> tuple[Settings | None, list[Finding]]:
    """The settings, None if they cannot be read; and what is wrong with them."""
    named = config or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    path = (named or Path(CONFIG_FILE)).absolute()
    try:
        settings = loading.load_settings(config, **({"name": name} if name is not None else {}))
    except InvalidSettings as error:
        return None, _refused(error, path)
    set_by = f"{path}" if path.is_file() else f"no {CONFIG_FILE} here"
    variables = sorted(key for key in os.environ if key.startswith("PERENNIAL_"))
    said = f"{set_by}{'; ' if variables else ''}{', '.join(variables)}"
    odd = [*contradictions(settings), *_readable_secrets(settings, path)]
    return settings, odd or [ok(_CHECK, said)]


def contradictions(settings: Settings) -> list[Finding]:
    """Values that are valid, each by itself, and make no sense together."""
    serve, monitor, retention, train = settings.serve, settings.monitor, settings.retention, settings.train
    found = []
    if monitor.min_rows > monitor.window:
        said = f"monitor.min_rows is {monitor.min_rows}, but a window holds {monitor.window} rows: no check ever speaks"
        found.append(problem(_CHECK, said, set_to("monitor.window", monitor.min_rows)))
    if monitor.min_labels > monitor.window:
        said = (
            f"monitor.min_labels is {monitor.min_labels}, but a window holds {monitor.window} rows: accuracy is never "
            "told by labels"
        )
        found.append(warning(_CHECK, said, set_to("monitor.min_labels", max(1, monitor.window // 5))))
    if monitor.port == serve.port:
        said = f"serve.port and monitor.port are both {serve.port}: service and watcher cannot both have it"
        other = serve.port + 1 if serve.port < 65_535 else serve.port - 1
        found.append(problem(_CHECK, said, set_to("monitor.port", other)))
    if 0 < retention.rows_max < monitor.window:
        said = f"retention.rows_max keeps {retention.rows_max} predictions, but a window holds {monitor.window}"
        found.append(problem(_CHECK, said, set_to("retention.rows_max", 10 * monitor.window)))
    if train.validation + train.test >= 1:
        said = f"train.validation and train.test take {train.validation + train.test:g} of the images: none is left"
        larger = "train.test" if train.test >= train.validation else "train.validation"
        found.append(problem(_CHECK, said, set_to(larger, 0.15)))
    return found


def _refused(error: InvalidSettings, path: Path) -> list[Finding]:
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        return [_of_value(each, path) for each in cause.errors()]
    if isinstance(cause, PermissionError):
        return [problem(_CHECK, error.detail, f"chmod u+r {shlex.quote(str(path))}")]
    if isinstance(cause, tomllib.TOMLDecodeError):
        where = re.search(r"line \d+", str(cause))
        at = f"{where[0]} of {path}" if where else str(path)
        return [problem(_CHECK, error.detail, f'write {at} as TOML, such as `port = 8080` or `name = "bees"`')]
    variable = re.search(r"environment variable (PERENNIAL_\w+)", error.detail)
    if variable is not None:
        return [problem(_CHECK, error.detail, f"unset {variable[1]}")]
    if not path.is_file():
        return [problem(_CHECK, error.detail, f"perennial init {shlex.quote(str(path.parent))}")]
    return [problem(_CHECK, error.detail, "correct what is named; all settings are in docs/settings.md")]


def _of_value(found: Any, path: Path) -> Finding:
    keys = [str(part) for part in found["loc"]]
    key, said = ".".join(keys), loading.explain(found)
    if found["type"] == "extra_forbidden":
        return problem(_CHECK, said, f"in {path} write {loading.nearest_setting(key)} for {key}, or remove it")
    variable = f"PERENNIAL_{'__'.join(keys)}".upper()
    if variable in os.environ:
        return problem(_CHECK, said, f"unset {variable}, or give it a value that is allowed")
    field = _field(keys)
    if field is None:  # values that contradict one another
        return problem(_CHECK, said, f"in {path} correct [{key}]: {found['msg'].removeprefix('Value error, ')}")
    return problem(_CHECK, said, f"in {path} remove {key} (its default is {field.default!r}), or give an allowed value")


def _field(keys: list[str]) -> FieldInfo | None:
    """The field of a setting, whose name may be followed by places in a list; None for a whole section."""
    field: FieldInfo | None = Settings.model_fields.get(keys[0])
    section = field.annotation if field is not None else None
    fields = getattr(section, "model_fields", None)
    if fields is None:
        return field
    return fields.get(keys[1]) if len(keys) > 1 else None


def _readable_secrets(settings: Settings, path: Path) -> list[Finding]:
    secret = bool(settings.notify.webhooks or settings.notify.secret.get_secret_value())
    secret = secret or re.search(r"://[^/@]*:[^/@]+@", settings.database_url) is not None
    if not secret or not path.is_file() or not path.stat().st_mode & 0o044:
        return []
    said = f"everybody on this machine can read {path}, which holds a secret (database_url or [notify])"
    return [warning(_CHECK, said, f"chmod go-rwx {shlex.quote(str(path))}")]
