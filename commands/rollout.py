"""`perennial rollout`: a challenger that goes live in stages; how it does, and moving it on or stopping it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from commands import console

app = typer.Typer(
    no_args_is_help=True,
    help="A model that goes live in stages (the setting `rollout.stages`): look, go on, or stop.",
)


@app.command("status")
def show_status(name: console.Name = None, as_json: console.Json = False) -> None:
    """Show at which stage it is, and what its evidence calls for. Writes nothing.

    For example:

        perennial rollout status
        perennial rollout status --json

    Exit code 4: none runs.
    """
    from perennial.ledger import open_ledger
    from training.rollout import status

    settings = console.settings_for(name)
    document = dict(status(open_ledger(settings.ledger_url), settings))
    if as_json:
        console.print_json(document)
    else:
        _show(document)


@app.command("advance")
def advance(
    force: Annotated[
        bool, typer.Option("--force", help="Go on whatever the evidence says. Needs --reason, and is audited.")
    ] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit trail.")] = "",
    name: console.Name = None,
    as_json: console.Json = False,
) -> None:
    """Do what the evidence calls for: the next stage, or all of the traffic; or stop it; or nothing yet.

    For example:

        perennial rollout advance
        perennial rollout advance --force --reason "enough was seen"

    `perennial watch` does this after each check. Exit codes: 0 it went on, 11 it was stopped, 4 it waits or none runs.
    """
    from perennial.ledger import open_ledger
    from training.rollout import step

    settings = console.settings_for(name)
    result = step(open_ledger(settings.ledger_url), settings, actor=console.actor(), force=force, reason=reason)
    _end(result.document(), as_json)
    raise typer.Exit(result.exit_code)


@app.command("stop")
def stop_rollout(
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit trail.")] = "stopped by hand",
    name: console.Name = None,
    as_json: console.Json = False,
) -> None:
    """End it: the champion answers everything again.

    For example:

        perennial rollout stop --reason "a complaint"

    The service follows within a second or so (`serve.swap_interval`).
    """
    from perennial.ledger import open_ledger
    from training.rollout import stop

    settings = console.settings_for(name)
    _end(stop(open_ledger(settings.ledger_url), settings, actor=console.actor(), reason=reason).document(), as_json)


def _end(document: dict[str, Any], as_json: bool) -> None:
    from rich.markup import escape

    if as_json:
        console.print_json(document)
        return
    colour = {"stopped": "red", "waiting": "yellow"}.get(document["outcome"], "green")
    console.out.print(f"[bold {colour}]{document['outcome']}[/] {document['version']}: {escape(document['why'])}")
    _show(document)


def _show(document: dict[str, Any]) -> None:
    from rich.markup import escape

    from perennial.event_wording import stage_title

    stages = [*map(stage_title, document["stages"]), "all"]
    at = document["stages"].index(document["stage"])
    stages[at] = f"[bold]{stages[at]}[/]"
    console.out.print(
        f"{document['version']} beside {document['champion']}: {' > '.join(stages)}, since {document['since'][:19]} UTC"
    )
    decision = document["decision"]
    for rule in decision["rules"]:
        mark = "[green]passed[/]" if rule["passed"] else "[red]broken[/]"
        console.out.print(f"{mark} {escape(rule['why'])}")
    console.out.print(f"[bold]{decision['action']}[/]: {escape(decision['why'])}")
