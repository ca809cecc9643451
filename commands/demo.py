"""`perennial demo`: the whole loop on real handwriting, with a real server and real requests."""

from __future__ import annotations

from typing import Annotated

import typer

from commands import console


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server running at the end.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the demo's server; 0 takes a free one.")] = 0,
    json: console.Json = False,
) -> None:
    """Show the **whole loop** on real handwriting: train, serve, watch, drift, retrain, swap, refuse, roll back.

    Everything is real: scikit-learn's digits, the built-in checkpoint, a server process, HTTP requests, the ledger.
    It takes about two minutes on two cores and exits non-zero if any step did not happen.

        perennial demo --keep          # and leave the server running, to look around
    """
    # The story's own imports (an HTTP client, images, the ledger) are not worth waiting for in `perennial --help`.
    from commands.demo_story import run

    run(port=port, keep=keep, quiet=json)
