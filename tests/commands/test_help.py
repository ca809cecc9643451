"""The help teaches: each verb has examples, each example is a command that there is, and the help answers at once."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from commands.main import app
from tests.documented_commands import parse

ROOT = Path(__file__).parents[2]
#: What a parser already does something for: it is not parsed here.
ACT_AT_ONCE = ("--help", "--install-completion")
#: What is not loaded only to answer `--help`: each takes a tenth of a second or more.
HEAVY = ("pydantic", "sqlalchemy", "httpx", "numpy", "torch", "bentoml", "pandas", "evidently", "openvino")


def walked(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walked(inner, (*words, name))


VERBS = dict(walked(typer.main.get_command(app)))


def examples(help_text: str) -> list[list[str]]:
    """The commands in a help's indented lines, in words; of a pipeline each `perennial`."""
    lines = re.findall(r"^    (perennial .*)$", help_text, flags=re.MULTILINE)
    parts = [part for line in lines for part in re.split(r"\s\|\|?\s", re.sub(r"\s+# .*$", "", line))]
    found = [shlex.split(part) for part in parts if part.startswith("perennial ")]
    return [words for words in found if words[-1] not in ACT_AT_ONCE]


EXAMPLES = [words for each in VERBS.values() for words in examples(each.help or "")]


@pytest.mark.parametrize("words", EXAMPLES, ids=" ".join)
def test_an_example_is_a_command_with_options_that_there_are(words: list[str]) -> None:
    parse(words)


@pytest.mark.parametrize(
    "words", [words for words, each in VERBS.items() if not getattr(each, "commands", None)], ids=" ".join
)
def test_every_verb_has_an_example_of_its_own(words: tuple[str, ...]) -> None:
    found = [tuple(each[1:]) for each in examples(VERBS[words].help or "")]
    assert any(each[: len(words)] == words for each in found), f"perennial {' '.join(words)} --help shows no example"


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_an_example_is_shown_on_a_line_of_its_own(words: tuple[str, ...]) -> None:
    told = VERBS[words].help or ""
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"}).stdout
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    for example in re.findall(r"^    (perennial .*)$", inspect.cleandoc(told), flags=re.MULTILINE):
        assert " ".join(example.split()) in lines


def test_the_help_is_grouped_by_what_one_wants_to_do() -> None:
    shown = CliRunner().invoke(app, ["--help"], terminal_width=120).stdout
    groups = ["Make a model", "Serve it and keep it good", "See what happens", "Decide yourself", "Set up and mend"]
    for group in groups:
        assert group in shown
    top = [each for words, each in VERBS.items() if len(words) == 1]
    ungrouped = [each.name for each in top if each.rich_help_panel not in groups]
    assert not ungrouped
    assert all(option in shown for option in ACT_AT_ONCE)


def test_the_help_answers_at_once() -> None:
    code = f"import sys, commands.main; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    took = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "commands.main", "--help"], cwd=ROOT, capture_output=True, check=True)
        took.append(time.perf_counter() - began)
    # Half a second on a machine that does nothing else; here other tests run beside it.
    assert min(took) < 1.5


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_completes_verbs_and_options(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {
        "bash": {"COMP_WORDS": "perennial ret", "COMP_CWORD": "1"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "perennial ret"},
        "fish": {"_TYPER_COMPLETE_ARGS": "perennial ret", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    done = CliRunner().invoke(app, prog_name="perennial", env={"_PERENNIAL_COMPLETE": f"complete_{shell}", **asked})
    assert "retrain" in done.stdout
    assert "monitor" not in done.stdout
