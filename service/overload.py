"""The refusal of an image when the queue is full, made in advance.

Under overload there are more refusals than answers, on the cores that the answers need. So `POST /v1/predict` is
refused as soon as its header is there, without an ASGI call; its body is thrown away as it arrives.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from perennial.errors import Overloaded
from service import metrics, problems
from service.edge import REQUEST_ID_HEADER, request_id_of
from service.predict import Slots
from service.routes import PREDICT

_METHOD: Final = PREDICT[0].encode()
_PATH: Final = PREDICT[1].encode()


class EarlyRefusal:
    """Called with the beginning of every request."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        error = Overloaded(slots.full_text)
        body = json.dumps(problems.plain_document(error)).encode()
        status = HTTPStatus(error.status)
        self._slug, self._status = error.slug, error.status
        self._head = (
            (
                f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: {problems.MEDIA_TYPE}\r\n"
                f"content-length: {len(body)}\r\nretry-after: {error.retry_after_seconds}\r\n"
            ).encode()
            + REQUEST_ID_HEADER
            + b": "
        )
        self._let_in = 0
        self._close = b"\r\nconnection: close"
        self._body = b"\r\n\r\n" + body

    def __call__(
        self, method: bytes, url: bytes, headers: Iterable[tuple[bytes, bytes]], keep_alive: bool
    ) -> bytes | None:
        """The whole answer, or None where the request has to be looked at."""
        if method != _METHOD or not url.startswith(_PATH) or url[len(_PATH) : len(_PATH) + 1] not in (b"", b"?"):
            return None
        if self._slots.free() > self._let_in:
            self._let_in_one()
            return None
        sent = None
        for name, value in headers:
            if name == b"origin":  # a browser wants more headers to be shown the answer
                return None
            if name == REQUEST_ID_HEADER:
                sent = value
        metrics.rejected.add((self._slug,))
        metrics.requests.add((PREDICT[1], self._status))
        return b"".join((self._head, request_id_of(sent), b"" if keep_alive else self._close, self._body))

    def _let_in_one(self) -> None:
        # It takes its slot when its task runs. Until then others arrive, and would each find the same slot free.
        if self._let_in == 0:
            asyncio.get_running_loop().call_soon(self._all_in)
        self._let_in += 1

    def _all_in(self) -> None:
        self._let_in = 0
