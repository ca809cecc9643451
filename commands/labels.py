"""`perennial labels`: which images to label first, out to a file that people or Label Studio fill in, and back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from commands import console

app = typer.Typer(no_args_is_help=True, help="Which images to label first; out to a file, and back.")

_NOTHING: Final = 4
_BAD_DATA: Final = 3
_SHOWN: Final = 20


def _number(share: float) -> float:
    if math.isnan(share):  # which is within no bounds, and beyond none
        raise typer.BadParameter("not a number")
    return share


Count = Annotated[int, typer.Option("--count", min=1, help="How many images.")]
AtRandom = Annotated[
    float,
    typer.Option(
        "--random",
        metavar="SHARE",
        min=0,
        max=1,
        callback=_number,
        help="The share of them that is drawn at random: what the model is sure of and has wrong shows only there, so "
        "without it accuracy looks too low and few better models pass the gate.",
    ),
]
_HALF: Final = 0.5


@app.command("queue")
def queue(
    name: console.Name = None, count: Count = _SHOWN, at_random: AtRandom = _HALF, as_json: console.Json = False
) -> None:
    """Show which unlabelled images of the live model to label first.

    For example:

        perennial labels queue
        perennial labels queue --count 50 --random 1

    In turn one of those that tell the most (drifted, doubtful, unlike one another) and one drawn at random from all.

    Exit code 4: there is nothing to label.
    """
    from rich.style import Style
    from rich.table import Table
    from rich.text import Text

    version, questions = _questions(name, count, at_random)
    if as_json:
        console.print_json({"model_version": version, "queue": questions})
    else:
        # A path that is folded into a column helps nobody: on a terminal it is a link.
        on_screen = console.out.is_terminal
        table = Table("chosen", "drift", "doubt", "sure", "predicted", "prediction", box=None)
        table.columns[-1].overflow = "fold"  # it is there to be copied
        if not on_screen:
            table.add_column("image")
        for each in questions:
            shown = [f"{each[key]:.2f}" for key in ("drift", "doubt", "confidence")]
            prediction = Text(each["prediction_id"], style=Style(link=each["image"] if on_screen else None))
            image = () if on_screen else (Text(each["image"]),)
            table.add_row(each["chosen"], *shown, Text(each["predicted"]), prediction, *image)
        if questions:
            named = f" --name {name}" if name is not None else ""
            console.on_lines(table)
            console.err.print(
                f"To label them: perennial labels export to-label.csv{named}, or in a browser at /ops of the service",
                markup=False,
                style="dim",
            )
        else:
            console.out.print(_why_empty())
    raise typer.Exit(0 if questions else _NOTHING)


@app.command("export")
def export(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write; `.json` is for Label Studio, else CSV.")],
    name: console.Name = None,
    count: Count = 200,
    at_random: AtRandom = _HALF,
    as_json: console.Json = False,
) -> None:
    """Write the images to label first to FILE: a CSV with an empty column `label`, or tasks for Label Studio.

    For example:

        perennial labels export todo.csv --count 100
        perennial labels export tasks.json

    They are what `perennial labels queue` shows, in the same order.

    Exit code 4: there is nothing to label, and nothing was written.
    """
    from perennial import label_files

    version, found = _questions(name, count, at_random)
    if not found:
        console.err.print(_why_empty(), markup=False)
        raise typer.Exit(_NOTHING)
    questions = [label_files.Question(**each) for each in found]
    for_studio = out.suffix.lower() == ".json"
    text = label_files.as_label_studio(questions, version) if for_studio else label_files.as_csv(questions)
    beside = out.with_name(out.name + ".part")
    beside.write_text(text, "utf-8")
    beside.replace(out)
    drawn = sum(each.chosen == "random" for each in questions)
    if as_json:
        console.print_json({"model_version": version, "file": str(out), "images": len(questions), "random": drawn})
    else:
        console.out.print(f"{len(questions)} images to label, {drawn} of them drawn at random: {out}", markup=False)
        console.out.print(f"when they are labelled: perennial labels import {out}", markup=False, style="dim")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A filled-in CSV, or Label Studio's JSON export.")],
    name: console.Name = None,
    source: Annotated[str, typer.Option(help="Who gave the labels; kept with each of them.")] = "labels import",
    as_json: console.Json = False,
) -> None:
    """Read labels back. Of several labels for a prediction the last one counts; doing it twice changes nothing.

    For example:

        perennial labels import todo.csv --source "night shift"

    A label that is no class of the model is kept, and becomes one once enough images have it
    (`retrain.new_class_labels`). Exit code 3: some labels name a prediction or a class that there is not, and could not
    be kept; the others were taken.
    """
    from dataclasses import replace

    from perennial import label_files
    from perennial.ledger import labels, models, new_classes, open_ledger, predictions

    settings = console.settings_for(name)
    given = label_files.read(file, source)
    engine = open_ledger(settings.ledger_url)
    versions = predictions.known(engine, [each.prediction_id for each in given])
    classes = {model.version: frozenset(model.manifest.classes) for model in models.all_of(engine, settings.name)}
    ours = [
        replace(each, known=each.label in classes[versions[each.prediction_id]])
        for each in given
        if versions.get(each.prediction_id) in classes
    ]
    missing = [each.prediction_id for each in given if versions.get(each.prediction_id) not in classes]
    unknown = sorted({each.label for each in ours if not each.known})
    needed = settings.retrain.new_class_labels
    kept = new_classes.admitted(unknown, new_classes.names(engine, settings.name)) if needed else set()
    taken = [each for each in ours if each.known or each.label in kept]
    accepted = sum(each.known for each in taken)
    changed = labels.add(engine, taken)
    refused = [label for label in unknown if label not in kept]
    if as_json:
        found = {"labels": len(given), "accepted": accepted, "kept": len(taken) - accepted, "changed": changed}
        console.print_json({**found, "unknown_predictions": missing, "unknown_labels": unknown})
    else:
        console.out.print(f"{len(given)} labels read, {len(taken)} taken, {changed} of them new or changed")
        if kept:
            told = (
                f"{len(taken) - accepted} are no class of the model that answered, and are kept until {needed} images"
            )
            console.out.print(f"{told} have the same: {', '.join(sorted(kept)[:10])}", markup=False)
        if missing:
            console.err.print(
                f"{len(missing)} name no prediction of {settings.name}, such as {missing[0]}", markup=False
            )
        if refused:
            console.err.print(f"not a class of the model that answered: {', '.join(refused[:10])}", markup=False)
    raise typer.Exit(_BAD_DATA if missing or refused else 0)


def _questions(name: str | None, count: int, at_random: float) -> tuple[str, list[dict[str, Any]]]:
    """The live version, and what to label first of its window."""
    from monitoring.labelling_queue import queue_of_live
    from perennial.ledger import open_ledger

    settings = console.settings_for(name)
    version, candidates = queue_of_live(open_ledger(settings.ledger_url), settings, count, at_random)
    return version, [
        {
            "prediction_id": each.prediction_id, "image": each.image_url, "predicted": each.predicted,
            "confidence": each.confidence, "drift": each.drift, "doubt": each.doubt, "chosen": each.chosen,
        }
        for each in candidates
    ]  # fmt: skip


def _why_empty() -> str:
    return "nothing to label: the latest predictions have labels, or their images were not captured (serve.capture)"
