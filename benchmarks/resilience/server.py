"""A real server and clients of it, for the resilience benchmark."""

from __future__ import annotations

import csv
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import psutil

from benchmarks.serving.material import environment
from benchmarks.serving.summary import processor

IMAGE: Final = "640x480"
_CLIENTS: Final = 8
_START_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Figure:
    experiment: str
    metric: str
    value: float
    unit: str


def write(figures: Sequence[Figure], out: Path) -> None:
    """As CSV, with the machine in a first line."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# hardware: {processor()}, {os.cpu_count()} cores; load average {os.getloadavg()[2]:.1f}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["experiment", "metric", "value", "unit"])
        writer.writerows([each.experiment, each.metric, f"{each.value:.4f}", each.unit] for each in figures)
    say(f"wrote {out}")


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def kill(self) -> None:
        """SIGKILL to every process at once, the workers first."""
        parent = psutil.Process(self.process.pid)
        every = [*parent.children(recursive=True), parent]
        for each in every:
            each.kill()
        self.process.wait()
        psutil.wait_procs(every, timeout=10)

    def metric(self, name: str) -> float:
        """The sum of a metric's series; `name` may carry labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@dataclass
class Clients:
    """Threads that send without a pause, and what they were told."""

    url: str
    bodies: list[bytes]
    acknowledged: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0
    token: str = field(default_factory=lambda: secrets.token_hex(8))  # no other clients send the same bytes

    def __enter__(self) -> Clients:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(index,)) for index in range(_CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _mark(self, index: int, number: int) -> bytes:
        """Goes behind the JPEG's end, where no decoder looks."""
        return f"{self.token}-{index}-{number}".encode()

    def _send(self, index: int) -> None:
        number = index
        with httpx.Client(timeout=60) as http:
            while not self._stop.is_set():
                number += 1
                body = self.bodies[number % len(self.bodies)] + self._mark(index, number)
                try:
                    answer = http.post(f"{self.url}/v1/predict", content=body)
                except httpx.TransportError:
                    self.broken += 1
                    return
                self.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    self.acknowledged.append(answer.json()["prediction_id"])


@contextmanager
def serving(home: Path, **variables: str) -> Iterator[Server]:
    """A real server on a home. It is stopped in the end, if it still runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    log = home / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "commands.main", "serve", "--port", str(port)],
            env={**environment(home), **variables}, cwd=home, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        until(lambda: ready(server), _START_SECONDS, "the server is not ready")
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise


def ready(server: Server) -> bool:
    if server.process.poll() is not None:
        raise SystemExit(f"the server ended:\n{server.log.read_text('utf-8', 'replace')[-3000:]}")
    try:
        return httpx.get(f"{server.url}/readyz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def until(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(otherwise)
        time.sleep(0.05)


def say(text: str) -> None:
    print(text, flush=True)
