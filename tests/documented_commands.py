"""The commands that the README and the pages in `docs/` show, and whether a command of ours is one that there is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import typer

from commands.main import app

ROOT = Path(__file__).parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES["README.md"] = (ROOT / "README.md").read_text("utf-8")

_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", flags=re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"\s+# .*$")


def shell_commands(text: str) -> list[str]:
    """Those of a page's ```sh blocks, without comments: each may go over several lines, with `\\` or as a loop."""
    found: list[str] = []
    for indent, language, block in _FENCED.findall(text):
        if language != "sh":
            continue
        part = ""
        for line in block.splitlines():
            part += _COMMENT.sub("", line.removeprefix(indent).rstrip())
            if part.endswith("\\"):
                part = part[:-1]
            elif part.startswith("for ") and not part.endswith("done"):
                part += "\n"
            elif part:
                found.append(part)
                part = ""
        assert not part, f"a command without an end: {part}"
    return found


def outside_of_blocks(text: str) -> str:
    return _FENCED.sub("", text)


def inline_code(text: str) -> list[str]:
    """What stands between backticks in the text around the blocks, on one line each."""
    return [re.sub(r"\s+", " ", each) for each in re.findall(r"`([^`]+)`", outside_of_blocks(text))]


def parse(words: Sequence[str]) -> None:
    """Raises if `words`, the first of them `perennial`, are no command of ours with options that it has."""
    command, context, arguments = _perennial(), None, list(words[1:])
    while True:
        with command.make_context(words[0], list(arguments), parent=context) as context:
            if not getattr(command, "commands", None):
                return
            _, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])


@cache
def _perennial() -> Any:
    return typer.main.get_command(app)


def perennial_within(command: str) -> list[str]:
    """The words of the `perennial ...` that another program is given to run."""
    words = shlex.split(command)
    at = next(at for at, word in enumerate(words) if word == "perennial" or word.endswith("/bin/perennial"))
    return ["perennial", *words[at + 1 :]]
