"""Evidently's own web interface over the workspace: to read only, offline, without telemetry."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monitoring.quiet_evidently import quietly
from perennial.errors import WorkspaceUnavailable

with quietly():
    from evidently._pydantic_compat import SecretStr
    from evidently.core.serialization import SnapshotModel
    from evidently.ui.service.app import create_app
    from evidently.ui.service.base import Project
    from evidently.ui.service.components.dashboard import DashboardComponent
    from evidently.ui.service.components.security import TokenSecurityComponent
    from evidently.ui.service.components.storage import LocalStorageComponent
    from evidently.ui.service.components.telemetry import TelemetryComponent
    from evidently.ui.service.local_service import LocalConfig
    from evidently.ui.service.storage.common import NoopAuthManager
    from evidently.ui.service.storage.local import LocalState, create_local_project_manager, start_workspace_watchdog

logger = logging.getLogger(__name__)

#: Seconds that open connections have to end once the server is told to stop.
_LAST_WORDS: Final = 3
#: What a browser may load for these pages: from here alone. Evidently's own pages want no more; those that describe its
#: API would take scripts and fonts from elsewhere.
_POLICY: Final = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"


class _WorkspaceAtHand(LocalStorageComponent):  # type: ignore[misc]  # evidently has no types
    """Reads the workspace when the server starts. Evidently's own component does at the first request, where a run
    that cannot be read would be an answer of 500."""

    def project_manager_provider(self) -> Callable[..., Awaitable[Any]]:
        state = LocalState.load(self.path, None)
        manager = create_local_project_manager(self.path, autorefresh=False, auth=NoopAuthManager(), state=state)
        try:
            start_workspace_watchdog(self.path, state)
        except OSError as error:  # too many watches on this machine, or a file system that has none
            logger.warning("%s cannot be watched, so new checks show after a restart: %s", self.path, error)

        async def at_hand() -> Any:
            return manager

        return at_hand


def open_workspace(folder: Path, host: str) -> Any:
    """Evidently's app over the workspace in `folder`, with all of its runs read, as ASGI.

    Nothing can be changed through it, and its pages load nothing from elsewhere. Where `host` is a loopback address,
    requests must name this machine (against DNS rebinding).

    Raises:
        WorkspaceUnavailable: a file in it cannot be read.
    """
    config = LocalConfig(
        # Whoever changes something has to send a secret that nobody knows.
        security=TokenSecurityComponent(token=SecretStr(secrets.token_urlsafe())),
        storage=_WorkspaceAtHand(path=str(folder)),
        dashboard=DashboardComponent(path=str(folder)),
        telemetry=TelemetryComponent(enabled=False),
    )
    try:
        # Evidently prints what it is made of.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), quietly():
            app = create_app(config)
    except Exception as error:  # Evidently raises its own kinds
        why = _unreadable(folder) or f"{folder} cannot be read: {error}"
        raise WorkspaceUnavailable(why) from error
    app = _from_here_alone(app)
    if not ipaddress.ip_address(host).is_loopback:
        return app
    return TrustedHostMiddleware(app, allowed_hosts=["localhost", "127.0.0.1", "[::1]", host], www_redirect=False)


def _from_here_alone(app: ASGIApp) -> ASGIApp:
    """The same app, with `_POLICY` on each answer."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"content-security-policy", _POLICY)]
            await send(message)

        await app(scope, receive, send_on)

    return answer


def serve(app: Any, listener: socket.socket) -> None:
    """Answer on `listener` until SIGINT or SIGTERM."""
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=_LAST_WORDS)
    )

    def stop(*_: Any) -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        # The server takes both while it runs and, once it has ended, raises what it got again: that is to do nothing.
        signal.signal(number, stop)
    server.run(sockets=[listener])


def _unreadable(folder: Path) -> str | None:
    """Which file of the workspace cannot be read, and what to do about it; None if all can."""
    for pattern, kind in (("*/metadata.json", Project), ("*/snapshots/*.json", SnapshotModel)):
        for path in sorted(folder.glob(pattern)):
            try:
                kind.parse_obj(json.loads(path.read_text("utf-8")))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this file
                return f"{path} cannot be read ({type(error).__name__}); delete it, and start again"
    return None
