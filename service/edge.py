"""The outermost layer of the service, around all of BentoML.

It answers unknown paths itself and shows BentoML's own metrics the route's pattern instead of the path, because they
make a time series of every path they see. It turns every error that is not a problem document yet into one, and gives
every answer an `X-Request-ID`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from typing import Any, Final

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import problems

_PATH: Final = "perennial.path"
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_HEADER: Final = b"x-request-id"


class Edge:
    """ASGI application around BentoML's. `routes` are all there are."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._fixed: set[str] = set()
        self._patterns: list[tuple[re.Pattern[str], str]] = []
        for path, pattern in _flattened(routes):
            if pattern is None:
                self._fixed.add(path)
            else:
                self._patterns.append((pattern, path))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, receive, send)
        route = self._route(scope["path"])
        if route is None:
            await answer.fail(404)
            return
        try:
            await self._app({**scope, "path": route, _PATH: scope["path"]}, receive, answer.send)
        except ClientDisconnect:
            return
        except Exception:  # noqa: BLE001 - the last layer: the client gets a problem whatever it was, the log the cause
            problems.logger.exception("%s %s failed", scope["method"], scope["path"])
            await answer.fail(500)

    def _route(self, path: str) -> str | None:
        if path in self._fixed:
            return path
        return next((route for pattern, route in self._patterns if pattern.match(path)), None)


class RealPath:
    """ASGI middleware inside BentoML's metrics: gives the request its real path back, for routing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _PATH in scope:
            scope["path"] = scope[_PATH]
        await self._app(scope, receive, send)


class _Answer:
    """One answer on its way out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        sent = next((value for key, value in scope["headers"] if key == _HEADER), b"")
        self._request_id = sent if _REQUEST_ID.fullmatch(sent) else secrets.token_hex(16).encode()
        self._begun = False
        self._replaced = False

    async def send(self, message: Message) -> None:
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message["headers"]))
            if message["status"] >= 400 and not headers.get("content-type", "").startswith(problems.MEDIA_TYPE):
                self._replaced = True
                await self.fail(message["status"], {"Allow": headers["allow"]} if "allow" in headers else {})
                return
            self._begun = True
            message = {**message, "headers": [*message["headers"], (_HEADER, self._request_id)]}
        await self._send(message)

    async def fail(self, status: int, headers: dict[str, str] | None = None) -> None:
        """Answer with the problem that a bare status means, unless an answer has begun."""
        if self._begun:
            return
        self._begun = self._replaced = True
        error = problems.of_status(status, self._scope["path"], self._scope["method"])
        response = problems.response(error, {**(headers or {}), _HEADER.decode(): self._request_id.decode()})
        await response(self._scope, self._receive, self._send)


def _flattened(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, re.Pattern[str] | None]]:
    """Every route as its path, and a pattern where it has parameters. Mounts of routes are looked into."""
    for route in routes:
        if isinstance(route, Route):
            yield route.path, route.path_regex if route.param_convertors else None
        elif isinstance(route, Mount):
            inner: list[Any] = route.routes
            if inner:
                yield from ((route.path + path, pattern) for path, pattern in _flattened(inner))
            else:
                yield route.path, re.compile(re.escape(route.path) + "/")
