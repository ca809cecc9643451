"""`perennial models`: every model there is, which one is live, and changing that."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from commands import console
from perennial.errors import InvalidParameter
from perennial.progress import Progress, silent

if TYPE_CHECKING:
    import sqlalchemy as sa

    from perennial.settings import Settings
    from training.promote import PromoteResult

app = typer.Typer(no_args_is_help=True, help="List and show models; promote one, or roll back.")

Reason = Annotated[str, typer.Option("--reason", help="Why, for the audit trail.")]


@app.command("list")
def list_models(name: console.Name = None, as_json: console.Json = False) -> None:
    """List every model, oldest first.

    For example:

        perennial models list
        perennial models list --json | jq -r '.[] | select(.live).version'

    The one that is live is marked.
    """
    from rich.table import Table

    from perennial.ledger import deployments, models, open_ledger

    settings = console.settings_for(name)
    engine = open_ledger(settings.ledger_url)
    history = deployments.history(engine, settings.name)
    live = history[-1].version if history else None
    found: list[dict[str, Any]] = [
        {
            "version": model.version,
            "live": model.version == live,
            "created_at": model.created_at.isoformat(),
            "metrics": {key: value.model_dump() for key, value in model.manifest.metrics.items()},
            "parent": model.parent,
            "backbone": model.manifest.backbone,
            "strategy": model.manifest.strategy,
        }
        for model in models.all_of(engine, settings.name)
    ]
    if as_json:
        console.print_json(found)
        return
    if not found:
        console.out.print(f"no model named {settings.name!r} yet; train one: perennial train DATA", markup=False)
        return
    table = Table("", "version", "created (UTC)", "accuracy", "F1", box=None)
    for column in table.columns:
        column.no_wrap = True  # a version is there to be copied
    for entry in found:
        macro_f1 = entry["metrics"].get("macro_f1")
        table.add_row(
            "[green]live[/]" if entry["live"] else "",
            entry["version"],
            str(entry["created_at"])[:16].replace("T", " "),
            _interval(entry["metrics"].get("accuracy")),
            "" if macro_f1 is None else f"{macro_f1['value']:.3f}",
        )
    console.out.print(table)


@app.command("show")
def show_model(
    version: Annotated[str | None, typer.Argument(help="The live model's unless given.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", dir_okay=False, help="Write the story to this file, as one page.")
    ] = None,
    name: console.Name = None,
    as_json: console.Json = False,
) -> None:
    """Tell a model's story: what it was made of, who asked for it, how it was judged, when it was live.

    For example:

        perennial models show
        perennial models show --html story.html

    With `--html` it is a page of one file, to be kept, sent or printed; it loads nothing and runs nothing.
    """
    from commands.model_story import print_story
    from perennial.ledger import deployments, open_ledger
    from perennial.story import tell

    settings = console.settings_for(name)
    engine = open_ledger(settings.ledger_url)
    story = tell(engine, settings.name, version or deployments.live(engine, settings.name).version)
    if html is not None:
        from perennial.story_page import render

        try:
            html.write_text(render(story), "utf-8")
        except OSError as error:
            raise InvalidParameter(f"--html: {html} cannot be written: {error.strerror}") from error
    if as_json:
        console.print_json(story.document())
    elif html is not None:
        console.out.print(f"written: {html}", markup=False)
    else:
        print_story(story)


@app.command("promote")
def promote_model(
    version: Annotated[str, typer.Argument(help="The version to make live.")],
    reason: Reason = "",
    force: Annotated[bool, typer.Option("--force", help="Without the gate. Needs --reason, and is audited.")] = False,
    at_once: Annotated[bool, typer.Option("--at-once", help="Without the stages of `rollout.stages`.")] = False,
    name: console.Name = None,
    as_json: console.Json = False,
) -> None:
    """Make a model live, if it passes the gate against the live one. Exit code 11: the gate refused.

    For example:

        perennial models promote 20261120-234012-345f1 --reason "seen by the team"
        perennial models promote 20261120-234012-345f1 --at-once

    Where the setting `rollout.stages` has any, it goes live in stages (`perennial rollout status`).
    """
    from commands.retrain import show
    from perennial.ledger import open_ledger

    settings = console.settings_for(name)
    with console.progress() as progress:
        engine = open_ledger(settings.ledger_url)
        result = promote_version(
            engine, settings, version, reason=reason, force=force, at_once=at_once, progress=progress
        )
    document = result.document()
    if as_json:
        console.print_json(document)
    else:
        show(document)
        if result.outcome == "refused":
            console.out.print(f"to deploy it all the same: perennial models promote {version} --force --reason TEXT")
    raise typer.Exit(result.exit_code)


@app.command("rollback")
def roll_back(
    reason: Reason = "",
    if_worse: Annotated[
        bool,
        typer.Option("--if-worse", help="Only if labels since it went live say that the model before is better."),
    ] = False,
    name: console.Name = None,
    as_json: console.Json = False,
) -> None:
    """Go back to the model that was live before this one. While another goes live in stages, that is what is undone.

    For example:

        perennial models rollback --reason "blurred images"
        perennial models rollback --if-worse

    With `--if-worse` both are first compared on the labelled images since the live one was deployed: on the first
    `retrain.watch_labels` of them, by a test that may be looked at as often as you like. Exit code 4: nothing was
    changed. `perennial watch` does so before each check.
    """
    from perennial.ledger import deployments, open_ledger, rollouts

    settings = console.settings_for(name)
    if if_worse:
        _roll_back_if_worse(settings, reason, as_json=as_json)
    engine = open_ledger(settings.ledger_url)
    before = deployments.live(engine, settings.name).version
    rollout = rollouts.running(engine, settings.name)
    now = deployments.roll_back(engine, settings.name, reason=reason or "rolled back by hand", actor=console.actor())
    if as_json:
        console.print_json({**asdict(now), "replaces": rollout.challenger if rollout else before})
    elif rollout is not None:
        console.out.print(f"{rollout.challenger} is not rolled out any more; {now.version} goes on", markup=False)
    else:
        console.out.print(f"{now.version} is live again, in place of {before}", markup=False)


def _roll_back_if_worse(settings: Settings, reason: str, *, as_json: bool) -> NoReturn:
    from perennial.ledger import open_ledger
    from training.rollback import roll_back_if_worse

    if reason:
        raise InvalidParameter("--if-worse finds its own reason, in the labels; leave --reason out")
    with console.progress() as progress:
        look = roll_back_if_worse(open_ledger(settings.ledger_url), settings, progress=progress)
    if as_json:
        console.print_json(look.document())
    else:
        console.out.print(f"{look.outcome.replace('_', ' ')}, {look.live} is live: {look.why}", markup=False)
    raise typer.Exit(look.exit_code)


def promote_version(
    engine: sa.Engine,
    settings: Settings,
    version: str,
    *,
    reason: str = "",
    force: bool = False,
    at_once: bool = False,
    progress: Progress = silent,
) -> PromoteResult:
    """`training.promote.promote` in the name of whoever runs this process."""
    from training.promote import promote

    return promote(
        engine,
        settings,
        version,
        reason=reason,
        force=force,
        at_once=at_once,
        actor=console.actor(),
        progress=progress,
    )


def _interval(estimate: dict[str, float] | None) -> str:
    return "" if estimate is None else f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"
