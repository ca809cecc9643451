"""Every query of every panel and every recording rule finds data in a real Prometheus that scrapes a real service and a
real watcher; a watcher that is killed is missed; docs/metrics.md lists what both show, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from perennial import ledger
from perennial.ledger import EventKind, open_ledger
from perennial.settings import load_settings
from tests.monitoring.conftest import Deploy, wait_for
from tests.prometheus_server import DEPLOY, Prometheus, needs_prometheus, rules, scraping
from tests.service.conftest import Server, make_world, picture, serving

pytestmark = [needs_prometheus, pytest.mark.usefixtures("without_reports")]

DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
#: Panels that may be empty, and why.
MAY_BE_EMPTY = {"Images in one inference": "images are gathered on a GPU only"}
#: What is not there yet when the test looks.
NOT_SHOWN_HERE = {"perennial_watch_last_tick_timestamp_seconds"}


def documents() -> list[tuple[str, dict[str, Any]]]:
    return [(path.name, json.loads(path.read_text("utf-8"))) for path in DASHBOARDS]


def queries() -> list[tuple[str, str]]:
    """Title and query of all panels and annotations, with Grafana's variables filled in."""
    found = []
    for _, document in documents():
        for panel in document["panels"]:
            found += [(panel["title"], target["expr"]) for target in panel.get("targets", [])]
        found += [(each["name"], each["expr"]) for each in document["annotations"]["list"]]
    filled = []
    for title, query in found:
        for variable in ("$job", "$instance", "$watcher_job", "$watcher"):
            query = query.replace(f'"{variable}"', '".*"')
        filled.append((title, query.replace("$__rate_interval", "10s")))
    return filled


def listed() -> set[str]:
    """The names of docs/make_metrics_page.py, without a histogram's parts."""
    spec = importlib.util.spec_from_file_location("make_metrics_page", DEPLOY.parent / "docs" / "make_metrics_page.py")
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = page
    spec.loader.exec_module(page)
    says, itself = page.of_the_watcher()
    return {row.name for row in (*page.of_the_service(), *says, *itself)}


def shown(url: str) -> set[str]:
    """The metrics of ours that a process shows numbers of; BentoML's are the only others."""
    text = httpx.get(f"{url}/metrics", timeout=20).text
    found = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(text)
        if family.samples
    }
    assert all(name.startswith(("perennial_", "bentoml_service_")) for name in found), found
    return {name for name in found if name.startswith("perennial_")}


@contextmanager
def watching(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "watch.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "commands.main", "watch", "--interval", "4"], cwd=folder, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def send_all_sorts(server: Server, seed: int) -> None:
    """Predictions with labels, images twice, what is no image, a path that is not there."""
    answer = server.predict(picture("red", seed=seed))
    server.predict(picture("red"))
    server.post("/v1/predict", b"no image")
    server.http.get("/nowhere")
    server.http.post("/v1/feedback", json={"prediction_id": answer["prediction_id"], "label": "red"})


def roll_out(engine: Any, name: str, champion: str, challenger: str) -> None:
    ledger.rollouts.start(
        engine, name, champion=champion, challenger=challenger, stages=["shadow"], reason="a test", actor="test"
    )


@pytest.mark.timeout(180)
def test_every_query_finds_data_and_a_watcher_that_is_killed_is_missed(
    home: Path, tmp_path: Path, deploy: Deploy, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in {
        "NAME": "digits", "MONITOR__WINDOW": "300", "MONITOR__MIN_ROWS": "200", "MONITOR__MIN_LABELS": "100",
        "MONITOR__PORT": str(free_port),
    }.items():  # fmt: skip
        monkeypatch.setenv(f"PERENNIAL_{variable}", value)
    settings = load_settings()
    engine = open_ledger(settings.ledger_url)
    model = deploy(engine, settings)
    model.send(labelled=True)
    ledger.events.add(engine, "digits", EventKind.DRIFT_OPENED, {"model_version": model.version})
    roll_out(engine, "digits", model.version, "20990101-000000-00000")

    world = make_world(tmp_path / "service")
    champion = world.publish_live()
    challenger = world.publish()
    roll_out(world.engine, world.settings.name, champion, challenger)
    watcher = f"http://127.0.0.1:{free_port}"
    with watching(tmp_path) as process, serving(world) as server:
        wait_for(lambda: ledger.checks.latest(engine, "digits"), 60)
        targets = {"perennial": [server.url[7:]], "perennial-watcher": [watcher[7:]]}
        with scraping(tmp_path / "prometheus", targets) as prometheus:
            everything_is_found(prometheus, server)
            both = shown(server.url) | shown(watcher)
            assert both - listed() == set()
            assert listed() - both <= NOT_SHOWN_HERE
            assert "PerennialDriftOpen" in prometheus.firing()
            # On a busy machine a check may be late; the next one clears that.
            silent = {"PerennialMonitorStale", "PerennialWatcherDown", "PerennialServiceDown", "PerennialNoLiveModel"}
            wait_for(lambda: not silent & prometheus.firing(), 60)

            process.kill()
            process.wait(10)
            wait_for(lambda: {"PerennialMonitorStale", "PerennialWatcherDown"} <= prometheus.firing(), 30)
    engine.dispose()


def everything_is_found(prometheus: Prometheus, server: Server) -> None:
    wanted = queries() + [(rule["record"], rule["expr"]) for rule in rules("recording.yml")]
    wanted += [(rule["record"], rule["record"]) for rule in rules("recording.yml")]
    empty = [each for each in wanted if each[0] not in MAY_BE_EMPTY]
    for _, query in wanted:
        prometheus.vector(query)  # it can be read
    deadline = time.monotonic() + 30
    seed = 0
    while empty and time.monotonic() < deadline:
        seed += 1
        send_all_sorts(server, seed)
        time.sleep(0.5)
        empty = [(title, query) for title, query in empty if not prometheus.has_data(query)]
    assert not empty
