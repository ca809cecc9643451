"""`perennial backbones`: every network that can be trained from, and whether its weights are here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands import console

if TYPE_CHECKING:
    from training.catalog import Entry


class Order(StrEnum):
    """What the list can be sorted by."""

    NAME = "name"
    TOP1 = "top1"
    PARAMETERS = "parameters"
    GFLOPS = "gflops"


def backbones(
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A folder with weights of yours, named by backbone: resnet50.pth."),
    ] = None,
    sort: Annotated[Order, typer.Option(help="What to sort by; the best or smallest first.")] = Order.NAME,
    at_hand: Annotated[bool, typer.Option("--at-hand", help="Only those whose weights need no download.")] = False,
    as_json: console.Json = False,
) -> None:
    """List the networks that `perennial train --backbone` and `perennial import` take: every classification network of
    torchvision.

    Parameters and GFLOPs (billions of multiply-adds an image) are what an answer costs; top-1 is the published
    accuracy on ImageNet. A bigger one is not always better for your images: `perennial train --backbone auto` measures
    which of those at hand suits them. For example, what is accurate and needs no download:

        perennial backbones --at-hand --sort top1
    """
    from training.catalog import entries

    found = list(entries(weights.expanduser() if weights is not None else None))
    found = [entry for entry in found if entry.at_hand or not at_hand]
    if sort is Order.TOP1:
        found.sort(key=lambda entry: -entry.top1)
    elif sort is Order.PARAMETERS:
        found.sort(key=lambda entry: entry.parameters)
    elif sort is Order.GFLOPS:
        found.sort(key=lambda entry: entry.gflops)
    if as_json:
        console.print_json([asdict(entry) for entry in found])
    else:
        _print(found)


def _print(found: Sequence[Entry]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None)
    for title in ("name", "params", "GFLOPs", "pixels", "top-1", "file", "weights", "at hand"):
        numeric = title not in ("name", "weights", "at hand")
        table.add_column(title, justify="right" if numeric else "left", no_wrap=title == "name")
    for entry in found:
        table.add_row(
            entry.name,
            f"{entry.parameters / 1e6:.1f} M",
            f"{entry.gflops:.2f}",
            str(entry.input_size),
            f"{entry.top1:.1f} %",
            f"{entry.megabytes:.0f} MB",
            entry.edition.removeprefix("IMAGENET1K_") + (" *" if entry.license else ""),
            f"[green]{escape(', '.join(Path(each).name for each in entry.at_hand))}[/]" if entry.at_hand else "",
        )
    console.out.print(table)
    for terms in sorted({entry.license for entry in found if entry.license}):
        console.out.print(f"* under terms of their own, read them before commercial use: {terms}", markup=False)
    console.out.print(
        "The weights are torchvision's, trained on ImageNet-1K; of the others it names no licence. Those not at hand "
        "are downloaded by --weights default.",
        markup=False,
    )
