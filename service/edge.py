"""The outermost layer of the service, around all of BentoML: everything that can be said of a request by its header.

In this order it refuses what is too long (414, 431), answers unknown paths (404) and preflights, turns away pages of
other origins and callers without the key they need (401, 403), all before a byte of the body is read. It turns every
error that is not a problem document yet into one, gives every answer an `X-Request-ID`, counts every request, and
writes the access log.
BentoML's own metrics are shown the route's pattern instead of the path, because they make a time series of every path
they see.
"""

from __future__ import annotations

import hashlib
import random
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perennial.errors import Forbidden, HeadersTooLarge, PerennialError, UrlTooLong
from perennial.settings_sections import ServeSettings
from service import keys, metrics, problems, trace
from service.access_log import AccessLog, Line
from service.keys import Keyring

_PATH: Final = "perennial.path"
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
REQUEST_ID_HEADER: Final = b"x-request-id"
_READING: Final = ("GET", "HEAD", "OPTIONS")
_OTHER_ORIGIN: Final = "pages of this origin may not call the service: it is not in serve.cors_origins"
_ELSEWHERE: Final = (b"cross-site", b"same-site")

RawHeaders = list[tuple[bytes, bytes]]

# Ids must differ, not be unguessable; a call on the system for each costs more than the rest of it.
_random: Final = random.Random(secrets.randbits(128))  # noqa: S311

_PREFLIGHT: Final[RawHeaders] = [
    (b"access-control-allow-methods", b"GET, POST"),
    (
        b"access-control-allow-headers",
        b"Authorization, Content-Type, X-API-Key, X-Request-ID, X-Source, Traceparent, Tracestate",
    ),
    (b"access-control-max-age", b"600"),
]
_VARY: Final = (b"vary", b"Origin")
_EXPOSED: Final = (b"access-control-expose-headers", b"X-Request-ID, Retry-After, WWW-Authenticate")


@dataclass(frozen=True, slots=True)
class Page:
    """A document that never changes while the server runs. With an `etag`, who has it already is not sent it again."""

    media_type: str
    body: bytes
    etag: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()


def etag_of(body: bytes) -> bytes:
    """An entity tag that another body does not have."""
    return b'"' + hashlib.sha256(body).hexdigest()[:32].encode() + b'"'


class Edge:
    """ASGI application around BentoML's.

    Args:
        app: everything behind the Edge.
        routes: all there are in it; a path that none of them has is answered with 404.
        serve: limits, keys, origins and the access log.
        pages: paths that the Edge answers itself.
        direct: by method and path, applications that are called without what BentoML lays around its own: the metrics,
            traces and routing of one request cost as much as a tenth of its inference.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Iterable[BaseRoute],
        serve: ServeSettings,
        pages: Mapping[str, Page],
        direct: Mapping[tuple[str, str], ASGIApp],
    ) -> None:
        self._app = app
        self._direct = direct
        self._pages = pages
        self._fixed: set[str] = set(pages)
        self._patterns: list[tuple[re.Pattern[str], str]] = []
        self.methods: dict[str, set[str]] = {path: {"GET", "HEAD"} for path in pages}
        for route, path in _flattened(routes):
            self.methods.setdefault(path, set()).update(route.methods or ())
            if route.param_convertors:
                self._patterns.append((route.path_regex, path))
            else:
                self._fixed.add(path)
        self._max_url, self._max_headers, self._max_header_bytes = (
            serve.max_url,
            serve.max_headers,
            serve.max_header_bytes,
        )
        for _, path in direct:
            metrics.expect(path)
        self._keyring = Keyring(serve, frozenset(self.methods))
        self._cors: dict[bytes, RawHeaders] = {
            origin.encode(): [(b"access-control-allow-origin", origin.encode()), _EXPOSED, _VARY]
            for origin in serve.cors_origins
        }
        self._log = AccessLog(serve.access_log) if serve.access_log else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        headers = dict(scope["headers"])
        answer = _Answer(scope["method"], headers, send, self._cors_headers(headers))
        began = time.perf_counter()
        try:
            if self._log is not None:
                await self._logged(self._log, scope, headers, receive, answer)
            else:
                await self._answer(scope, headers, receive, answer)
        finally:
            metrics.answered(answer.route, answer.status, time.perf_counter() - began)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        try:
            await self._app(scope, receive, send)
        finally:
            if self._log is not None:
                self._log.close()

    async def _answer(self, scope: Scope, headers: keys.Headers, receive: Receive, answer: _Answer) -> None:
        try:
            route = answer.route = self._route(scope)
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers and self._cors:
                await answer.whole(204, self._preflight(headers), b"")
                return
            self._admit(scope, headers, route, answer)
            if route in self._pages:
                await self._page(scope["method"], route, headers, answer)
                return
            direct = self._direct.get((scope["method"], route))
            if direct is not None:
                await direct(scope, receive, answer.send)
                return
            if route == "/metrics":
                metrics.flushing.flush()
            inner = {**scope, "path": route, _PATH: scope["path"], keys.CALLER: answer.key}
            await self._app(inner, receive, answer.send)
        except PerennialError as error:
            await answer.refuse(error)
        except ClientDisconnect:
            return
        except Exception:  # noqa: BLE001 - the last layer: the client gets a problem whatever it was, the log the cause
            problems.logger.exception(
                "%s %s failed (request %s, trace %s)",
                scope["method"], scope["path"], answer.request_id.decode(), trace.trace_id_of(scope["headers"]),
            )  # fmt: skip
            await answer.refuse(problems.unexpected())

    async def _logged(
        self, log: AccessLog, scope: Scope, headers: keys.Headers, receive: Receive, answer: _Answer
    ) -> None:
        began = time.perf_counter()
        received = 0

        async def counting() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        try:
            await self._answer(scope, headers, counting, answer)
        finally:
            log.add(
                Line(
                    at=time.time(),
                    method=scope["method"],
                    route=answer.route,
                    status=answer.status,
                    bytes_in=received,
                    bytes_out=answer.bytes_out,
                    milliseconds=(time.perf_counter() - began) * 1000,
                    request_id=answer.request_id.decode(),
                    trace_id=trace.trace_id_of(scope["headers"]),
                    key=answer.key,
                    client=keys.address_of(scope),
                )
            )

    def _route(self, scope: Scope) -> str:
        """The pattern of the path, after what is too long."""
        raw: RawHeaders = scope["headers"]
        length = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
        if length > self._max_url:
            raise UrlTooLong(f"{length:,} bytes of path and query; at most {self._max_url:,} are accepted")
        if len(raw) > self._max_headers:
            raise HeadersTooLarge(f"{len(raw):,} header lines; at most {self._max_headers:,} are accepted")
        size = 0
        for name, value in raw:
            size += len(name) + len(value)
        if size > self._max_header_bytes:
            raise HeadersTooLarge(f"{size:,} bytes of header; at most {self._max_header_bytes:,} are accepted")
        path: str = scope["path"]
        if path in self._fixed:
            return path
        for pattern, route in self._patterns:
            if pattern.match(path):
                return route
        raise problems.of_status(404, path, scope["method"])

    def _admit(self, scope: Scope, headers: keys.Headers, route: str, answer: _Answer) -> None:
        if scope["method"] == "OPTIONS":  # nothing does anything on it, and browsers send no key with it
            return
        # A browser lets any page send a POST without asking first; it says so itself, and no page can change that.
        elsewhere = headers.get(b"sec-fetch-site") in _ELSEWHERE and headers.get(b"origin") not in self._cors
        if elsewhere and scope["method"] not in _READING:
            raise Forbidden(_OTHER_ORIGIN)
        answer.key = self._keyring.admit(scope, headers, route)

    def _cors_headers(self, headers: keys.Headers) -> RawHeaders:
        if not self._cors:
            return []
        return self._cors.get(headers.get(b"origin", b""), [_VARY])

    def _preflight(self, headers: keys.Headers) -> RawHeaders:
        if headers.get(b"origin") not in self._cors:
            raise Forbidden(_OTHER_ORIGIN)
        return _PREFLIGHT

    async def _page(self, method: str, path: str, headers: keys.Headers, answer: _Answer) -> None:
        if method not in ("GET", "HEAD"):
            await answer.refuse(problems.of_status(405, path, method), [(b"allow", b"GET, HEAD")])
            return
        page = self._pages[path]
        extra = [*page.headers, (b"etag", page.etag)] if page.etag else [*page.headers]
        if page.etag and headers.get(b"if-none-match") == page.etag:
            await answer.whole(304, extra, b"")
            return
        await answer.whole(200, [(b"content-type", page.media_type.encode()), *extra], page.body)


class RealPath:
    """ASGI middleware inside BentoML's metrics: gives the request its real path back, for routing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _PATH in scope:
            scope["path"] = scope[_PATH]
        await self._app(scope, receive, send)


class _Answer:
    """One answer on its way out, and what the access log says of it."""

    __slots__ = (
        "_begun",
        "_extra",
        "_method",
        "_replaced",
        "_send",
        "bytes_out",
        "key",
        "request_id",
        "route",
        "status",
    )

    def __init__(self, method: str, headers: keys.Headers, send: Send, cors: RawHeaders) -> None:
        self.request_id = request_id_of(headers.get(REQUEST_ID_HEADER))
        self._extra = [(REQUEST_ID_HEADER, self.request_id), *cors]
        self._method = method
        self._send = send
        self._begun = self._replaced = False
        self.status: int | None = None
        self.bytes_out = 0
        self.route: str | None = None
        self.key: str | None = None

    async def send(self, message: Message) -> None:
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            status, headers = message["status"], message["headers"]
            if status >= 400 and not _is_problem(headers):
                # BentoML's and Starlette's own errors.
                self._replaced = True
                allowed = [(name, value) for name, value in headers if name == b"allow"]
                await self.refuse(problems.of_status(status, self.route or "", self._method), allowed)
                return
            self._begun = True
            self.status = status
            message = {**message, "headers": [*headers, *self._extra]}
        elif self._method != "HEAD":
            self.bytes_out += len(message.get("body", b""))
        await self._send(message)

    async def whole(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """Answer at once."""
        length = [(b"content-length", str(len(body)).encode())] if status not in (204, 304) else []
        await self.send({"type": "http.response.start", "status": status, "headers": [*length, *headers]})
        await self.send({"type": "http.response.body", "body": body})

    async def refuse(self, error: PerennialError, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Answer with a problem, unless an answer has begun."""
        if self._begun:
            return
        response = problems.response(error)
        self._replaced = False
        start = {"type": "http.response.start", "status": error.status, "headers": [*response.raw_headers, *headers]}
        await self.send(start)
        await self.send({"type": "http.response.body", "body": bytes(response.body)})
        self._replaced = True


def request_id_of(sent: bytes | None) -> bytes:
    """The id that the client sent, if it is one, else a new one."""
    return sent if sent and _REQUEST_ID.fullmatch(sent) else b"%032x" % _random.getrandbits(128)


def _is_problem(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name == b"content-type" and value.startswith(problems.MEDIA_TYPE.encode()) for name, value in headers)


def _flattened(routes: Iterable[BaseRoute], prefix: str = "") -> Iterator[tuple[Route, str]]:
    """Every route with its whole path. Mounts of routes are looked into; other mounts are left out."""
    for route in routes:
        if isinstance(route, Route):
            yield route, prefix + route.path
        elif isinstance(route, Mount):
            inner: list[Any] = route.routes or []
            yield from _flattened(inner, prefix + route.path)
