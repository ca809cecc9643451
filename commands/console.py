"""What every verb shares with the person (or program) at the terminal: settings, progress, JSON, errors.

Results go to stdout; progress and logs go to stderr. With `--json` stdout holds one JSON document and nothing else.
"""

from __future__ import annotations

import gc
import getpass
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from perennial.progress import Progress, Step

if TYPE_CHECKING:
    from rich.table import Table

    from perennial.settings import Settings

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Name = Annotated[str | None, typer.Option("--name", help="The model's name; the setting `name` unless given.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]

_PLAIN_SECONDS = 2.0
_WIDEST = 1000  # characters of a table in a file or a pipe
_LEAST_TIMED = 0.5  # seconds; of less a pace says little


@dataclass
class Invocation:
    """What the options before the verb said."""

    config: Path | None = None


invocation = Invocation()


def settings_for(name: str | None = None, **overrides: Any) -> Settings:
    """The settings of this call: file, environment, then options. None means "not given".

    Keyword arguments are sections, such as `serve={"port": 3001, "host": None}`.
    """
    from perennial.settings import load_settings  # pydantic: `--help` answers without it

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


def actor() -> str:
    """Who runs this process, for the audit trail."""
    try:
        return f"cli:{getpass.getuser()}"
    except (OSError, KeyError):  # a container may run under a user id that has no name
        return "cli:unknown"


@contextmanager
def collecting_nothing() -> Iterator[None]:
    """For imports: nothing of what they make is garbage, now or later, and to look for some takes an eighth to a fifth
    of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def follows() -> bool:
    """Did `torchrun` start this process beside another one, which leads?"""
    from training.processes import place

    return place().rank > 0


def report_skipped(lines: Sequence[str], shown: int = 20) -> None:
    """Say on stderr which files were not used, and why: the first few."""
    if lines:
        err.print(f"{len(lines)} file{'' if len(lines) == 1 else 's'} not used:", markup=False)
    for line in lines[:shown]:
        err.print(f"  {line}", markup=False)
    if len(lines) > shown:
        err.print(f"  and {len(lines) - shown} more; --json lists them all", markup=False)


def on_lines(table: Table) -> None:
    """Print a table whose rows are one line each in a file or a pipe; a terminal folds what is too wide for it."""
    screen = out if out.is_terminal else Console(highlight=False, soft_wrap=True, width=_WIDEST)
    screen.print(table)


def print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


@contextmanager
def progress() -> Iterator[Progress]:
    """A listener for long work: a bar on a terminal, a plain line now and then elsewhere."""
    pace = Pace()
    if err.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=err, transient=True) as bars:
            tasks: dict[str, Any] = {}

            def show(step: Step) -> None:
                if step.stage not in tasks:
                    tasks[step.stage] = bars.add_task(step.stage, total=step.total or None, rate="")
                rate = pace.rate(step)
                text = f"{rate:,.0f} {step.unit}/s" if rate else ""
                bars.update(tasks[step.stage], completed=step.done, total=step.total or None, rate=text)

            yield show
        return

    last: dict[str, float] = {}

    def write(step: Step) -> None:
        now = time.monotonic()
        rate = pace.rate(step)
        finished = step.total > 0 and step.done >= step.total
        if finished or now - last.get(step.stage, float("-inf")) >= _PLAIN_SECONDS:
            last[step.stage] = now
            total = f"/{step.total}" if step.total else ""
            err.print(f"{step.stage}: {step.done}{total}{_pace_in_words(step, rate)}", markup=False)

    yield write


class Pace:
    """How fast each stage goes, since it was first heard of. A stage that begins again is timed anew."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or time.monotonic
        self._began: dict[str, tuple[float, int]] = {}  # when, and with how many done
        self._last: dict[str, int] = {}

    def rate(self, step: Step) -> float:
        """Units a second; 0 where nobody asks, or it is too early to say."""
        if not step.unit:
            return 0.0
        now = self._clock()
        if step.done < self._last.get(step.stage, step.done + 1):
            self._began[step.stage] = (now, step.done)
        self._last[step.stage] = step.done
        at, first = self._began[step.stage]
        passed, done = now - at, step.done - first
        return done / passed if passed >= _LEAST_TIMED and done > 0 else 0.0


def _pace_in_words(step: Step, rate: float) -> str:
    if not rate:
        return ""
    left = (step.total - step.done) / rate
    ends = f", {timedelta(seconds=math.ceil(left))} left" if step.total > step.done else ""
    return f" ({rate:,.0f} {step.unit}/s{ends})"
