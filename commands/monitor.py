"""`perennial monitor`: one check of the live model, for people and for programs."""

from __future__ import annotations

import gc
from typing import Annotated, Any, Final

import typer

from commands import console

#: Exit code of `--exit-code` when a retrain is called for.
RETRAIN_DUE: Final = 10

#: Objects made since the last collection of garbage; Python's own 700 are too few for such imports.
_COLLECT_AFTER: Final = 50_000


def monitor(
    name: console.Name = None,
    as_json: console.Json = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help=f"Exit with {RETRAIN_DUE} when a retrain is called for.")
    ] = False,
) -> None:
    """Compare the latest predictions of the live model with its reference: is the traffic still what it knows?

    For example:

        perennial monitor
        perennial monitor --exit-code || perennial retrain --if-due

    Writes a check, a report to look at in a browser and, on a change of state, events. It never retrains by itself.
    """
    # A short life that is mostly imports, and what they make stays: looking through it for garbage takes a fifth of it.
    gc.set_threshold(_COLLECT_AFTER, 20, 100)

    from perennial.ledger import open_ledger

    settings = console.settings_for(name)
    engine = open_ledger(settings.ledger_url)  # where it cannot be reached, nothing else need be imported

    from monitoring.drawing_process import DrawingAside

    with DrawingAside() as drawing:
        if settings.monitor.report == "always":
            drawing.start()  # it takes longer to be ready than what follows does
        from monitoring.check import run_check

        check = run_check(engine, settings, drawing)
    if as_json:
        console.print_json(check.document())
    else:
        _show(check.document())
    if exit_code and check.retrain.due:
        raise typer.Exit(RETRAIN_DUE)


def _show(document: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from monitoring import wording

    verdict = document["verdict"]
    colour = {"ok": "green", "insufficient_data": "yellow"}.get(verdict, "red")
    console.out.print(f"[bold {colour}]{verdict}[/]  {wording.VERDICTS[verdict]}")
    for cause in document["causes"]:
        console.out.print(f"  {cause['cause']}: {escape(cause['why'])}")
    for note in document["collection"]["notes"]:
        console.out.print(f"  note: {escape(note)}")
    window = document["window"]
    span = f", {window['start'][:19]} to {window['end'][:19]} UTC" if window["rows"] else ""
    console.out.print(f"model {document['model_version']}, {window['rows']} predictions{span}", style="dim")
    compared = document["compared_with"]
    if compared is not None:
        console.out.print(f"compared with {wording.compared_with(compared)}", style="dim")
    console.out.print(f"state: {document['state']}  {wording.STATES[document['state']]}")
    if document["families"]:
        table = Table("family", "effect", "floor", "p", "", "largest", box=None)
        for family, found in document["families"].items():
            if found["skipped"]:
                table.add_row(family, "", "", "", "[dim]not tested[/]", escape(found["skipped"]))
                continue
            mark = "[red]alarm[/]" if found["alarm"] else "[green]calm[/]"
            largest = next(iter(found["columns"]), "")
            cells = (f"{found['score']:.3f}", f"{found['floor']:.3f}", f"{found['p_value']:.2g}")
            table.add_row(family, *cells, mark, escape(largest))
        console.out.print(table)
    for problem in document["problems"]:
        console.out.print(f"not tested: {escape(problem['column'])}: {escape(problem['problem'])}", style="dim")
    accuracy = document["accuracy"]
    console.out.print(
        "accuracy: "
        f"{_estimate(accuracy['labels'], 'by labels')}, {_estimate(accuracy['estimated'], 'estimated')}, "
        f"{_estimate(accuracy['reference'], 'in the reference')}"
    )
    if accuracy["withheld"]:
        console.out.print(f"estimate withheld: {escape(accuracy['withheld'])}")
    # Fitted to reference rows that are all right, it says 1 of whatever comes.
    if accuracy["calibrated"] is not None and accuracy["reference"]["value"] < 1:
        opinion = _estimate(accuracy["calibrated"], "by calibrated confidence")
        console.out.print(f"second opinion: {opinion}", style="dim")
    past = accuracy["past_estimates"]
    if past is not None:
        windows = f"{past['windows']} earlier window{'s' if past['windows'] > 1 else ''}"
        console.out.print(
            f"estimates were off by {past['error']:.3f} in the mean of {windows} with labels by now, at most by "
            f"{past['worst']:.3f}"
        )
    rise = accuracy["errors_rose"]
    if rise is not None:
        console.out.print(
            f"errors rose from {rise['before']:.1%} to {rise['after']:.1%} of the labelled answers, "
            f"about {rise['since']:,} labels ago"
        )
    retrain = document["retrain"]
    console.out.print(f"retrain: {'due' if retrain['due'] else 'not due'}; {escape(retrain['why'])}")
    console.out.print(f"next: {wording.next_step(verdict, retrain_due=retrain['due'])}")
    if document["false_alarms"]:
        console.out.print(f"false alarms: {wording.false_alarms(document['false_alarms'])}", style="dim")
    if document["report_url"]:
        count = len(document["examples"])
        shows = f"  ({count} image{'s' if count > 1 else ''} to look at)" if count else ""
        console.out.print(f"report: {escape(document['report_url'])}{shows}")


def _estimate(found: dict[str, Any] | None, source: str) -> str:
    if found is None:
        return f"none {source}"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f}) {source}"
