"""Checks over time in Evidently's workspace: read back by Evidently itself, and by its web interface as a process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from commands import main
from monitoring.check import run_check
from perennial import ledger
from perennial.errors import InvalidParameter, NothingToDo, WorkspaceUnavailable
from perennial.ledger import open_ledger
from perennial.settings import Settings
from perennial.storage import Storage


@pytest.fixture
def opened(watched_settings: Settings) -> Iterator[sa.Engine]:
    engine = open_ledger(watched_settings.ledger_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def small_run() -> Any:
    """A run of Evidently's without a check."""
    from monitoring.quiet_evidently import quietly

    with quietly():
        from evidently import Report
        from evidently.metrics import RowCount

    return Report([RowCount()]).run(pd.DataFrame({"column": [1, 2, 3]}), timestamp=datetime.now(UTC), name="small")


def runs_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/snapshots/*.json"))


def with_workspace(settings: Settings, workspace: bool) -> Settings:
    return settings.model_copy(update={"monitor": settings.monitor.model_copy(update={"workspace": workspace})})


@contextmanager
def interface(port: int, cwd: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`perennial ui` as a process that has said where it answers, always ended; what it said."""
    command = [sys.executable, "-m", "commands.main", "ui", "--port", str(port)]
    with (
        (cwd / "ui-log").open("w") as log,
        subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline()
        finally:
            if process.poll() is None:
                process.kill()


def points(client: httpx.Client, project: str, panel: dict[str, Any]) -> dict[str, list[float | None]]:
    """What a panel draws: its lines by the name in the legend, as Evidently's page asks for them."""
    filters = [
        {key: value[key] for key in ("metric", "tags", "metadata", "metric_labels")} for value in panel["values"]
    ]
    answer = client.post(f"/api/v2/snapshots/{project}/data_series_batch", json={"series_filter": filters})
    lines: dict[str, list[float | None]] = {}
    for line in answer.raise_for_status().json()["series"]:
        legend = panel["values"][line["filter_index"]]["legend"]
        lines[legend.replace("{{label}}", line["params"].get("label", ""))] = line["values"]
    return lines


def test_each_check_is_a_run_of_its_models_project_and_a_point_in_every_panel(
    opened: sa.Engine, watched_settings: Settings, deploy: Any, free_port: int, tmp_path: Path
) -> None:
    model = deploy(opened, watched_settings)
    model.send(labelled=True)
    calm = run_check(opened, watched_settings)
    model.send(change=lambda images: images * 0.6, seed=1)
    dark = run_check(opened, watched_settings)
    assert [calm.verdict, dark.verdict] == ["ok", "sensor_shift"]

    from evidently.core.report import Snapshot
    from evidently.ui.workspace import Workspace

    workspace = Workspace(str(watched_settings.workspace_path))
    (project,) = workspace.search_project("digits")
    found = [Snapshot.load_model(workspace.get_run(project.id, run)) for run in sorted(workspace.list_runs(project.id))]
    shown = [{metric["metric_name"]: metric["value"] for metric in run.dict()["metrics"]} for run in found]
    assert [each["RowCount()"] for each in shown] == [300, 300]
    assert [each["CheckVerdict()"]["sensor_shift"] for each in shown] == [0, 1]
    assert "sensor_shift" in found[1].get_html_str(as_iframe=False)
    assert not workspace.list_datasets(project.id).datasets, "the window itself is not kept there"

    with interface(free_port, tmp_path) as (process, said):
        assert f"http://127.0.0.1:{free_port}" in said, (tmp_path / "ui-log").read_text()
        with httpx.Client(base_url=f"http://127.0.0.1:{free_port}", timeout=30) as client:
            assert [each["name"] for each in client.get("/api/v2/projects/").json()] == ["digits"]
            page = client.get(f"/api/v2/dashboards/{project.id}").json()
            drawn = {panel["title"]: points(client, str(project.id), panel) for panel in page["panels"]}
            assert set(drawn) == {"Verdict", "Accuracy", "Drifted columns", "Domain classifier"}
            assert {verdict for verdict, values in drawn["Verdict"].items() if any(values)} == {"ok", "sensor_shift"}
            assert (drawn["Verdict"]["ok"], drawn["Verdict"]["sensor_shift"]) == ([1, 0], [0, 1])
            accuracy = drawn["Accuracy"]
            assert calm.accuracy.labels is not None
            assert accuracy["by labels"] == [pytest.approx(calm.accuracy.labels.value)], "the second had no labels"
            assert calm.accuracy.estimated is not None
            assert dark.accuracy.estimated is None, "withheld"
            assert accuracy["estimated"] == [pytest.approx(calm.accuracy.estimated.value)]
            before, now = drawn["Drifted columns"]["share of the tested columns"]
            assert before == 0
            assert 0 < now < 1
            assert drawn["Domain classifier"]["AUC"] == [each.families["embedding"].score for each in (calm, dark)]

            (newest,) = (
                each for each in client.get(f"/api/projects/{project.id}/reports").json() if "ok" in each["tags"]
            )
            assert (
                "ValueDrift"
                in client.get(f"/api/projects/{project.id}/{newest['id']}/download?report_format=json").text
            )

            # To read only, and by this machine's name only.
            assert client.delete(f"/api/projects/{project.id}").status_code == 403
            assert client.post("/api/v2/projects/", json={"name": "another"}).status_code == 403
            assert client.get("/api/v2/projects/", headers={"Host": "elsewhere.example"}).status_code == 400
            # The pages of Evidently's API would load scripts from elsewhere: the browser is told not to.
            for path in ("/", "/schema"):
                policy = client.get(path).raise_for_status().headers["content-security-policy"]
                assert policy.startswith("default-src 'self'")
                assert "http" not in policy

            # A check that comes while it runs shows without a restart.
            from monitoring.workspace import add_run

            add_run(watched_settings.workspace_path, "digits", found[1], keep=100)
            deadline = time.monotonic() + 20
            while len(points(client, str(project.id), page["panels"][0])["ok"]) < 3 and time.monotonic() < deadline:
                time.sleep(0.1)
            assert points(client, str(project.id), page["panels"][0])["sensor_shift"] == [0, 1, 1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_a_workspace_that_fails_or_is_not_wanted_leaves_the_check_whole(
    opened: sa.Engine, watched_settings: Settings, deploy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    deploy(opened, watched_settings).send()
    run_check(opened, with_workspace(watched_settings, False))
    assert not watched_settings.workspace_path.exists()
    assert not caplog.records

    watched_settings.workspace_path.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        check = run_check(opened, watched_settings)
    assert "this check is missing in `perennial ui`" in caplog.text
    assert str(watched_settings.workspace_path) in caplog.text
    assert check.verdict == "ok"
    first, second = ledger.checks.latest(opened, "digits", 10)
    assert first.report_url == check.report_url != second.report_url
    storage = Storage(watched_settings.blobs_url)
    assert check.report_url is not None
    assert storage.exists(storage.key_of(check.report_url))


def test_of_older_runs_the_newest_are_kept_of_each_model(tmp_path: Path, small_run: Any) -> None:
    from monitoring.workspace import add_run

    folder = tmp_path / "evidently"
    other = add_run(folder, "other", small_run, keep=1)
    added = []
    for _ in range(5):
        added.append(add_run(folder, "digits", small_run, keep=3))
        time.sleep(0.002)  # the ids sort by the millisecond
    assert runs_in(folder) == sorted([*added[2:], other])
    last = add_run(folder, "digits", small_run, keep=1)
    assert runs_in(folder) == sorted([last, other])

    later = last.with_name("ffffffff-ffff-7fff-bfff-ffffffffffff.json")
    last.rename(later)  # the clock was ahead, and has jumped back
    assert runs_in(folder) != [other]
    assert add_run(folder, "digits", small_run, keep=1) in runs_in(folder)
    assert not later.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evidently"], "nothing half written is left beside it"


def test_checks_that_begin_a_project_at_once_begin_the_same(tmp_path: Path, small_run: Any) -> None:
    from evidently.ui.workspace import Workspace

    from monitoring.workspace import add_run, dashboard

    folder = tmp_path / "evidently"
    with ThreadPoolExecutor(8) as threads:
        added = list(threads.map(lambda _: add_run(folder, "digits", small_run, keep=100), range(16)))
    workspace = Workspace(str(folder))
    (project,) = workspace.list_projects()
    assert project.name == "digits"
    assert len(workspace.list_runs(project.id)) == len(set(added)) == 16
    assert project.dashboard.model() == dashboard("digits")

    path = folder / str(project.id) / "dashboard.json"
    path.write_text("{")  # of another version, or broken
    add_run(folder, "digits", small_run, keep=100)
    assert workspace.search_project("digits")[0].dashboard.model() == dashboard("digits")


def test_what_killed_checks_left_half_written_goes_after_a_while(tmp_path: Path, small_run: Any) -> None:
    from monitoring.workspace import add_run

    old, young, other = (tmp_path / name for name in (".evidently.a.json.01", ".evidently.b.json.02", ".other.json.03"))
    for path in (old, young, other):
        path.write_text("{")
    for path in (old, other):
        os.utime(path, (time.time() - 7200,) * 2)
    add_run(tmp_path / "evidently", "digits", small_run, keep=100)
    assert [path.exists() for path in (old, young, other)] == [False, True, True]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_interface_answers_by_the_names_of_this_machine_alone(tmp_path: Path, small_run: Any, address: str) -> None:
    from monitoring.workspace import add_run
    from monitoring.workspace_server import open_workspace

    add_run(tmp_path / "evidently", "digits", small_run, keep=100)
    app = open_workspace(tmp_path / "evidently", address)

    async def answers() -> dict[str, int]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            hosts = ("localhost:3002", "127.0.0.1:3002", "[::1]:3002", "localhost.elsewhere.example", "10.0.0.1")
            return {host: (await client.get("/api/v2/projects/", headers={"Host": host})).status_code for host in hosts}

    assert list(asyncio.run(answers()).values()) == [200, 200, 200, 400, 400]


def test_a_run_that_cannot_be_read_is_named(tmp_path: Path, small_run: Any) -> None:
    from monitoring.workspace import add_run
    from monitoring.workspace_server import open_workspace

    folder = tmp_path / "evidently"
    add_run(folder, "digits", small_run, keep=100)
    broken = add_run(folder, "digits", small_run, keep=100)
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(WorkspaceUnavailable, match=f"{broken.name} cannot be read .* delete it"):
        open_workspace(folder, "127.0.0.1")


def test_ui_says_what_to_do_where_there_is_nothing_to_show_or_no_port(home: Path, free_port: int) -> None:
    def ui() -> BaseException | None:
        return CliRunner().invoke(main.app, ["ui", "--port", str(free_port)]).exception

    empty = ui()
    assert isinstance(empty, NothingToDo)
    assert "perennial monitor" in str(empty)

    snapshots = home / "evidently" / "project" / "snapshots"
    snapshots.mkdir(parents=True)
    (snapshots / "run.json").write_text("{}")
    with socket.create_server(("127.0.0.1", free_port)):
        taken = ui()
    assert isinstance(taken, InvalidParameter)
    assert f"cannot listen on 127.0.0.1 port {free_port}: Address already in use; try --port" in str(taken)
