"""Open-loop load: requests start when they are due, whether or not earlier ones are answered.

A closed loop waits with its next request until the server has recovered, and so does not see the queue that real
users would stand in. Here arrivals are Poisson at a given rate, and a request's latency counts from the moment it was
*due*, so that waiting for a connection, or for this program, counts too (Tene, "How NOT to measure latency").

It runs in a process of its own, on raw asyncio connections that are kept open, and reports what it costs: its
processor time a request and how late it sent (an idle connection was there, but this program was not).

    python -m benchmarks.serving.open_loop URL --listing FILE --content-type image/jpeg --rate 300 --seconds 10
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlsplit

import numpy as np
import uvloop

from benchmarks.serving.material import Bodies

#: Open connections at most; more requests than these wait here, which counts as latency.
MOST_CONNECTIONS: Final = 512
_PATIENCE: Final = 60.0
_QUANTILES: Final = (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))


@dataclass
class Tally:
    """Seconds, one entry a request: `latency` from when it was due to its answer; `lateness` from when it was due (or
    a connection became free) until it was sent."""

    latency: list[float] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)
    refused: int = 0
    broken: int = 0


@dataclass(frozen=True)
class Due:
    """A request and the loop's time at which it should be sent."""

    at: float
    data: bytes


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, one request at a time."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.transport: asyncio.Transport | None = None
        self.current: Due | None = None
        self.received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own class, of which asyncio knows nothing

    def send(self, due: Due) -> None:
        assert self.transport is not None
        self.current = due
        self.received.clear()
        self.transport.write(due.data)

    def data_received(self, data: bytes) -> None:
        self.received += data
        status = status_of(self.received)
        if status is not None and self.current is not None:
            due, self.current = self.current, None
            self.generator.answered(self, due, status)

    def connection_lost(self, error: Exception | None) -> None:
        self.generator.lost(self)


def status_of(received: bytes | bytearray) -> int | None:
    """The status of an HTTP/1.1 answer once all of it is here, else None; it must state its Content-Length."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(received[:end]).lower()
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        raise SystemExit(f"an answer without Content-Length, which this load does not read: {head[:200]!r}")
    length = int(head[at + 17 :].split(b"\r\n", 1)[0])
    return int(head[9:12]) if len(received) >= end + 4 + length else None


class Generator:
    """Sends a schedule of requests and keeps the tally."""

    def __init__(self, host: str, port: int) -> None:
        self.tally = Tally()
        self._address = host, port
        self._idle: list[Connection] = []
        self._waiting: deque[Due] = deque()
        self._connections: set[Connection] = set()
        self._left = 0
        self._done = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()

    async def run(self, schedule: list[tuple[float, bytes]], connections: int) -> None:
        """Send each body at its time (seconds from now), and wait for the last answer."""
        await asyncio.gather(*(self._connect() for _ in range(connections)))
        start = self._loop.time() + 0.1
        self._left = len(schedule)
        for offset, data in schedule:
            at = start + offset
            if (pause := at - self._loop.time()) > 0:
                await asyncio.sleep(pause)
            self._submit(Due(at, data))
        async with asyncio.timeout(_PATIENCE):
            await self._done.wait()
        await asyncio.gather(*self._opening)
        for connection in self._connections:
            cast(asyncio.Transport, connection.transport).close()
        await asyncio.sleep(0)  # the loop closes them in its next turn

    def answered(self, connection: Connection, due: Due, status: int) -> None:
        self.tally.latency.append(self._loop.time() - due.at)
        self.tally.refused += status != 200
        self._settle()
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.current is not None:
            self.tally.broken += 1
            self._settle()

    def _submit(self, due: Due) -> None:
        if self._idle:
            self.tally.lateness.append(self._loop.time() - due.at)
            self._idle.pop().send(due)
            return
        self._waiting.append(due)
        if len(self._connections) + len(self._opening) < MOST_CONNECTIONS:
            task = self._loop.create_task(self._connect())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _connect(self) -> None:
        _, connection = await self._loop.create_connection(lambda: Connection(self), *self._address)
        self._connections.add(connection)
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def _settle(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._done.set()


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of a Poisson process of `rate` a second, from 0 to `seconds`."""
    random = np.random.default_rng(seed)
    gaps = random.exponential(1 / rate, int(rate * seconds + 10 * np.sqrt(rate * seconds) + 10))
    times = np.cumsum(gaps)
    return [float(time) for time in times[times < seconds]]


def requests(url: str, bodies: Bodies) -> list[bytes]:
    """Each body as the bytes of a whole request."""
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {bodies.content_type}\r\n"
    return [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies.read()]


def report(tally: Tally, cpu: float) -> dict[str, float]:
    """Milliseconds, and counts of what was not answered well."""
    latency, lateness = np.array(tally.latency or [np.nan]), np.array(tally.lateness or [0.0])
    return {
        **{name: 1000 * float(np.quantile(latency, share)) for name, share in _QUANTILES},
        "requests": len(tally.latency),
        "errors": tally.refused + tally.broken,
        "late_p99": 1000 * float(np.quantile(lateness, 0.99)),
        "cpu": 1000 * cpu / max(1, len(tally.latency)),
    }


async def _load(chosen: argparse.Namespace) -> dict[str, float]:
    ready = requests(chosen.url, Bodies(chosen.listing, chosen.content_type))
    times = arrivals(chosen.rate, chosen.seconds, chosen.seed)
    schedule = [(time, ready[number % len(ready)]) for number, time in enumerate(times)]
    parts = urlsplit(chosen.url)
    generator = Generator(str(parts.hostname), int(parts.port or 80))
    gc.collect()
    gc.disable()  # its pauses would count as the server's latency
    before = resource.getrusage(resource.RUSAGE_SELF)
    await generator.run(schedule, connections=32)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return report(generator.tally, cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--listing", type=Path, required=True, help="a file that names bodies, one a line")
    parser.add_argument("--content-type", required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(uvloop.run(_load(parser.parse_args()))))


if __name__ == "__main__":
    main()
