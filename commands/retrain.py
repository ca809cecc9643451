"""`perennial retrain`: train anew from the pretrained checkpoint; live only if better."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from commands import console


def retrain(
    if_due: Annotated[
        bool, typer.Option("--if-due", help="Only if `perennial monitor` asked for it and nothing answered yet.")
    ] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit trail.")] = "",
    name: console.Name = None,
    as_json: console.Json = False,
) -> None:
    """Train on the original data and the labelled captures, from the pretrained checkpoint again.

    The new model goes live only if it is better on fresh labelled captures, and no worse on the old held-out
    images. Exit codes: 0 promoted, 11 refused by the gate, 4 nothing to do or too few labels yet.
    """
    if console.follows():
        from training.together import follow

        follow()
        return
    from perennial.ledger import open_ledger
    from training import processes
    from training.retrain import retrain as run

    settings = console.settings_for(name)
    with processes.leading(), console.progress() as progress:
        result = run(open_ledger(settings.ledger_url), settings, if_due=if_due, reason=reason, progress=progress)
    document = result.document()
    if as_json:
        console.print_json(document)
    else:
        show(document)
    raise typer.Exit(result.exit_code)


def show(document: dict[str, Any]) -> None:
    """Print a result of `retrain` or of `models promote` for people."""
    from rich.markup import escape
    from rich.table import Table

    colour = {"promoted": "green", "refused": "red"}.get(document["outcome"], "yellow")
    version = document["version"] or document["champion"]
    console.out.print(f"[bold {colour}]{document['outcome'].replace('_', ' ')}[/] {escape(str(version))}")
    gate = document.get("gate")
    if gate is None:
        console.out.print(escape(document["why"]))
    else:
        table = Table("slice", "rows", "champion", "challenger", "difference", "p", box=None)
        for slice_name in ("fresh", "old"):
            found = gate[slice_name]
            if found is not None:
                cells = [_interval(found[key]) for key in ("champion", "challenger", "difference")]
                table.add_row(slice_name, str(found["rows"]), *cells, f"{found['p_value']:.2g}")
        console.out.print(table)
        for rule in gate["rules"]:
            mark = "[green]passed[/]" if rule["passed"] else "[red]broken[/]"
            console.out.print(f"{mark} {escape(rule['why'])}")
        for change in gate["changed_classes"]:
            console.out.print(
                escape(
                    f"{change['label']} changed its meaning: of {change['rows']} images that the champion calls so, "
                    f"{change['kept']} still are; {change['called_now']} are called {change['now']}"
                )
            )
    if document.get("skipped"):
        first = document["skipped"][0]
        more = f"{len(document['skipped'])} captures left out, such as {first['location']}: {first['reason']}"
        console.out.print(f"[yellow]{escape(more)}[/]")


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:+.3f} ({estimate['low']:+.3f} to {estimate['high']:+.3f})".replace("+", "")
