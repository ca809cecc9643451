"""`perennial init`: a settings file that changes nothing, and in which each line can be put to use."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from commands.main import app
from commands.settings_file import USED_MOST
from perennial.settings import Settings, known_keys, load_settings


def init(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["init", *map(str, arguments)])


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERENNIAL_TRAIN__THREADS", raising=False)


@pytest.mark.parametrize("options", [[], ["--all"]])
def test_what_is_written_changes_nothing_and_every_line_of_it_can_be_used(tmp_path: Path, options: list[str]) -> None:
    assert init(tmp_path, *options).exit_code == 0
    path = tmp_path / "perennial.toml"
    assert load_settings(path) == Settings()

    text = path.read_text("utf-8")
    used = re.sub(r"^# ([a-z_0-9]+ = )", r"\1", text, flags=re.MULTILINE)
    values = tomllib.loads(used)
    keys = {key for key, value in values.items() if not isinstance(value, dict)}
    keys |= {f"{section}.{key}" for section, inside in values.items() if isinstance(inside, dict) for key in inside}
    wanted = {f"{section}.{key}".lstrip(".") for section, inside in USED_MOST.items() for key in inside}
    assert keys == (set(known_keys()) if options else wanted)
    path.write_text(used, "utf-8")
    assert load_settings(path) == Settings()


def test_every_setting_says_what_it_is_for(tmp_path: Path) -> None:
    init(tmp_path, "--all")
    lines = (tmp_path / "perennial.toml").read_text("utf-8").splitlines()
    for before, line in pairwise(lines):
        if re.match(r"# [a-z_0-9]+ = ", line):
            assert re.match(r"# .*\w.*\.$", before), f"{line} is not explained: {before!r}"


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "perennial.toml"
    path.write_text('name = "mine"\n', "utf-8")
    refused = init(tmp_path)
    assert refused.exception is not None
    assert "--force" in str(refused.exception)
    assert path.read_text("utf-8") == 'name = "mine"\n'
    assert init(tmp_path, "--force").exit_code == 0
    assert load_settings(path) == Settings()


def test_a_name_is_written_and_a_wrong_one_refused(tmp_path: Path) -> None:
    assert init(tmp_path / "new" / "folder", "--name", "bees").exit_code == 0
    assert load_settings(tmp_path / "new" / "folder" / "perennial.toml") == Settings(name="bees")
    assert init(tmp_path, "--name", "No Name").exception is not None
    assert not (tmp_path / "perennial.toml").exists()
