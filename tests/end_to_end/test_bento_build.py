"""`bentoml build` makes a Bento of the service, and the Bento serves."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import yaml

ROOT = Path(__file__).parents[2]


def service_tests() -> ModuleType:
    """The server and model of the service's own tests."""
    spec = importlib.util.spec_from_file_location("service_tests", ROOT / "tests" / "service" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_bento_is_built_of_two_packages_and_serves(tmp_path: Path) -> None:
    tests = service_tests()
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    built = subprocess.run(
        [sys.executable, "-m", "bentoml", "build", "--output", "tag"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert built.returncode == 0, built.stderr + built.stdout
    tag = built.stdout.strip().splitlines()[-1].removeprefix("__tag__:")
    name, version = tag.split(":")
    source = tmp_path / "bentoml" / "bentos" / name / version / "src"
    assert {path.name for path in source.iterdir() if path.is_dir()} == {"service", "perennial"}
    assert (source / "perennial" / "ledger" / "migrations" / "versions").is_dir()
    assert not list(source.rglob("__pycache__"))

    world = tests.make_world(tmp_path / "home")
    world.publish_live()
    command = ("-m", "bentoml", "serve", tag)
    away = tmp_path / "away"
    away.mkdir()
    # Only what is in the Bento may be imported, so the installed packages are hidden.
    hide = away / "sitecustomize.py"
    hide.write_text(
        "import sys\n"
        f"sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in getattr(f, '__name__', '').lower()]\n"
        f"sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]\n"
    )
    extra = {"BENTOML_HOME": environment["BENTOML_HOME"], "PYTHONPATH": str(away)}
    with tests.serving(world, command=command, extra=extra, folder=away) as server:
        assert server.predict(tests.picture("green"))["label"] == "green"
        worker = server.children()[0]
        assert worker.cwd() == str(source)
        listening = [each for each in worker.net_connections("inet") if each.status == "LISTEN"]
        assert {each.laddr.ip for each in listening} == {"127.0.0.1"}
        schema = server.http.get("/docs.json").json()
        assert "/classify" in schema["paths"]
    world.engine.dispose()


def test_the_bento_needs_what_the_base_install_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    bento = yaml.safe_load((ROOT / "bentofile.yaml").read_text("utf-8"))
    assert bento["python"]["packages"] == project["dependencies"]
    assert bento["service"] == "service.app:Perennial"


def test_a_bento_refuses_unknown_settings_like_everything_else(tmp_path: Path) -> None:
    broken = subprocess.run(
        [sys.executable, "-c", "import service.app"],
        cwd=tmp_path,
        env={**os.environ, "PERENNIAL_SERVE__PROT": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert broken.returncode != 0
    assert "serve.port" in broken.stderr


def test_the_service_brings_in_no_training_and_no_monitoring_library() -> None:
    heavy = [
        "torch",
        "torchvision",
        "pandas",
        "evidently",
        "sklearn",
        "scipy",
        "onnx",
        "alembic",
        "training",
        "monitoring",
    ]
    program = f"import sys, json, service.app; print(json.dumps([m for m in {heavy!r} if m in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(run.stdout) == []
