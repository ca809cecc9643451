"""Both images, as far as they can be checked without an engine that builds them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
INSTRUCTIONS = re.sub(r"^\s*#.*$", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")

STAGES = {
    match[2] or "": match[0].partition("\n")[2]
    for match in re.finditer(r"^FROM (\S+)(?: AS (\S+))?\n(?:(?!FROM ).*\n?)*", INSTRUCTIONS, flags=re.MULTILINE)
}
#: What each image is made of: its own stage, those that it stands on, and those that it takes its packages from.
SERVING = "\n".join(STAGES[stage] for stage in ("source", "build", "runtime", ""))
WATCHER = "\n".join(STAGES[stage] for stage in ("source", "build-watcher", "runtime", "watcher"))


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
    assert {"training/", "monitoring/"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source


def test_the_image_installs_the_base_package_only_at_the_pinned_versions() -> None:
    (install,) = re.findall(r"pip install [^\n]*", SERVING)
    assert "--constraint constraints.txt" in install
    assert install.rstrip().endswith('".${EXTRAS}"')
    assert 'ARG EXTRAS=""' in SERVING
    assert not re.search(r"torch|evidently|\[train|\[monitor|training/|monitoring/", SERVING)
    assert STAGES[""].lstrip().startswith("COPY --from=build ")


def test_the_watchers_image_installs_what_checks_and_trains_at_the_pinned_versions() -> None:
    (install,) = re.findall(r"pip install [^\n]*", WATCHER)
    assert "--constraint constraints.txt" in install
    assert install.rstrip().endswith('".${WATCHER_EXTRAS}"')
    assert 'ARG WATCHER_EXTRAS="[monitor,train]"' in WATCHER
    assert "COPY --from=build-watcher " in STAGES["watcher"]
    assert "PERENNIAL_MONITOR__HOST=0.0.0.0" in STAGES["watcher"]
    assert 'CMD ["perennial", "watch"]' in STAGES["watcher"]


def test_the_serving_image_is_the_one_that_is_built_where_none_is_named() -> None:
    assert list(STAGES)[-1] == ""
    assert 'CMD ["perennial", "serve"]' in STAGES[""]
    assert "PERENNIAL_SERVE__HOST=0.0.0.0" in STAGES[""]


@pytest.mark.parametrize("image", [SERVING, WATCHER], ids=["serving", "watcher"])
def test_the_images_run_as_nobody_special_and_restart_their_workers(image: str) -> None:
    assert re.search(r"^USER (?!root)\w+", image, flags=re.MULTILINE)
    assert "BENTOML_CONTAINERIZED" not in INSTRUCTIONS
    home = re.search(r"PERENNIAL_HOME=(\S+)", image)
    assert home is not None
    assert f"BENTOML_HOME={home[1]}/" in image
    assert f"--home-dir {home[1]}" in image
    assert "BENTOML_DO_NOT_TRACK=True" in image
    assert "HEALTHCHECK" in image
    assert "curl" not in image
