"""A real HTTP server that takes webhooks, for tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: In each receiver's URL; must never be printed.
TOKEN = "T000-B000-very-secret"


@dataclass
class Arrived:
    """One request: its headers (lower-case) and its body."""

    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def document(self) -> dict[str, Any]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found


@dataclass
class Receiver:
    """`answers` are given in turn, then 200; each is a status, or (status, headers, body)."""

    arrived: list[Arrived] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    before_answering: Callable[[], object] = lambda: None
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/services/{TOKEN}"

    @property
    def numbers(self) -> list[int]:
        """The `number` in the detail of each event that arrived."""
        return [each.document["event"]["detail"]["number"] for each in self.arrived]

    @contextmanager
    def listening(self) -> Iterator[Receiver]:
        server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        server.daemon_threads = True
        self.port = server.server_port
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.arrived.append(Arrived({key.lower(): value for key, value in self.headers.items()}, body))
                receiver.before_answering()
                answer = receiver.answers.pop(0) if receiver.answers else 200
                status, headers, said = answer if isinstance(answer, tuple) else (answer, {}, b"ok")
                try:
                    self.send_response(status)
                    for key, value in headers.items():
                        self.send_header(key, value)
                    self.end_headers()
                    self.wfile.write(said)
                except OSError:
                    self.close_connection = True  # the sender does not wait or read on: it is bound to

            def log_message(self, *_: object) -> None:
                """Tests are quiet."""

        return Handler
