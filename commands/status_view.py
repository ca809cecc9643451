"""`perennial status --watch`: the same numbers as a live view of the whole terminal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from commands.status import cause_in_words, new_labels_in_words, status_document
from perennial.errors import InvalidParameter, PerennialError
from perennial.event_wording import stage_title
from perennial.ledger import open_ledger, traffic
from perennial.settings import Settings

_MINUTES: Final = 60
#: Rows that waited for the database arrive late, under the minutes in which they were answered.
_COUNTED_AGAIN: Final = timedelta(minutes=5)
_BARS: Final = "▁▂▃▄▅▆▇█"
_WIDTH: Final = 24  # of the bar of a family, in characters; its floor is in the middle
_COLOURS: Final = {"ok": "green", "insufficient_data": "yellow"}


def show_live(settings: Settings, seconds: float) -> None:
    """Draw until Ctrl-C, on the terminal's other screen, so that what was there is there again afterwards.

    Raises:
        InvalidParameter: stdout is no terminal.
    """
    terminal = Console(highlight=False)
    if not terminal.is_terminal:
        raise InvalidParameter("--watch draws on a terminal, and stdout is none: use --json, or neither of the two")
    view = StatusView(settings)
    stopping = threading.Event()
    # Not by KeyboardInterrupt: raised where an object is just being released, Python only remarks on it and goes on.
    before = signal.signal(signal.SIGINT, lambda *_: stopping.set())
    try:
        with Live(console=terminal, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            while not stopping.is_set():
                live.update(view.look(), refresh=True)
                stopping.wait(seconds)
    finally:
        signal.signal(signal.SIGINT, before)
        view.close()


class StatusView:
    """What is known of a model, looked at again and again. While the database is away it is the last that was."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine: sa.Engine | None = None
        self._document: dict[str, Any] | None = None
        self._traffic: dict[datetime, int] = {}
        self._seen: datetime | None = None

    def look(self, now: datetime | None = None) -> RenderableType:
        """The view at this moment."""
        now = now or datetime.now(UTC)
        problem = ""
        try:
            if self._engine is None:
                self._engine = open_ledger(self._settings.ledger_url, pool_size=1)
            self._count(self._engine, now)
            self._document = status_document(self._engine, self._settings)
            self._seen = now
        except PerennialError as error:
            problem = f"{error.title}: {error.detail}"
        return _drawn(self._settings.name, self._document, self._traffic, now=now, seen=self._seen, problem=problem)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def _count(self, engine: sa.Engine, now: datetime) -> None:
        # A busy hour is millions of rows: only the minutes that may have changed since the last look are counted.
        first = _minute(now) - timedelta(minutes=_MINUTES - 1)
        since = first if self._seen is None else max(first, _minute(self._seen - _COUNTED_AGAIN))
        kept = {minute: count for minute, count in self._traffic.items() if first <= minute < since}
        self._traffic = kept | traffic.per_minute(engine, self._settings.name, since)


def sparkline(counts: Sequence[int]) -> str:
    """One character a count, as high as it is of the largest; a dot where there is none."""
    most = max(counts, default=0)
    return "".join(_BARS[(len(_BARS) - 1) * count // most] if count else "·" for count in counts)


def _drawn(
    name: str,
    document: Mapping[str, Any] | None,
    by_minute: Mapping[datetime, int],
    *,
    now: datetime,
    seen: datetime | None,
    problem: str,
) -> RenderableType:
    head = Text.assemble((name, "bold"), f"  {now:%Y-%m-%d %H:%M:%S} UTC   Ctrl-C ends it")
    parts: list[RenderableType] = [head]
    if problem:
        parts.append(Text(" ".join(problem.split()), style="bold red"))
        if document is not None:
            parts.append(Text(f"below is what was known at {seen:%H:%M:%S} UTC", style="red"))
    if document is None:
        return Group(*parts)
    counts = [by_minute.get(_minute(now) - timedelta(minutes=ago), 0) for ago in range(_MINUTES - 1, -1, -1)]
    facts = Table.grid(padding=(0, 2))
    for what, said in _facts(document, counts):
        facts.add_row(Text(what, style="dim"), said)
    parts.append(facts)
    families = document["check"]["families"] if document["check"] is not None else {}
    if families:
        parts += [Rule("drift by family; the floor is in the middle", style="dim"), _families(families)]
    if document["events"]:
        parts += [Rule("last events", style="dim"), _events(document["events"])]
    return Group(*parts)


def _facts(document: Mapping[str, Any], counts: Sequence[int]) -> list[tuple[str, RenderableType]]:
    model, window, check = document["model"], document["window"], document["check"]
    live = f"{model['version']}, {model['backbone']}, since {_when(model['deployed_at'])}: {model['reason']}"
    found: list[tuple[str, RenderableType]] = [
        ("live", Text(live)),
        ("traffic", Text(sparkline(counts), style="cyan")),
        ("", Text(f"{sum(counts):,} in the last hour, {counts[-2]:,} in the last minute, at most {max(counts):,}")),
        (
            "window",
            Text(f"the latest {window['rows']:,} of {document['predictions']:,}, {window['labelled']:,} labelled"),
        ),
    ]
    if check is None:
        found.append(("check", Text("none yet; run: perennial monitor", style="yellow")))
    else:
        verdict = Text.assemble((check["verdict"], f"bold {_COLOURS.get(check['verdict'], 'red')}"))
        verdict.append(f"  {_when(check['at'])}{'  ' + check['state'] if check['state'] else ''}")
        found.append(("check", verdict))
        found += [("", Text(cause_in_words(cause))) for cause in check["causes"]]
        found += _accuracies(check["accuracy"] or {})
    held_out = model["metrics"].get("accuracy")
    if held_out is not None:
        found.append(("accuracy", Text(f"{_interval(held_out)} held out, when it was trained", style="dim")))
    if document["rollout"] is not None:
        found.append(("rollout", _rollout(document["rollout"])))
    if document["watch"] is not None:
        found.append(("watch", _watch(document["watch"])))
    if document["new_labels"]["images"]:
        found.append(("new labels", Text(new_labels_in_words(document["new_labels"]))))
    return found


def _accuracies(accuracy: Mapping[str, Any]) -> list[tuple[str, RenderableType]]:
    found: list[tuple[str, RenderableType]] = []
    for key, source in (("labels", "by labels"), ("estimated", "estimated")):
        if accuracy.get(key) is not None:
            of = accuracy[key]
            rows = f", {of['rows']:,} images" if of.get("rows") else ""
            found.append(("accuracy", Text(f"{_interval(of)} {source}{rows}")))
    if accuracy.get("withheld"):
        found.append(("accuracy", Text(f"no estimate: {accuracy['withheld']}", style="dim")))
    return found


def _rollout(rollout: Mapping[str, Any]) -> Text:
    said = Text(f"{rollout['version']}: ")
    for stage in rollout["stages"]:
        said.append(stage_title(stage), style="bold reverse" if stage == rollout["stage"] else "dim")
        said.append(" > ", style="dim")
    return said.append("all of the traffic", style="dim").append(f", since {_when(rollout['since'])}")


def _watch(watch: Mapping[str, Any]) -> Text:
    share = min(1.0, watch["rows"] / watch["of"]) if watch["of"] else 1.0
    said = Text.assemble((_bar(share, _WIDTH), "cyan"), f" {watch['rows']} of {watch['of']} labelled images")
    if watch["rows"]:
        said.append(f": {_interval(watch['live'])} against {_interval(watch['before'])}")
    return said.append(f" of {watch['compared_with']}")


def _families(families: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for family, found in families.items():
        if found["skipped"]:
            table.add_row(family, "", "", Text(f"not tested: {found['skipped']}", style="dim"))
            continue
        colour = "red" if found["alarm"] else "green"
        share = found["score"] / (2 * found["floor"]) if found["floor"] else 0.0
        bar = Text(_bar(min(1.0, share), _WIDTH), style=colour)
        numbers = f"{found['score']:.3f} of {found['floor']:.3f}"
        table.add_row(family, bar, numbers, Text("alarm" if found["alarm"] else "calm", style=colour))
    return table


def _events(events: Sequence[Mapping[str, Any]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for event in events:
        why = escape(event["why"] or event["what"])
        table.add_row(Text(_when(event["at"]), style="dim"), event["kind"].replace("_", " "), why)
    return table


def _bar(share: float, width: int) -> str:
    full = round(max(0.0, share) * width)
    return "█" * full + "░" * (width - full)


def _interval(of: Mapping[str, float]) -> str:
    return f"{of['value']:.3f} ({of['low']:.3f} to {of['high']:.3f})"


def _minute(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


def _when(moment: str) -> str:
    return f"{moment[:19].replace('T', ' ')} UTC"
