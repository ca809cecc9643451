"""One settings object: file, environment, overrides; a mistake is an error that helps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from perennial.errors import InvalidSettings
from perennial.settings import Settings, known_keys, load_settings

ROOT = Path(__file__).parents[2]


def toml(folder: Path, text: str) -> Path:
    path = folder / "perennial.toml"
    path.write_text(text, "utf-8")
    return path


def test_the_defaults_need_no_file() -> None:
    settings = load_settings()
    assert settings.serve.host == "127.0.0.1"
    assert settings.ledger_url.startswith("sqlite:///")
    assert settings.blobs_url.startswith("file://")


def test_each_layer_beats_the_one_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toml(tmp_path, '[serve]\nport = 1111\nhost = "0.0.0.0"\nworkers = 3\n')
    monkeypatch.setenv("PERENNIAL_SERVE__PORT", "2222")
    monkeypatch.setenv("PERENNIAL_SERVE__WORKERS", "4")
    settings = load_settings(config, serve={"port": 3333})
    assert (settings.serve.host, settings.serve.workers, settings.serve.port) == ("0.0.0.0", 4, 3333)


def test_the_file_in_this_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml(tmp_path, 'name = "steel"\n')
    monkeypatch.chdir(tmp_path)
    assert load_settings().name == "steel"


def test_a_file_named_by_the_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_CONFIG", str(toml(tmp_path, 'name = "wood"\n')))
    assert load_settings().name == "wood"


def test_an_unknown_key_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"'serve\.prot'; did you mean 'serve\.port'"):
        load_settings(toml(tmp_path, "[serve]\nprot = 1\n"))


def test_drift_that_could_never_open_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "perennial.toml"
    path.write_text("[monitor]\nopen_after = 4\n")
    with pytest.raises(InvalidSettings, match="drift would never be opened"):
        load_settings(path)
    path.write_text("[monitor]\nopen_after = 3\nopen_of = 3\n")
    assert load_settings(path).monitor.open_after == 3


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("0 3 * *", "4 fields"),
        ("0 25 * * *", "higher than the maximum value"),
        ("0 3 * * 0", "weekdays are named"),
        ("0 3 * * */2", "weekdays are named"),
        ("0 3 * * sun-tue", "must not be higher"),
        ("0 3 1 * mon", "leave the other at"),
        ("0 3 31 2 *", "no such day"),
        ("every night", "2 fields"),
    ],
)
def test_a_schedule_that_is_none_is_refused_and_a_valid_one_shown(
    monkeypatch: pytest.MonkeyPatch, expression: str, why: str
) -> None:
    monkeypatch.setenv("PERENNIAL_RETRAIN__SCHEDULE", expression)
    with pytest.raises(InvalidSettings, match=rf"retrain\.schedule: .*{why}.*'0 3 \* \* \*' is every night at three"):
        load_settings()


@pytest.mark.parametrize(
    "expression", ["0 3 * * *", "30 2 * * sun", "0 */6 * * *", "15 4 1,15 * *", "0 6 * jan-mar mon-fri"]
)
def test_a_schedule_is_five_fields(monkeypatch: pytest.MonkeyPatch, expression: str) -> None:
    monkeypatch.setenv("PERENNIAL_RETRAIN__SCHEDULE", expression)
    assert load_settings().retrain.schedule == expression


def test_an_unknown_variable_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_MONITOR__WINDOWS", "5")
    with pytest.raises(InvalidSettings, match=r"PERENNIAL_MONITOR__WINDOWS.*did you mean 'monitor\.window'"):
        load_settings()


def test_what_kubernetes_puts_beside_a_service_of_our_name_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_3000_TCP", "PORT_3000_TCP_ADDR"):
        monkeypatch.setenv(f"PERENNIAL_{name}", "10.0.0.1")
    assert load_settings().serve.port == 3000


@pytest.mark.parametrize(
    "text", ["[serve]\nport = 0\n", '[serve]\nport = "x"\n', "[monitor]\nalpha = 2\n", 'name = "Not A Name"\n']
)
def test_a_value_out_of_range_says_which_and_what(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidSettings, match=r"(serve\.port|monitor\.alpha|name): .*got"):
        load_settings(toml(tmp_path, text))


def test_broken_toml_and_a_missing_file_are_clear(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="cannot be read"):
        load_settings(toml(tmp_path, "[serve\n"))
    with pytest.raises(InvalidSettings, match="there is no settings file"):
        load_settings(tmp_path / "absent.toml")


def test_settings_cannot_be_changed_after_loading() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().serve.port = 1  # type: ignore[misc]


def test_every_setting_is_documented_with_its_default() -> None:
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    documented = dict(re.findall(r"^\| `([a-z0-9_.]+)` \| `([^`]*)` \|", page, flags=re.MULTILINE))
    defaults: dict[str, str] = {}
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, BaseModel):
            for inner, value in field.default.model_dump().items():
                defaults[f"{name}.{inner}"] = str(value)
        else:
            defaults[name] = str(field.default)
    assert set(known_keys()) == set(defaults)
    assert documented == defaults


def test_every_setting_says_what_it_means() -> None:
    for field in Settings.model_fields.values():
        if isinstance(field.default, BaseModel):
            for inner in type(field.default).model_fields.values():
                assert inner.description
        else:
            assert field.description
