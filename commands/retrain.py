"""`perennial retrain`: train anew from the pretrained checkpoint; live only if better."""

from __future__ import annotations

from typing import Annotated, Any, NoReturn

import typer

from commands import console
from commands.courtesy import give_way


def retrain(
    if_due: Annotated[
        bool, typer.Option("--if-due", help="Only if a check, the schedule or new labels call for it.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say whether it would run, on what and why; train and write nothing.")
    ] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit trail.")] = "",
    actor: Annotated[str, typer.Option("--actor", hidden=True)] = "",  # what starts this in somebody's place
    name: console.Name = None,
    as_json: console.Json = False,
) -> None:
    """Train on the original data and the labelled captures, from the pretrained checkpoint again.

    For example:

        perennial retrain --if-due --dry-run
        perennial retrain --if-due
        perennial retrain --reason "new camera"

    The new model goes live only if it is better on fresh labelled captures, and no worse on the old held-out
    images. Exit codes: 0 promoted (or going live in stages), 11 refused by the gate, 4 nothing to do or too few labels
    yet.

    What calls for one is under `[retrain]` in the settings: `on_drift`, `schedule`, `every_labels`. `--if-due` asks all
    of them, so it can be run as often as you like; without it, you call for one. `--dry-run` shows what either would
    do: exit code 0 if a retrain would run, 4 if not.
    """
    settings = console.settings_for(name)
    if not dry_run:
        give_way(settings.retrain.niceness, settings.retrain_threads)
    if console.follows():
        from training.together import follow

        follow()
        return
    if dry_run:
        _dry_run(name, if_due=if_due, as_json=as_json)
    with console.collecting_nothing():
        from perennial.ledger import open_ledger
        from training import processes
        from training.retrain import retrain as run

    with processes.leading(), console.progress() as progress:
        engine, who = open_ledger(settings.ledger_url), actor or console.actor()
        result = run(engine, settings, if_due=if_due, reason=reason, actor=who, progress=progress)
    document = result.document()
    if as_json:
        console.print_json(document)
    else:
        show(document)
    raise typer.Exit(result.exit_code)


def _dry_run(name: str | None, *, if_due: bool, as_json: bool) -> NoReturn:
    from perennial.ledger import open_ledger
    from training.dry_run import plan

    settings = console.settings_for(name)
    found = plan(open_ledger(settings.ledger_url), settings, if_due=if_due)
    if as_json:
        console.print_json(found.document())
    else:
        show_plan(found.document())
    raise typer.Exit(found.exit_code)


def show_plan(document: dict[str, Any]) -> None:
    """Print what a retrain would do for people."""
    from rich.markup import escape

    verdict = "[bold green]a retrain would run[/]" if document["runs"] else "[bold yellow]no retrain would run[/]"
    console.out.print(f"{verdict}: {escape(document['why'])}")
    labels, cooldown, lease = document["labels"], document["cooldown"], document["lease"]
    left_out = "".join(f"; {count} left out: {reason}" for reason, count in labels["left_out"].items())
    data, weights, training = document["data"], document["weights"], document["training"]
    checkpoint = weights["path"] or weights["source"]
    lines = {
        f"by {asked['trigger']}": f"{'yes' if asked['fires'] else 'no'}, {asked['why']}"
        for asked in document["decision"]["triggers"]
    } | {
        "live model": f"{document['model']['version']}, since {document['model']['deployed_at'][:19]} UTC",
        "labels": f"{labels['fresh']} fresh of {labels['needed']} needed, {labels['older']} older{left_out}",
        "new classes": ", ".join(f"{label} ({count} labels)" for label, count in labels["new_classes"].items())
        or "none",
        "cooldown": f"{cooldown['left']:.0f} s left of {cooldown['seconds']:.0f}" if cooldown["left"] else "over",
        "lease": f"{lease['holder']} until {lease['until'][:19]} UTC" if lease else "free",
        "original data": data["why"] or f"{data['location']}: {data['images']} files of {data['classes']} classes",
        "pretrained": weights["why"]
        or (f"{checkpoint}: the right one" if weights["found"] else f"{checkpoint} would be downloaded by torchvision"),
        "training": f"{training['strategy']} on {training['backbone']}, {training['original_images']} original images, "
        f"{training['older_captures']} older and {training['fresh_captures']} fresh captures, about "
        f"{training['judged_on']} of these for the gate alone",
    }
    for title, text in lines.items():
        console.out.print(f"[bold]{title:<15}[/]{escape(text)}")


def show(document: dict[str, Any]) -> None:
    """Print a result of `retrain` or of `models promote` for people."""
    from rich.markup import escape
    from rich.table import Table

    colour = {"promoted": "green", "rolling_out": "green", "refused": "red"}.get(document["outcome"], "yellow")
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
    if document.get("new_classes"):
        told = ", ".join(f"{label} ({count} labels)" for label, count in document["new_classes"].items())
        console.out.print(escape(f"classes that {document['champion']} does not know: {told}"))
    if document["outcome"] == "rolling_out":
        console.out.print("it goes live in stages, which `perennial watch` takes: perennial rollout status")
    if document.get("skipped"):
        first = document["skipped"][0]
        count = len(document["skipped"])
        more = f"{count} image{'' if count == 1 else 's'} left out, such as {first['location']}: {first['reason']}"
        console.out.print(f"[yellow]{escape(more)}[/]")


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:+.3f} ({estimate['low']:+.3f} to {estimate['high']:+.3f})".replace("+", "")
