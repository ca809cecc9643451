"""The serving image, as far as it can be checked without an engine that builds it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
INSTRUCTIONS = re.sub(r"^\s*#.*$", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~;\[ ]", requirement, maxsplit=1)[0].lower()


def test_the_base_install_has_no_training_and_no_monitoring_library() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    base = {name_of(requirement) for requirement in project["dependencies"]}
    assert not base & {"torch", "torchvision", "pandas", "evidently", "scikit-learn", "scipy", "onnx", "apscheduler"}


def test_every_base_dependency_is_pinned_for_the_image() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pinned = {
        name_of(line).replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    }
    assert {name_of(requirement) for requirement in project["dependencies"]} <= pinned


def test_everything_the_image_copies_exists_and_is_sent_to_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", INSTRUCTIONS, flags=re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert {"pyproject.toml", "constraints.txt", "perennial/", "service/", "commands/"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source


def test_the_image_installs_the_base_package_only_at_the_pinned_versions() -> None:
    (install,) = re.findall(r"pip install [^\n]*", INSTRUCTIONS)
    assert "--constraint constraints.txt" in install
    assert install.rstrip().endswith('".${EXTRAS}"')
    assert 'ARG EXTRAS=""' in INSTRUCTIONS
    assert not re.search(r"torch|evidently|\[train|\[monitor", INSTRUCTIONS)


def test_the_image_runs_as_nobody_special_and_restarts_its_workers() -> None:
    stages = INSTRUCTIONS.split("\nFROM ")
    last = stages[-1]
    assert re.search(r"^USER (?!root)\w+", last, flags=re.MULTILINE)
    assert "BENTOML_CONTAINERIZED" not in INSTRUCTIONS
    home = re.search(r"PERENNIAL_HOME=(\S+)", last)
    assert home is not None
    assert f"BENTOML_HOME={home[1]}/" in last
    assert f"--home-dir {home[1]}" in last
    assert "BENTOML_DO_NOT_TRACK=True" in last
    assert "PERENNIAL_SERVE__HOST=0.0.0.0" in last
    assert "HEALTHCHECK" in last
    assert "curl" not in last
    assert 'CMD ["perennial", "serve"]' in last
