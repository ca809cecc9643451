"""What every verb shares with the person (or program) at the terminal: settings, progress, JSON, errors.

Results go to stdout; progress and logs go to stderr. With `--json` stdout holds one JSON document and nothing else.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from perennial.progress import Progress, Step
from perennial.settings import Settings, load_settings

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Name = Annotated[str | None, typer.Option("--name", help="The model's name; the setting `name` unless given.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]

_PLAIN_SECONDS = 2.0


@dataclass
class Invocation:
    """What the options before the verb said."""

    config: Path | None = None


invocation = Invocation()


def settings_for(name: str | None = None, **overrides: Any) -> Settings:
    """The settings of this call: file, environment, then options. None means "not given".

    Keyword arguments are sections, such as `serve={"port": 3001, "host": None}`.
    """
    given: dict[str, Any] = {"name": name} if name is not None else {}
    for section, values in overrides.items():
        chosen = {key: value for key, value in values.items() if value is not None}
        if chosen:
            given[section] = chosen
    settings = load_settings(invocation.config, **given)
    # BentoML keeps its model store and its metrics here; beside our own things unless told otherwise.
    os.environ.setdefault("BENTOML_HOME", str(settings.home_path / "bentoml"))
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    return settings


def print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


@contextmanager
def progress() -> Iterator[Progress]:
    """A listener for long work: a bar on a terminal, a plain line now and then elsewhere."""
    if err.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=err, transient=True) as bars:
            tasks: dict[str, Any] = {}

            def show(step: Step) -> None:
                if step.stage not in tasks:
                    tasks[step.stage] = bars.add_task(step.stage, total=step.total or None)
                bars.update(tasks[step.stage], completed=step.done, total=step.total or None)

            yield show
        return

    last: dict[str, float] = {}

    def write(step: Step) -> None:
        now = time.monotonic()
        finished = step.total > 0 and step.done >= step.total
        if finished or now - last.get(step.stage, float("-inf")) >= _PLAIN_SECONDS:
            last[step.stage] = now
            total = f"/{step.total}" if step.total else ""
            err.print(f"{step.stage}: {step.done}{total}", markup=False)

    yield write
