"""`perennial events`: the audit trail."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer

from commands import console

if TYPE_CHECKING:
    import sqlalchemy as sa

    from perennial.ledger.events import Event, EventKind

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGE: Final = re.compile(r"(\d{1,6})([smhdw])")
_LOOK_SECONDS: Final = 1.0


def events(
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Only these, such as `deployed`; may be repeated.")
    ] = None,
    after: Annotated[
        int | None, typer.Option("--after", min=0, help="Only events after this one, by its number.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="Only events since then: 2d, 12h, 2026-03-01, 2026-03-01T12:00 (UTC).")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most so many.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more, until Ctrl-C.")] = False,
    name: console.Name = None,
    as_json: console.Json = False,
) -> None:
    """Show what happened to a model: every check that changed its mind, retrain, gate, deployment and rollback.

    Oldest first. Without `--after` and `--since` these are the newest; with either, the first ones from there on.
    "cause" is the number of the event that led to this one.

        perennial events --since 2d
        perennial events --kind gate_refused --kind rolled_back
        perennial events --json | jq '.events[].detail.gate'
        perennial events --after 120 --json

    `--json` prints what `GET /v1/events` answers, with every number; its `after` asks for the next page. With
    `--follow` it is one event a line.
    """
    from perennial.ledger import events as trail
    from perennial.ledger import open_ledger

    kinds = _kinds(kind)
    moment = _moment(since, datetime.now(UTC)) if since is not None else None
    settings = console.settings_for(name)
    engine = open_ledger(settings.ledger_url)
    if after is None and moment is None:
        found = trail.newest(engine, settings.name, limit, kinds=kinds)[::-1]
    else:
        found = trail.after(engine, settings.name, after or 0, kinds=kinds, since=moment, limit=limit)
    if as_json and not follow:
        console.print_json(trail.page(found, after or 0))
        return
    if not found and not follow:
        of_what = " of that kind" if kinds else ""
        since_then = " since then" if after is not None or moment is not None else " yet"
        console.out.print(f"nothing{of_what} has happened to {settings.name}{since_then}", markup=False)
        return
    _show(found, as_json=as_json, header=True)
    if follow:
        _follow(engine, settings.name, found[-1].id if found else after or 0, kinds, as_json=as_json)


def _follow(engine: sa.Engine, name: str, last: int, kinds: Sequence[EventKind] | None, *, as_json: bool) -> None:
    from perennial.ledger import events as trail

    while True:
        found = trail.after(engine, name, last, kinds=kinds)
        if found:
            _show(found, as_json=as_json, header=False)
            last = found[-1].id
        else:
            time.sleep(_LOOK_SECONDS)


def _show(found: Sequence[Event], *, as_json: bool, header: bool) -> None:
    if as_json:
        for event in found:
            sys.stdout.write(json.dumps(event.document(), ensure_ascii=False) + "\n")
        sys.stdout.flush()
    else:
        print_table(found, header=header)


def print_table(found: Sequence[Event], *, header: bool = True) -> None:
    """Events in words, one below the other."""
    from rich.markup import escape
    from rich.table import Table

    from perennial.event_wording import what, why

    table = Table(box=None, show_header=header)
    for column, width in (("event", 5), ("at (UTC)", 19), ("kind", 17), ("cause", 5), ("what", None), ("why", None)):
        # The widths are those of every event, so that what is followed stays in line; a version is there to be copied.
        table.add_column(column, min_width=width, overflow="fold")
    for event in found:
        told = (str(event.kind), str(event.caused_by or ""), escape(what(event)), escape(why(event)))
        table.add_row(str(event.id), f"{event.at:%Y-%m-%d %H:%M:%S}", *told)
    console.on_lines(table)


def _kinds(given: Sequence[str] | None) -> list[EventKind] | None:
    """Raises InvalidParameter, which names the kinds there are."""
    from perennial.errors import InvalidParameter
    from perennial.ledger import EventKind

    known = {str(kind): kind for kind in EventKind}
    for kind in given or ():
        if kind not in known:
            raise InvalidParameter(f"--kind {kind}: there is no such event; there are {', '.join(known)}")
    return [known[kind] for kind in given] if given else None


def _moment(text: str, now: datetime) -> datetime:
    """A date, a moment (UTC unless it says otherwise), or how long ago.

    Raises:
        InvalidParameter: it is neither.
    """
    from perennial.errors import InvalidParameter

    age = _AGE.fullmatch(text.strip())
    try:
        if age:
            return now - timedelta(seconds=int(age[1]) * _UNITS[age[2]])
        moment = datetime.fromisoformat(text.strip())
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidParameter(
            f"--since {text[:40]!r} is neither an age, such as 2d, 12h or 30m, nor a date, such as 2026-03-01"
        ) from error
