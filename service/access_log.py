"""The access log: one line of JSON for every request, written beside the requests and never in their way.

A request only appends to a bounded queue in memory; a thread writes what has gathered, many lines at a time. If the
disk or the reader of the pipe cannot keep up, lines are dropped and counted, and answers stay as fast as they were.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import Final, NamedTuple

from service import metrics
from service.problems import logger

STDOUT: Final = "-"
MOST_WAITING: Final = 16_384  # lines
_FLUSH_SECONDS: Final = 0.1
_CLOSE_SECONDS: Final = 2.0
_WARN_SECONDS: Final = 60.0


class Line(NamedTuple):
    """One request. `at`: seconds since 1970 when it ended; `route`: the path's pattern, None for an unknown path;
    `status`: None if the client left before an answer began; `milliseconds`: until the last byte was sent."""

    at: float
    method: str
    route: str | None
    status: int | None
    bytes_in: int
    bytes_out: int
    milliseconds: float
    request_id: str
    trace_id: str | None
    key: str | None
    client: str

    def text(self) -> str:
        document = self._asdict()
        document["at"] = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds")
        document["milliseconds"] = round(self.milliseconds, 3)
        return json.dumps(document)


class AccessLog:
    """Writes lines to `target`: a file, or `-` for standard output.

    A file that was renamed or removed is opened anew, so logrotate needs no `copytruncate`. Every batch is one append,
    so several workers can share a file.
    """

    def __init__(self, target: str, most_waiting: int = MOST_WAITING) -> None:
        self._target = target
        self._most = most_waiting
        self._waiting: deque[Line] = deque()
        self._file: int | None = None
        self._warned_at = float("-inf")
        self._ending = threading.Event()
        self._writer = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._writer.start()

    def add(self, line: Line) -> None:
        """Never waits: a line that finds the queue full is dropped."""
        if len(self._waiting) >= self._most:
            metrics.access_log_dropped.inc()
        else:
            self._waiting.append(line)

    def close(self) -> None:
        """Write what waits, for two seconds at most."""
        self._ending.set()
        self._writer.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._ending.wait(_FLUSH_SECONDS):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not lines:
            return
        data = "".join(f"{line.text()}\n" for line in lines).encode()
        try:
            descriptor = self._open()
            while data:
                data = data[os.write(descriptor, data) :]
        except OSError as error:
            metrics.access_log_dropped.inc(len(lines))
            if time.monotonic() - self._warned_at > _WARN_SECONDS:
                self._warned_at = time.monotonic()
                logger.warning("the access log cannot be written: %s", error)

    def _open(self) -> int:
        if self._target == STDOUT:
            return 1
        if self._file is not None and not self._moved(self._file):
            return self._file
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._file = os.open(self._target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        return self._file

    def _moved(self, descriptor: int) -> bool:
        try:
            there = os.stat(self._target)
        except FileNotFoundError:
            return True
        here = os.fstat(descriptor)
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)
