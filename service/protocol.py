"""HTTP/1.1 as uvicorn speaks it with httptools, with a bound on what arrives before a request begins.

httptools sets none: header lines, trailers or chunk extensions without an end would fill the memory before any
application saw the request. And what cannot be parsed is answered with a problem document like every other error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, ClassVar, Final

from uvicorn import config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from perennial.errors import HeadersTooLarge, MalformedRequest, PerennialError
from service import metrics, problems

# A client could fill the log with these; they are counted in `perennial_rejected_total` instead.
_CLIENTS_FAULTS: Final = ("Invalid HTTP request received.", "Unsupported upgrade request.")
Early = Callable[[bytes, bytes, Iterable[tuple[bytes, bytes]], bool], bytes | None]

_CONTINUE: Final = b"HTTP/1.1 100"


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's own protocol, bounded.

    `most_silent`: the most bytes a client may send without completing a header or adding to a body.
    """

    most_silent: ClassVar[int] = 2**16
    #: May answer a request by its beginning alone: its method, URL, header, and whether the connection is kept.
    early: ClassVar[Early | None] = None

    _silent = 0
    _progress = False
    _in_body = False

    def data_received(self, data: bytes) -> None:
        self._progress = False
        super().data_received(data)
        if self._progress:
            self._silent = 0
            return
        self._silent += len(data)
        if self._silent > self.most_silent and not self.transport.is_closing():
            self._refuse(HeadersTooLarge(f"more than {self.most_silent:,} bytes of header and no end"))

    def on_message_begin(self) -> None:
        self._in_body = False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # a trailer must not change the header that the service has already judged
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._progress = self._in_body = True
        if self._answered_early():
            return
        super().on_headers_complete()
        if self.cycle is not None and self.scope["method"] != "HEAD":  # which has no body to join
            self.cycle.transport = _Joined(self.transport)  # type: ignore[assignment]

    def _answered_early(self) -> bool:
        early = BoundedProtocol.early
        if early is None or not (self.cycle is None or self.cycle.response_complete):
            return False
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        answer = early(self.parser.get_method(), self.url, self.headers, keep_alive)
        if answer is None:
            return False
        self.cycle = _ANSWERED  # type: ignore[assignment]  # what comes of the body is thrown away
        self.transport.write(answer)
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()
        return True

    def on_body(self, body: bytes) -> None:
        self._progress = True
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        self._refuse(MalformedRequest("this is not HTTP/1.1 that can be read"))

    def _refuse(self, error: PerennialError) -> None:
        body = json.dumps(problems.document(error)).encode()
        metrics.requests.add((metrics.OTHER, error.status))
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: {problems.MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {secrets.token_hex(16)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()


class _Answered:
    """Stands for a request that has its answer already."""

    response_complete = True

    def __init__(self) -> None:
        self.message_event = asyncio.Event()


_ANSWERED: Final = _Answered()


class _Joined:
    """Sends an answer's head together with the beginning of its body: uvicorn writes them one after the other, and the
    client would be woken twice."""

    __slots__ = ("_head", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if self._head is None and data.startswith(b"HTTP/1.1 ") and not data.startswith(_CONTINUE):
            self._head = data
            return
        if self._head:
            data, self._head = self._head + data, b""
        self._transport.write(data)

    def close(self) -> None:
        if self._head:
            self._transport.write(self._head)
            self._head = b""
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def install(most_silent: int) -> None:
    """Make uvicorn, which BentoML starts by itself, speak this protocol in this process."""
    BoundedProtocol.most_silent = most_silent
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.msg not in _CLIENTS_FAULTS)
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedProtocol.__name__}"
