"""`perennial prune` as people and cron jobs run it, and `perennial watch` doing it by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from perennial.ids import new_id
from perennial.ledger import leases, open_ledger, predictions
from perennial.ledger.predictions import Prediction
from perennial.settings import Settings
from perennial.storage import Storage, capture_key, sha256
from tests.in_process import perennial_here

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def perennial(tmp_path: Path) -> Run:
    return partial(perennial_here, cwd=tmp_path)


@pytest.fixture
def past(settings: Settings) -> list[str]:
    """Predictions of 1, 40 and 400 days ago, each with its image; their ids."""
    engine, storage = open_ledger(settings.ledger_url), Storage(settings.blobs_url)
    vector = np.zeros(4, dtype=np.float32)
    rows = []
    for days in (1, 40, 400):
        at = datetime.now(UTC) - timedelta(days=days)
        image = f"an image of {days} days ago".encode()
        key = capture_key(sha256(image), "PNG")
        url = storage.write(key, image)
        path = storage.local_path(key)
        assert path is not None
        os.utime(path, (at.timestamp(), at.timestamp()))
        rows.append(
            Prediction(
                new_id(int(at.timestamp() * 1000)), at, "v", "float32", "disc", 0.9, vector, vector, vector, 8, 8,
                "PNG", "RGB", len(image), sha256(image), url, None, 1.0,
            )
        )  # fmt: skip
    predictions.record(engine, rows)
    engine.dispose()
    return [row.id for row in rows]


def known(settings: Settings, ids: list[str]) -> list[bool]:
    engine = open_ledger(settings.ledger_url)
    found = predictions.known(engine, ids)
    engine.dispose()
    return [one in found for one in ids]


def test_prune_says_what_would_go_then_removes_it_then_has_nothing_to_do(
    settings: Settings, past: list[str], perennial: Run
) -> None:
    planned = perennial("prune", "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    assert known(settings, past) == [True, True, True]

    done = perennial("prune", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert json.loads(planned.stdout) == document | {"dry_run": True}
    assert document["rows"]["count"] == 1
    assert document["images"]["aged"]["count"] == 1
    assert document["images"]["unnamed"]["count"] == 1
    assert document["images"]["kept"] == {"count": 1, "bytes": len(b"an image of 1 days ago")}
    assert known(settings, past) == [True, True, False]

    again = perennial("prune", "--json")
    assert again.returncode == 4
    assert json.loads(again.stdout)["rows"]["count"] == 0


def test_prune_tells_people_what_is_gone(
    settings: Settings, past: list[str], perennial: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_RETENTION__IMAGES_BYTES", "10")
    monkeypatch.setenv("PERENNIAL_RETENTION__IMAGES_DAYS", "0")
    planned = perennial("prune", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    for words in ("would go", "predictions", "images, by size", "images kept"):
        assert words in planned.stdout
    assert "gone" in perennial("prune").stdout
    assert known(settings, past) == [True, True, False]


def test_a_prune_beside_another_leaves_it_alone(settings: Settings, perennial: Run) -> None:
    engine = open_ledger(settings.ledger_url)
    with leases.held(engine, "prune", 60):
        done = perennial("prune", "--json")
    engine.dispose()
    assert (done.returncode, done.stdout) == (4, "")
    assert "Somebody else is doing this now" in done.stderr


def test_prune_with_the_database_away_says_so(
    home: Path, perennial: Run, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_DATABASE_URL", f"postgresql://127.0.0.1:{free_port}/nowhere")
    done = perennial("prune", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "The ledger cannot be reached" in done.stderr


def test_the_watcher_prunes_by_itself(
    settings: Settings, past: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_RETENTION__INTERVAL", "6")
    monkeypatch.setenv("PERENNIAL_MONITOR__PORT", "0")
    log = tmp_path / "log"
    with log.open("w") as file:
        watcher = subprocess.Popen(
            [sys.executable, "-m", "commands.main", "watch", "--interval", "600"], cwd=tmp_path, stderr=file
        )
    try:
        deadline = time.monotonic() + 40
        while "pruned: 1 predictions, 2 images" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        watcher.send_signal(signal.SIGTERM)
        assert watcher.wait(timeout=30) == 0
    finally:
        if watcher.poll() is None:
            watcher.kill()
            watcher.wait()
    assert known(settings, past) == [True, True, False]
