"""The README's two commands for everybody, and the help. Its other commands: test_docs_commands.py."""

from __future__ import annotations

import re
import subprocess

from tests.documented_commands import PAGES, ROOT, shell_commands
from tests.in_process import perennial_here


def test_the_readme_names_the_two_commands() -> None:
    assert shell_commands(PAGES["README.md"])[:2] == ["make demo", "make test"]
    for target, runs in (("demo", "perennial demo"), ("test", "-m pytest")):
        plan = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert runs in plan


def test_ci_runs_the_same_test_command() -> None:
    assert re.search(r"^make test\b", (ROOT / ".ci" / "run").read_text("utf-8"), flags=re.MULTILINE)


def test_help_answers_for_every_verb() -> None:
    for words in ([], ["train"], ["serve"], ["ui"], ["models", "promote"]):
        done = perennial_here(*words, "--help", cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout
