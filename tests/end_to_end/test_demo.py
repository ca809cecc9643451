"""The demo is the promise in two minutes: each of its steps must happen, and no request may fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from commands.demo_traffic import served
from perennial.ledger import EventKind, events, open_ledger


@pytest.mark.timeout(600)
def test_the_demo_shows_the_whole_loop(perennial: Callable[..., Any], home: Path) -> None:
    story = perennial("demo", "--json", timeout=500).json()
    assert story["failed"] == 0
    assert story["requests"] > 1500
    verdicts = [moment["verdict"] for moment in story["timeline"] if moment["verdict"]]
    assert verdicts[:2] == ["ok", "sensor_shift"]
    assert {"data_drift", "concept_drift"} <= set(verdicts)
    happened = " ".join(moment["event"] for moment in story["timeline"])
    for word in ("promoted", "refused", "rolled back"):
        assert word in happened
    report = story["addresses"]["report of the last check"].removeprefix("file://")
    assert Path(report).stat().st_size > 10_000
    engine = open_ledger(f"sqlite:///{home / 'demo' / 'ledger.sqlite'}")
    trail = events.after(engine, "digits")
    engine.dispose()
    closed = [event for event in trail if event.kind is EventKind.DRIFT_CLOSED]
    # The retrained models know the traffic that was drift to the ones before.
    assert [event.detail["opened_on"] != event.detail["model_version"] for event in closed] == [True, True]
    # The server is gone, as nobody asked to keep it.
    assert "the live model" not in story["addresses"]


def test_a_server_that_is_kept_goes_on_after_the_block(
    home: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    monkeypatch.setenv("PERENNIAL_SERVE__PORT", str(free_port))
    # Ready needs a model; alive does not.
    monkeypatch.setattr("commands.demo_traffic._READY", "/livez")
    with served(free_port, home / "server.log", keep=True) as server:
        pass
    try:
        assert httpx.get(f"{server.url}/livez", trust_env=False).status_code == 200
    finally:
        server.process.terminate()
        server.process.wait(timeout=30)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/livez", trust_env=False)
