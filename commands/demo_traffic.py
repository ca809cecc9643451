"""The demo's clients: real HTTP requests to a real server, every one counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from commands.demo_world import Change, Digit
from perennial.errors import PerennialError

_CLIENTS = 4
_START_SECONDS = 60.0
_READY = "/readyz"


class ServerDidNotStart(PerennialError):
    title = "The server did not start"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service said of one digit. `version` is empty and `prediction_id` too if the request failed."""

    digit: Digit
    prediction_id: str
    label: str
    version: str


@dataclass
class Tally:
    """Requests sent by everybody, and what went wrong with any of them."""

    sent: int = 0
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, failure: str | None) -> None:
        with self.lock:
            self.sent += 1
            if failure is not None:
                self.failures.append(failure)


class Traffic:
    """Sends digits to a service."""

    def __init__(self, url: str) -> None:
        self.tally = Tally()
        limits = httpx.Limits(max_connections=2 * _CLIENTS + 2)
        self._client = httpx.Client(base_url=url, timeout=30.0, limits=limits, trust_env=False)

    def close(self) -> None:
        self._client.close()

    def send(self, some: Sequence[Digit], change: Change | None = None) -> list[Answer]:
        """Send each digit once, several at a time; answers come in the order of the digits."""
        with ThreadPoolExecutor(_CLIENTS) as clients:
            return list(clients.map(lambda digit: self._predict(digit, change), some))

    def label(self, answers: Sequence[Answer], name_of: Callable[[Digit], str]) -> int:
        """Say what each answer should have been; returns how many labels were accepted."""
        body = [{"prediction_id": answer.prediction_id, "label": name_of(answer.digit)} for answer in answers]
        response = self._client.post("/v1/feedback", json=body)
        response.raise_for_status()
        return int(response.json()["accepted"])

    @contextmanager
    def running(self, some: Sequence[Digit], change: Change | None, pause: float) -> Iterator[list[Answer]]:
        """Keep sending in the background, over and over, until the block is left."""
        answers: list[Answer] = []
        stop = threading.Event()

        def loop() -> None:
            while not stop.is_set():
                for digit in some:
                    answers.append(self._predict(digit, change))
                    if stop.wait(pause):
                        return

        thread = threading.Thread(target=loop, name="background traffic")
        thread.start()
        try:
            yield answers
        finally:
            stop.set()
            thread.join()

    def wait_for_version(self, version: str, seconds: float = 20.0) -> float:
        """Wait until the service answers with this model; returns the seconds it took."""
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            if self._client.get("/v1/model").json().get("version") == version:
                return time.monotonic() - begun
            time.sleep(0.05)
        raise ServerDidNotStart(f"the service did not switch to {version} within {seconds:.0f} s")

    def _predict(self, digit: Digit, change: Change | None) -> Answer:
        try:
            response = self._client.post(
                "/v1/predict", content=digit.png(change), headers={"Content-Type": "image/png"}
            )
        except httpx.HTTPError as error:
            self.tally.count(repr(error))
            return Answer(digit, "", "", "")
        if response.status_code != 200:
            self.tally.count(f"{response.status_code}: {response.text[:200]}")
            return Answer(digit, "", "", "")
        self.tally.count(None)
        answer = response.json()
        return Answer(digit, answer["prediction_id"], answer["label"], answer["model"]["version"])


@dataclass(frozen=True, slots=True)
class Server:
    """A running `perennial serve`; ending its process ends it."""

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def served(port: int, log: Path, *, keep: bool) -> Iterator[Server]:
    """A real `perennial serve` in a process of its own; its output goes to `log`.

    With `keep` it is left running when the block is left without an error.
    """
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "commands.main", "serve", "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    leave = False
    try:
        _wait_until_ready(url, process, log)
        yield Server(url, process)
        leave = keep
    finally:
        if not leave:
            _stop(process)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    # One client: each reads all certificates anew, which takes from the server that is starting.
    with httpx.Client(base_url=url, timeout=2.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            try:
                if client.get(_READY).status_code == 200:
                    return
            except httpx.TransportError:
                # Not listening yet.
                time.sleep(0.1)
                continue
            time.sleep(0.1)
    last_lines = "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-5:])
    raise ServerDidNotStart(f"`perennial serve` is not ready; the end of {log}:\n{last_lines}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=5)
