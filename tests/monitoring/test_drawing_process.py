"""Drawing in a process of its own: the same report, and a check that outlives whatever happens to it."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from monitoring import two_sample
from monitoring.check import run_check
from monitoring.drawing import DrawingHere, Drawn
from monitoring.drawing_process import DrawingAside
from perennial import ledger
from perennial.errors import DrawingFailed, WorkspaceUnavailable
from perennial.settings import Settings
from perennial.storage import Storage
from tests.monitoring.conftest import drawn_of, wait_for


@pytest.fixture(scope="module")
def aside() -> Iterator[DrawingAside]:
    with DrawingAside() as drawing:
        drawing.start()
        yield drawing


@pytest.fixture
def drawn(world: Any) -> Drawn:
    reference, window = world.reference(), world.scores(world.traffic[:300])
    found = drawn_of(reference, window, two_sample.measure(reference, window))
    return replace(found, at=datetime(2026, 1, 1, tzinfo=UTC))


def without_ids(html: str) -> str:
    """Evidently gives each run and each plot ids that are made anew."""
    return re.sub(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", "ID", html)


def test_it_draws_what_would_be_drawn_here(aside: DrawingAside, drawn: Drawn, tmp_path: Path) -> None:
    html = aside.html(drawn)
    assert len(html) > 1_000_000
    assert without_ids(html) == without_ids(DrawingHere().html(drawn))
    for _ in range(3):
        aside.keep(tmp_path / "evidently", "digits", 2)
    assert len(list(tmp_path.glob("evidently/*/snapshots/*.json"))) == 2


def test_what_goes_wrong_there_is_told_here_and_it_draws_on(aside: DrawingAside, drawn: Drawn, tmp_path: Path) -> None:
    nowhere = tmp_path / "a file"
    nowhere.write_text("")
    aside.html(drawn)
    with pytest.raises(WorkspaceUnavailable, match="a file"):
        aside.keep(nowhere, "digits", 2)
    broken = replace(drawn, window=replace(drawn.window, labels=drawn.window.labels[:-1]))
    with pytest.raises(DrawingFailed, match="ValueError"):
        aside.html(broken)
    assert aside.html(drawn)


def test_a_check_whose_drawing_dies_is_whole_and_says_what_it_lacks(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = deploy(sqlite, watched_settings)
    model.send()
    with DrawingAside() as aside, caplog.at_level(logging.WARNING):
        _, process = aside.start()
        process.kill()
        check = run_check(sqlite, watched_settings, aside)
    assert check.verdict == "ok"
    assert len(ledger.checks.latest(sqlite, "digits", 10)) == 1
    assert "the process that draws ended with -9" in caplog.text
    storage = Storage(watched_settings.blobs_url)
    assert check.report_url is not None
    page = storage.read(storage.key_of(check.report_url)).decode()
    assert "could not be drawn (the process that draws ended with -9)" in page
    assert "<iframe" not in page
    assert not watched_settings.workspace_path.exists()


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_ends_with_the_check_however_that_ends(drawn: Drawn) -> None:
    with DrawingAside() as aside:
        _, process = aside.start()
        assert process.poll() is None
    assert process.poll() is not None

    script = (
        "import time; from monitoring.drawing_process import DrawingAside\n"
        "print(DrawingAside().start()[1].pid, flush=True); time.sleep(60)"
    )
    check = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert check.stdout is not None
    orphan = int(check.stdout.readline())
    assert runs(orphan)
    with check.stdout:
        check.kill()
    check.wait()
    wait_for(lambda: not runs(orphan))  # it notices once it has imported everything
