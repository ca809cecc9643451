"""`perennial prune`: removes the predictions and captured images that are not to be kept any longer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from commands import console

_NOTHING: Final = 4
_ROWS: Final = (
    ("predictions", ("rows",), "older than retention.rows_days, or more than rows_max"),
    ("counts of rejected images", ("rejections",), "older than what is kept of the predictions"),
    ("counts of predictions", ("traffic",), "older than what is kept of the predictions"),
    ("images, by age", ("images", "aged"), "last used longer ago than retention.images_days"),
    ("images, by size", ("images", "over_size"), "the longest unused, to come down to retention.images_bytes"),
    ("images, unnamed", ("images", "unnamed"), "named by no prediction that is left"),
    ("leftovers", ("leftovers",), "files that a crash left behind"),
    ("images kept", ("images", "kept"), ""),
)


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
    as_json: console.Json = False,
) -> None:
    """Remove what the settings under `[retention]` do not keep: old predictions, old captured images.

    For example:

        perennial prune --dry-run
        perennial prune

    Of the whole ledger and storage, whichever model's. Safe while the service and a retrain run; `perennial watch`
    does the same on a schedule. Exit code 4: there was nothing to do.
    """
    from perennial import retention
    from perennial.ledger import open_ledger
    from perennial.leftovers import Places
    from perennial.storage import Storage

    settings = console.settings_for()
    with console.progress() as progress:
        pruned = retention.prune(
            open_ledger(settings.ledger_url),
            Storage(settings.blobs_url),
            settings.retention,
            window=settings.monitor.window,
            dry_run=dry_run,
            places=Places(settings.home_path, Path(os.environ["BENTOML_HOME"])),
            progress=progress,
        )
    if as_json:
        console.print_json(pruned.document())
    else:
        _show(pruned.document())
    raise typer.Exit(_NOTHING if pruned.nothing else 0)


def _show(document: dict[str, Any]) -> None:
    from rich.filesize import decimal
    from rich.table import Table

    table = Table("would go" if document["dry_run"] else "gone", "count", "size", "why", box=None)
    for title, path, why in _ROWS:
        tally = document
        for key in path:
            tally = tally[key]
        if tally["count"] or title == "images kept":
            table.add_row(title, f"{tally['count']:,}", decimal(tally["bytes"]), why)
    console.out.print(table)
