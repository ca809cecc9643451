"""`perennial serve`: the HTTP service."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands import console
from perennial.errors import InvalidSettings, NoLiveModel

if TYPE_CHECKING:
    from perennial.settings import Settings
    from perennial.settings_sections import ServeSettings


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; the setting `serve.host` unless given.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen on; the setting `serve.port` unless given.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Server processes; the setting `serve.workers` unless given.")
    ] = None,
    name: console.Name = None,
) -> None:
    """Answer predictions over HTTP with the live model; a newly deployed one is swapped in while it serves.

    For example:

        perennial serve
        perennial serve --host 0.0.0.0 --port 8080 --workers 2

    Starts without a model too, and is ready as soon as one is deployed. Ctrl-C or SIGTERM stops it.
    """
    settings = console.settings_for(name, serve={"host": host, "port": port, "workers": workers})
    address = _address(settings)
    _refuse_other_systems()
    _refuse_shadow(Path.cwd())
    _refuse_taken(address, settings.serve.port)
    _refuse_unwritable(settings.serve.access_log)
    _announce(settings, address)
    os.environ.update(
        # The workers load the settings themselves; this is what the options changed.
        PERENNIAL_NAME=settings.name,
        PERENNIAL_SERVE__HOST=address,
        PERENNIAL_SERVE__PORT=str(settings.serve.port),
        PERENNIAL_SERVE__WORKERS=str(settings.serve.workers),
    )
    if console.invocation.config is not None:
        os.environ["PERENNIAL_CONFIG"] = str(console.invocation.config.absolute())
    _run(address, settings.serve)


def _run(address: str, serve: ServeSettings) -> None:
    # As `bentoml serve` does, without importing here what only the workers need.
    with console.collecting_nothing():
        from _bentoml_impl.server import serve_http
        from bentoml._internal.configuration.containers import BentoMLContainer
        from bentoml._internal.log import configure_server_logging

        from service.outline import outline

    # BentoML empties its metrics folder when a server starts, another server's too; so each server has its own.
    folder = Path(BentoMLContainer.prometheus_multiproc_dir.get()) / f"{address}-{serve.port}".replace(":", "_")
    BentoMLContainer.prometheus_multiproc_dir.set(str(folder))
    configure_server_logging()
    service = outline(serve)
    service.inject_config()
    serve_http(service, host=address, port=serve.port, timeout_graceful_shutdown=serve.drain_requests)


def _address(settings: Settings) -> str:
    # BentoML takes addresses only.
    host = settings.serve.host
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise InvalidSettings(f"serve.host {host!r} is not an address of this machine: {error}") from error


def _refuse_other_systems() -> None:
    if not hasattr(os, "memfd_create"):
        raise InvalidSettings(
            "serving needs Linux, for memory that several processes share; use the container image here"
        )


def _refuse_taken(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise InvalidSettings(f"cannot listen on {address} port {port}: {error.strerror}; try --port") from error


def _refuse_unwritable(access_log: str) -> None:
    if access_log in ("", "-"):
        return
    try:
        os.close(os.open(access_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640))
    except OSError as error:
        raise InvalidSettings(f"serve.access_log {access_log!r} cannot be written: {error.strerror}") from error


def _refuse_shadow(folder: Path) -> None:
    # The workers look for modules in the current folder first.
    for package in ("service", "perennial"):
        ours = Path(str(sys.modules["perennial"].__file__)).parents[1]
        found = [path for path in (folder / f"{package}.py", folder / package / "__init__.py") if path.exists()]
        if found and not folder.samefile(ours):
            raise InvalidSettings(f"{found[0]} would be loaded instead of Perennial's own; start in another folder")


def _announce(settings: Settings, address: str) -> None:
    with console.collecting_nothing():
        from perennial.ledger import deployments, open_ledger

    engine = open_ledger(settings.ledger_url)  # migrates it once, before the workers open it
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(address, f"[{address}]" if ":" in address else address)  # noqa: S104
    url = f"http://{shown}:{settings.serve.port}"
    try:
        live = deployments.live(engine, settings.name)
        console.out.print(f"Serving [bold]{settings.name}[/], version {live.version}, at {url}")
    except NoLiveModel:
        console.out.print(f"Serving [bold]{settings.name}[/] at {url}")
        console.out.print(
            f"No model is live yet, so predictions are answered with 503. In another terminal: "
            f"perennial train DATA --name {settings.name}",
            markup=False,
        )
    finally:
        engine.dispose()
    console.out.print(f"    curl --data-binary @photo.jpg {url}/v1/predict", markup=False)
    console.out.print(f"    {url}/ops in a browser: how it does, and labels", markup=False)
    sys.stdout.flush()
