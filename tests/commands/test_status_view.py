"""`perennial status --watch`: what the live view shows, and that it outlives a database that goes away."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from rich.console import Console
from typer.testing import CliRunner

from commands import console
from commands.main import app
from commands.status import _show, status_document
from commands.status_view import StatusView, sparkline
from perennial.bundle import Dataset, Estimate, Manifest, Pretrained, new_version, write_bundle
from perennial.graph import PROPERTIES
from perennial.ids import new_id
from perennial.images import InputRule
from perennial.ledger import EventKind, checks, deployments, models, open_ledger, predictions, rollouts, traffic
from perennial.ledger.predictions import Prediction
from perennial.settings import Settings, load_settings

Watched = Callable[[Settings], StatusView]

NOW = datetime(2026, 3, 1, 12, 30, 40, tzinfo=UTC)
ACCURACY = {"value": 0.91, "low": 0.88, "high": 0.94, "rows": 412}


def publish(engine: sa.Engine, folder: Path, name: str = "default") -> str:
    manifest = Manifest(
        name=name, version=new_version(), created_at=NOW, classes=("ants", "bees"),
        input=InputRule(resize=32, crop=32), backbone="mobilenet_v3_small",
        pretrained=Pretrained(source="none", sha256=""), strategy="linear_probe", why="a test",
        dataset=Dataset(location="photos", fingerprint="f", train=2, validation=1, test=1),
        metrics={"accuracy": Estimate(value=0.97, low=0.95, high=0.98)}, per_class={}, temperature=1.0,
        properties=PROPERTIES, precisions=("float32",), seed=0, packages={},
    )  # fmt: skip
    bundle = write_bundle(folder / "models", manifest, lambda to: (to / "graph.onnx").write_bytes(b"a graph"))
    models.register(engine, bundle, f"file://{bundle.path}")
    return manifest.version


def answer(engine: sa.Engine, version: str, at: datetime, count: int) -> None:
    two = np.full(2, 0.5, dtype=np.float32)
    rows = [
        Prediction(
            id=new_id(int(at.timestamp() * 1000)), at=at, model_version=version, precision="float32", label="ants",
            confidence=0.5, probabilities=two, embedding=two, properties=two, width=8, height=8, format="PNG", mode="L",
            bytes=100, image_digest="0" * 64, image_url=None, source="test", latency_ms=1.0,
        )
        for _ in range(count)
    ]  # fmt: skip
    predictions.record(engine, rows)


def family(score: float, *, alarm: bool, skipped: str = "") -> dict[str, object]:
    return {"score": score, "floor": 0.25, "p_value": 0.01, "alarm": alarm, "skipped": skipped, "columns": {}}


@pytest.fixture
def busy(engine: sa.Engine, tmp_path: Path) -> str:
    """A model with traffic, a check that alarmed, and a challenger beside it."""
    version = publish(engine, tmp_path)
    deployments.deploy(engine, "default", version, reason="first", actor="test")
    for ago, count in ((0, 2), (1, 5), (40, 8), (90, 50)):
        answer(engine, version, NOW - timedelta(minutes=ago), count)
    detail = {
        "state": "drifting",
        "causes": [{"cause": "data_drift", "why": "[red]other[/] images", "columns": []}],
        "accuracy": {"labels": ACCURACY, "estimated": None, "withheld": "too few images"},
        "families": {
            "properties": family(0.31, alarm=True),
            "embedding": family(0.05, alarm=False),
            "novelty": family(0.0, alarm=False, skipped="no reference"),
        },
    }
    checks.record(
        engine, name="default", model_version=version, window={"rows": 15}, verdict="data_drift", detail=detail,
        report_url=None, events_to_add=[(EventKind.DRIFT_OPENED, {"model_version": version, "why": "it [drifted]"})],
    )  # fmt: skip
    challenger = publish(engine, tmp_path)
    rollouts.start(
        engine, "default", champion=version, challenger=challenger, stages=("shadow", 0.5), reason="better",
        actor="test", detail={}, caused_by=None,
    )  # fmt: skip
    return version


@pytest.fixture
def watched() -> Iterator[Watched]:
    """Makes views, and closes them."""
    with ExitStack() as views:

        def make(settings: Settings) -> StatusView:
            view = StatusView(settings)
            views.callback(view.close)
            return view

        yield make


def drawn(view: StatusView, now: datetime = NOW) -> str:
    screen = Console(width=140, file=io.StringIO())
    screen.print(view.look(now))
    return screen.file.getvalue()


def test_predictions_are_counted_by_the_minute(engine: sa.Engine, busy: str, tmp_path: Path) -> None:
    other = publish(engine, tmp_path, "other")
    answer(engine, other, NOW, 3)
    minute = NOW.replace(second=0)
    found = traffic.per_minute(engine, "default", minute - timedelta(minutes=59))
    assert found == {minute: 2, minute - timedelta(minutes=1): 5, minute - timedelta(minutes=40): 8}
    assert traffic.per_minute(engine, "other", minute - timedelta(minutes=59)) == {minute: 3}


def test_a_sparkline_is_as_high_as_its_counts() -> None:
    assert sparkline([0, 1, 4, 8]) == "·▁▄█"
    assert sparkline([0, 0]) == "··"
    assert sparkline([]) == ""


def test_the_view_shows_traffic_verdict_accuracy_families_rollout_and_events(
    engine: sa.Engine, ledger_url: str, busy: str, watched: Watched
) -> None:
    view = watched(load_settings(database_url=ledger_url))
    shown = drawn(view)
    for words in (
        busy, "first", "data_drift", "drifting", "[red]other[/] images", "0.910 (0.880 to 0.940) by labels, 412 images",
        "no estimate: too few images", "0.970 (0.950 to 0.980) held out", "15 in the last hour, 5 in the last minute",
        "0.310 of 0.250", "alarm", "calm", "not tested: no reference", "shadow > 50 % of the traffic > all",
        "drift opened", "it [drifted]", "the latest 65 of 65",
    ):  # fmt: skip
        assert words in shown, f"{words}\n{shown}"
    line = next(line for line in shown.splitlines() if line.startswith("traffic"))
    bars = line.split()[-1]
    assert (len(bars), bars[-1], bars[-2], bars[-41]) == (60, "▂", "▅", "█")


def test_status_tells_causes_accuracy_and_events_in_words(
    engine: sa.Engine, ledger_url: str, busy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than a line of 80 characters: it is folded, not cut off.
    report = f"file://{tmp_path}/{'a' * 90}.html"
    detail = {
        "causes": [{"cause": "data_drift", "why": "[red]other[/] images", "columns": []}],
        "accuracy": {"labels": ACCURACY, "estimated": None},
    }
    causes = [{"cause": "sensor_shift"}]
    changed = {"model_version": busy, "from": "data_drift", "to": "sensor_shift", "causes": causes}
    checks.record(
        engine, name="default", model_version=busy, window={"rows": 15}, verdict="data_drift", detail=detail,
        report_url=report, events_to_add=[(EventKind.CHECK_CHANGED, changed)],
    )  # fmt: skip
    screen = Console(width=80, file=io.StringIO(), highlight=False, soft_wrap=True)
    monkeypatch.setattr(console, "out", screen)
    _show(status_document(engine, load_settings(database_url=ledger_url)))
    shown = screen.file.getvalue()
    for words in ("data_drift: [red]other[/] images", "accuracy 0.910 (0.880 to 0.940) by labels", "rollout started"):
        assert words in shown
    assert "{'cause'" not in shown
    assert report in "".join(shown.split())
    newest = next(line for line in shown.splitlines() if "check changed" in line)
    assert newest.rstrip().endswith("sensor shift")


def test_a_later_look_counts_what_came_since(engine: sa.Engine, ledger_url: str, busy: str, watched: Watched) -> None:
    view = watched(load_settings(database_url=ledger_url))
    drawn(view)
    answer(engine, busy, NOW, 1)
    answer(engine, busy, NOW + timedelta(minutes=1), 4)
    assert "20 in the last hour, 3 in the last minute" in drawn(view, NOW + timedelta(minutes=1))
    # Half an hour later the eight of forty minutes before are out of sight.
    assert "12 in the last hour" in drawn(view, NOW + timedelta(minutes=30))


def test_before_there_is_a_model_it_says_so_and_goes_on(settings: Settings, tmp_path: Path, watched: Watched) -> None:
    view = watched(settings)
    assert "perennial train DATA" in drawn(view)
    engine = open_ledger(settings.ledger_url)
    deployments.deploy(engine, "default", publish(engine, tmp_path), reason="first", actor="test")
    engine.dispose()
    shown = drawn(view)
    assert "none yet; run: perennial monitor" in shown
    assert "No model is live" not in shown


def test_a_database_that_goes_away_is_said_and_what_was_known_stays(
    postgres: str, postgres_url: str, tmp_path: Path, watched: Watched
) -> None:
    engine = open_ledger(postgres_url)
    deployments.deploy(engine, "default", publish(engine, tmp_path), reason="first", actor="test")
    engine.dispose()
    view = watched(load_settings(database_url=postgres_url))
    assert "first" in drawn(view)
    name = sa.make_url(postgres_url).database
    admin = sa.create_engine(
        sa.make_url(postgres).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
    )
    with admin.connect() as connection:
        connection.execute(sa.text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'))
        end = sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
        connection.execute(end, {"name": name})
        try:
            away = drawn(view, NOW + timedelta(seconds=5))
        finally:
            connection.execute(sa.text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'))
    assert "The ledger cannot be reached" in away
    assert "below is what was known at 12:30:40 UTC" in away
    assert "first" in away
    again = drawn(view, NOW + timedelta(seconds=10))
    assert "cannot be reached" not in again
    assert "first" in again


def test_without_a_terminal_it_says_what_to_do_instead(home: Path) -> None:
    for options, words in ((["--watch"], "--json"), (["--watch", "--json"], "again and again"), (["5"], "--watch 10")):
        done = CliRunner().invoke(app, ["status", *options])
        assert words in str(done.exception)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_at_once_a_check_is_told_in_words(
    busy: str, ledger_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_DATABASE_URL", ledger_url)
    said = " ".join(CliRunner().invoke(app, ["status"]).stdout.split())
    assert "data_drift: [red]other[/] images" in said
    assert "columns" not in said


def test_it_draws_on_the_other_screen_until_ctrl_c(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_ledger(settings.ledger_url)
    version = publish(engine, tmp_path)
    deployments.deploy(engine, "default", version, reason="first", actor="test")
    answer(engine, version, datetime.now(UTC) - timedelta(minutes=2), 8)
    engine.dispose()
    monkeypatch.setenv("TERM", "xterm-256color")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "commands.main", "status", "--watch", "0.2"],
        cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    try:
        shown = read_until(ours, "Ctrl-C ends it", "first", "█", "8 in the last hour")
        assert "\x1b[?1049h" in shown  # the other screen
        assert version in shown
        process.send_signal(signal.SIGINT)
        read_until(ours, "\x1b[?1049l")  # and back
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(terminal: int, *words: str, seconds: float = 30.0) -> str:
    """What is drawn until all of these words were."""
    seen, deadline = b"", time.monotonic() + seconds
    while not all(word.encode() in seen for word in words):
        assert time.monotonic() < deadline, seen.decode(errors="replace")
        if select.select([terminal], [], [], 0.5)[0]:
            seen += os.read(terminal, 65536)
    return seen.decode(errors="replace")
