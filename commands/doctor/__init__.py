"""`perennial doctor`: what is wrong with this installation, and how to mend each of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import typer

from commands import console

if TYPE_CHECKING:
    from commands.doctor.findings import Finding

_COLOURS: Final = {"ok": "green", "warning": "yellow", "problem": "red", "not checked": "dim"}


def doctor(name: console.Name = None, as_json: console.Json = False) -> None:
    """Look for what is wrong, and say how to mend it: one line each, to be run or set as it stands.

    For example:

        perennial doctor
        perennial doctor --json | jq '.checks[] | select(.level == "problem")'

    Looks at versions, settings, home, disk, database, clock, storage, the live model with its pretrained weights and
    training data, the processor and the ports. It changes nothing: of the storage it writes, reads and deletes one
    small object. Nothing is asked of the internet.

    Exit codes: 0 no problem (there may be warnings), 1 at least one.
    """
    from commands.doctor.examine import examine

    found = examine(console.invocation.config, name)
    problems = sum(each.level == "problem" for each in found)
    warnings = sum(each.level == "warning" for each in found)
    if as_json:
        console.print_json(
            {
                "ok": problems == 0,
                "problems": problems,
                "warnings": warnings,
                "checks": [each.document() for each in found],
            }
        )
    else:
        _show(found)
        said = f"{problems} problem{'' if problems == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}"
        console.out.print(f"[bold {'red' if problems else 'green'}]{said}[/]")
    raise typer.Exit(1 if problems else 0)


def _show(found: Sequence[Finding]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("check", "", "found", box=None)
    for each in found:
        table.add_row(each.check, f"[{_COLOURS[each.level]}]{each.level}[/]", escape(each.found))
    console.out.print(table)
    for each in found:
        if each.mend:
            # Not in the table: a line that is to be copied must not be broken.
            console.out.print(f"[{_COLOURS[each.level]}]mend {each.check}:[/] {escape(each.mend)}")
