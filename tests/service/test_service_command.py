"""`perennial serve` as a process: starting, stopping, several at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from commands.serve import serve
from perennial.errors import InvalidSettings
from service import metrics
from tests.service.conftest import Server, World, environment, make_world, picture, serving, wait


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_stops_the_server_and_all_its_children(world: World, stop: signal.Signals) -> None:
    version = world.publish_live()
    with serving(world, extra={"PERENNIAL_SERVE__WORKERS": "2"}) as server:
        assert f"version {version}" in server.output()
        assert f"curl --data-binary @photo.jpg {server.url}/v1/predict" in server.output()
        assert f"{server.url}/ops in a browser" in server.output()
        assert wait(lambda: len(server.children()) >= 2)
        children = server.children()
        answer = server.predict(picture("red"))
        server.process.send_signal(stop)
        assert server.process.wait(15) == 0
        _, alive = psutil.wait_procs(children, timeout=5)
        assert alive == []
        assert "Traceback" not in server.output()
    assert world.rows() == 1
    assert answer["prediction_id"]


def test_a_worker_does_not_outlive_a_server_that_was_killed(world: World) -> None:
    with serving(world, ready=False) as server:
        workers = server.children()
        assert workers
        server.process.kill()
        server.process.wait(5)
        _, alive = psutil.wait_procs(workers, timeout=15)
        assert alive == []


def test_two_servers_of_one_home_keep_their_metrics_apart(shared_server: Server) -> None:
    def counted(server: Server, label: str) -> float:
        start = f'perennial_predictions_total{{label="{label}"'
        lines = [line for line in server.http.get("/metrics").text.splitlines() if line.startswith(start)]
        return float(lines[0].rsplit(" ", 1)[1]) if lines else 0.0

    shared_server.predict(picture("red"))
    before = counted(shared_server, "red")
    assert before > 0
    with serving(shared_server.world) as second:
        second.predict(picture("blue"))
        assert (counted(second, "red"), counted(second, "blue")) == (0, 1)
    assert counted(shared_server, "red") == before


def test_the_gauges_of_a_worker_that_was_killed_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    files = [tmp_path / f"gauge_live{kind}_{pid}.db" for kind in ("max", "sum") for pid in (gone.pid, os.getpid())]
    kept = tmp_path / f"counter_{gone.pid}.db"
    for path in [*files, kept]:
        path.write_bytes(b"")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    metrics.forget_dead_workers()
    assert sorted(tmp_path.iterdir()) == sorted([*(path for path in files if str(os.getpid()) in path.name), kept])


def run(world: World, *options: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "commands.main", "serve", *options],
        env={**environment(world), "PYTHONSAFEPATH": "1"},
        cwd=folder or world.home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_port_that_is_taken_is_said_before_anything_is_started(shared_server: Server) -> None:
    port = shared_server.url.rsplit(":", 1)[1]
    second = run(shared_server.world, "--port", port)
    assert second.returncode == 2
    assert f"port {port}" in second.stderr
    assert shared_server.predict(picture("red"))


def test_a_host_that_is_none_is_a_usage_error(world: World) -> None:
    world.home.mkdir(exist_ok=True)
    answer = run(world, "--host", "no such host")
    assert answer.returncode == 2
    assert "serve.host" in answer.stderr


def test_a_package_in_the_folder_that_would_be_taken_for_ours_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "project" / "service").mkdir(parents=True)
    (tmp_path / "project" / "service" / "__init__.py").write_text("raise SystemExit('somebody else')")
    answer = run(world, folder=tmp_path / "project")
    assert answer.returncode == 2
    assert "start in another folder" in answer.stderr


def test_a_ledger_that_cannot_be_reached_is_said_at_once(tmp_path: Path, free_port: int) -> None:
    world = make_world(tmp_path / "home")
    world.engine.dispose()
    command = [sys.executable, "-m", "commands.main", "serve", "--port", str(free_port)]
    elsewhere = {**environment(world), "PERENNIAL_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    answer = subprocess.run(
        command, env=elsewhere, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 1
    assert "ledger" in answer.stderr
    assert os.linesep + "Traceback" not in answer.stderr


def test_another_system_than_linux_is_told_so(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(InvalidSettings, match="serving needs Linux"):
        serve(name=world.settings.name)


def test_the_process_that_starts_the_workers_imports_no_service() -> None:
    # It would import all of it for nothing, before the workers can.
    program = (
        "import importlib, sys\n"
        "from service.outline import outline\n"
        "from perennial.settings_sections import ServeSettings\n"
        "serve = ServeSettings(workers=3)\n"
        "found = outline(serve)\n"
        "assert not {'service.app', 'service.inference', 'openvino', 'uvicorn'} & set(sys.modules), sys.modules\n"
        "module, name = found.import_string.split(':')\n"
        "real = getattr(importlib.import_module(module), name)\n"
        "assert found.name == real.name\n"
        "assert found.config['workers'] == 3\n"
        "assert found.config.keys() == real.config.keys()\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("worker", [None, 1], ids=["elsewhere", "worker"])
def test_a_worker_alone_starts_inference_early_and_collects_no_garbage_meanwhile(worker: int | None) -> None:
    program = (
        "import gc, bentoml\n"
        f"bentoml.server_context.worker_index = {worker}\n"
        "import service.app\n"
        "from service import head_start\n"
        f"assert gc.isenabled() is {worker is None}\n"
        f"assert (head_start.inference is None) is {worker is None}\n"
        "head_start.finish()\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 100_000 and gc.get_count()[2] == 0\n"
        "if head_start.inference is not None: head_start.inference.close()\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stderr
