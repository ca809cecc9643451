"""`perennial ui`: Evidently's own web interface over the checks of this machine."""

from __future__ import annotations

import ipaddress
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands import console
from perennial.errors import InvalidParameter, NothingToDo

if TYPE_CHECKING:
    from perennial.settings import Settings


def ui(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 3002,
) -> None:
    """Show the checks over time in a browser: verdicts, accuracy, drifted columns, each check's report.

    For example:

        perennial ui
        perennial ui --port 8090

    This is Evidently's own interface over the workspace that `perennial monitor` and `perennial watch` fill on this
    machine (`evidently` in `home`): a project for each model, a run for each of the newest `monitor.keep_reports`
    checks in which something was tested. New checks show when the page is loaded again.

    It only reads, asks for no password and loads nothing from elsewhere. To see it from another machine:
    `ssh -L 3002:127.0.0.1:3002 HOST`. Ctrl-C or SIGTERM ends it.
    """
    settings = console.settings_for()
    folder = settings.workspace_path
    runs = _runs(settings, folder)
    with _listener(host, port) as listener:
        console.err.print(f"reading {runs} run{'' if runs == 1 else 's'} in {folder}", markup=False)
        from monitoring.workspace_server import open_workspace, serve

        address = str(listener.getsockname()[0])
        app = open_workspace(folder, address)
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(address, f"[{address}]" if ":" in address else address)  # noqa: S104
        console.out.print(f"Evidently's interface to the checks: http://{shown}:{port}  (Ctrl-C ends it)")
        sys.stdout.flush()
        if not ipaddress.ip_address(address).is_loopback:
            console.err.print(
                f"whoever reaches {address} port {port} can read the checks: no password is asked", markup=False
            )
        serve(app, listener)


def _runs(settings: Settings, folder: Path) -> int:
    runs = sum(1 for _ in folder.glob("*/snapshots/*.json"))
    if runs:
        return runs
    if not settings.monitor.workspace:
        raise NothingToDo(
            f"there is no run in {folder}, and checks add none: set monitor.workspace to true, then perennial monitor"
        )
    raise NothingToDo(
        f"there is no run in {folder} yet; each check on this machine adds one: perennial monitor "
        f"(it tests once there are monitor.min_rows = {settings.monitor.min_rows} predictions)"
    )


def _listener(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]
        raise InvalidParameter(f"cannot listen on {host} port {port}: {why}; try --port") from error
