"""`perennial import`: a pretrained network as it is, with its own classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands import console

if TYPE_CHECKING:
    from training.import_model import Imported


def import_model(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="torchvision:NAME; `perennial backbones` lists them.")
    ],
    weights: Annotated[
        str,
        typer.Option(
            metavar="default|PATH",
            help="default downloads torchvision's; PATH is a file of the whole network, classifier included.",
        ),
    ] = "default",
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Images like those to be expected, labelled or not: what the monitor compares traffic with.",
        ),
    ] = None,
    name: console.Name = None,
    image_size: Annotated[
        int, typer.Option(min=0, help="Side of the square the network sees, in pixels; 0 is the weights' own.")
    ] = 0,
    as_json: console.Json = False,
) -> None:
    """Serve a pretrained network as it is, with its own 1,000 ImageNet classes: transfer without training.

    The first model of a name goes live at once. For example:

        perennial import torchvision:mobilenet_v2 --data photos/

    Without `--data` nothing says what usual traffic looks like: it serves, and `perennial monitor` says that it cannot
    compare. If your classes are not among ImageNet's, `perennial train` makes a model of them in seconds.
    """
    settings = console.settings_for(name)
    from commands.train import _need_training_packages

    _need_training_packages()
    from perennial.ledger import open_ledger
    from training.import_model import import_model as run

    engine = open_ledger(settings.ledger_url)
    with console.progress() as progress:
        imported = run(engine, settings, source, weights=weights, image_size=image_size, data=data, progress=progress)
    console.report_skipped(imported.skipped)
    if as_json:
        console.print_json(_document(imported))
    else:
        _print(imported, named=f" --name {name}" if name is not None else "")


def _document(imported: Imported) -> dict[str, Any]:
    manifest = imported.bundle.manifest
    return {
        "version": manifest.version,
        "name": manifest.name,
        "strategy": manifest.strategy,
        "why": manifest.why,
        "backbone": manifest.backbone,
        "weights": manifest.pretrained.model_dump(),
        "classes": len(manifest.classes),
        "reference": {"images": imported.images, "labelled": imported.labelled},
        "metrics": {name: estimate.model_dump() for name, estimate in manifest.metrics.items()},
        "precisions": list(manifest.precisions),
        "bundle": str(imported.bundle.path),
        "live": imported.live,
        "skipped": list(imported.skipped),
    }


def _print(imported: Imported, *, named: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    manifest = imported.bundle.manifest
    table = Table(title=f"{manifest.name} {manifest.version}", show_header=False, title_justify="left")
    table.add_row("backbone", f"{manifest.backbone}, weights {escape(manifest.pretrained.source)}")
    some = ", ".join(manifest.classes[:3])
    table.add_row("classes", escape(f"{len(manifest.classes):,}: {some}, ..."))
    if imported.images:
        table.add_row("reference", f"{imported.images:,} images, {imported.labelled:,} of them labelled")
    else:
        table.add_row("reference", "none: the monitor has nothing to compare with; give --data FOLDER")
    if "accuracy" in manifest.metrics:
        found = manifest.metrics["accuracy"]
        table.add_row("accuracy", f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f}) on the labelled ones")
    console.out.print(table)
    if imported.live:
        console.out.print(f"It is live: [bold]perennial serve{named}[/] answers with it.")
    else:
        console.out.print(
            f"Another version is live. To change to this one: perennial models promote {manifest.version}{named}"
        )
