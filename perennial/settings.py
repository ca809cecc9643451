"""One typed settings object: `perennial.toml`, overridden by `PERENNIAL_*` variables.

Every field says what it means where it is defined (`settings_sections.py`); `docs/settings.md` lists them all, held by
a test.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from perennial.errors import InvalidSettings
from perennial.settings_sections import (
    MonitorSettings,
    NotifySettings,
    RetentionSettings,
    RetrainSettings,
    RolloutSettings,
    ServeSettings,
    TrainSettings,
)

CONFIG_FILE = "perennial.toml"
CONFIG_VARIABLE = "PERENNIAL_CONFIG"
# What Kubernetes puts into every pod beside a Service that is named `perennial`.
_OF_KUBERNETES = re.compile(r"PERENNIAL_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_\w+)?)$")


class Settings(BaseSettings):
    """Everything that can be set. Build it with `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix="PERENNIAL_", env_nested_delimiter="__", extra="forbid", frozen=True, env_ignore_empty=True
    )

    name: str = Field(
        "default",
        pattern=r"^[a-z0-9]([a-z0-9_-]{0,51}[a-z0-9])?$",
        description="The model's name: lower-case letters, digits, `-` and `_`.",
    )
    home: Path = Field(Path("~/.perennial"), description="Folder for the embedded database, storage and caches.")
    database_url: str = Field("", description="SQLAlchemy URL of the ledger; empty is SQLite in `home`.")
    storage_url: str = Field("", description="fsspec URL of images, bundles and reports; empty is a folder in `home`.")
    train: TrainSettings = TrainSettings()
    serve: ServeSettings = ServeSettings()
    monitor: MonitorSettings = MonitorSettings()
    retrain: RetrainSettings = RetrainSettings()
    rollout: RolloutSettings = RolloutSettings()
    retention: RetentionSettings = RetentionSettings()
    notify: NotifySettings = NotifySettings()

    @property
    def home_path(self) -> Path:
        return self.home.expanduser().absolute()

    @property
    def ledger_url(self) -> str:
        """The database's URL, defaults filled in."""
        return self.database_url or f"sqlite:///{self.home_path / 'ledger.sqlite'}"

    @property
    def blobs_url(self) -> str:
        """The storage's URL, defaults filled in."""
        return self.storage_url or f"file://{self.home_path / 'storage'}"

    @property
    def journal_path(self) -> Path:
        """Predictions and images that wait for the database and the storage. Must outlive the process."""
        return self.home_path / "journal" / self.name

    @property
    def workspace_path(self) -> Path:
        """The Evidently workspace: this machine's, whichever model's checks."""
        return self.home_path / "evidently"

    @property
    def cache_path(self) -> Path:
        """Local copies that can be deleted at any time: bundles, embeddings."""
        return self.home_path / "cache"

    @property
    def retrain_threads(self) -> int:
        """Processor threads of a retrain: as set, else half of the cores, within `train.threads`."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        half = max(1, cores // 2)
        return self.retrain.threads or min(half, self.train.threads or half)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # `load_settings` merges file, environment and overrides itself, so that each beats the one before it.
        return (init_settings,)


def load_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """Settings from `config` (else `$PERENNIAL_CONFIG`, else `perennial.toml` here, if there is one), then the
    environment, then `overrides` (a section is a dict: `serve={"port": 3002}`); each beats the one before it.

    Raises:
        InvalidSettings: the file cannot be read, a key is unknown (the nearest known one is named), or a value
            is out of range.
    """
    named = config or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    path = named or Path(CONFIG_FILE)
    values: dict[str, Any] = {}
    if path.is_file():
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InvalidSettings(f"{path} cannot be read: {error}") from error
    elif named:
        raise InvalidSettings(f"there is no settings file {path}; name one with --config or ${CONFIG_VARIABLE}")
    _refuse_unknown_variables()
    try:
        from_environment = EnvSettingsSource(Settings)()
    except SettingsError as error:
        section = str(error).partition('field "')[2].partition('"')[0]
        lists = ", ".join(f"PERENNIAL_{key.replace('.', '__')}".upper() for key in _lists() if key.startswith(section))
        raise InvalidSettings(f"{section}: a variable of it is not JSON that can be read; {lists} are lists") from error
    try:
        return Settings(**_merged(values, from_environment, overrides))
    except ValidationError as error:
        raise InvalidSettings("; ".join(explain(problem) for problem in error.errors())) from error


def known_keys() -> list[str]:
    """Every setting's dotted name, such as `serve.port`."""
    keys = []
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            keys += [f"{name}.{inner}" for inner in section.model_fields]
        else:
            keys.append(name)
    return keys


def _lists() -> list[str]:
    return [
        f"{section}.{name}"
        for section, outer in Settings.model_fields.items()
        if isinstance(outer.default, BaseModel)
        for name, value in outer.default
        if isinstance(value, list)
    ]


def _merged(*layers: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = result.get(key)
            if isinstance(below, dict) and isinstance(value, dict):
                value = _merged(below, value)
            result[key] = value
    return result


def explain(problem: Any) -> str:
    """What is wrong with a setting, in words, by an error of pydantic. Never shows a secret."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        if key.startswith(("notify.webhooks", "notify.secret")):
            return f"{key}: {problem['msg']}; see docs/audit.md"
        if key.startswith("serve.keys"):  # somebody may have put the key itself there: it must not reach a log
            return f"{key}: {problem['msg']}; see docs/security.md"
        return f"{key}: {problem['msg']} (got {problem['input']!r})"
    return _unknown(key)


def nearest_setting(key: str) -> str:
    """The known key that an unknown one resembles most."""
    known = [*known_keys(), "train", "serve", "monitor", "retrain", "rollout", "retention", "notify"]
    return difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]


def _unknown(key: str) -> str:
    return f"unknown setting {key!r}; did you mean {nearest_setting(key)!r}? All settings are in docs/settings.md"


def _refuse_unknown_variables() -> None:
    # pydantic-settings ignores variables it does not know; a mistyped one must not be silent.
    known = {f"PERENNIAL_{key.replace('.', '__')}".upper() for key in known_keys()}
    known |= {CONFIG_VARIABLE, "PERENNIAL_TEST_DATA"}
    for variable in os.environ:
        if _OF_KUBERNETES.match(variable):
            continue
        if variable.upper().startswith("PERENNIAL_") and variable.upper() not in known:
            key = variable[len("PERENNIAL_") :].lower().replace("__", ".")
            raise InvalidSettings(f"environment variable {variable}: {_unknown(key)}")
