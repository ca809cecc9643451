"""What `deploy/` holds for systemd, Kubernetes and cron names commands, settings, ports and paths that there are."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from perennial import schedule
from perennial.settings import Settings, known_keys, load_settings
from perennial.settings_sections import ReadPath, ServeSettings
from tests.documented_commands import parse

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy" / "systemd").iterdir())
MANIFESTS = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
CRONTAB = ROOT / "deploy" / "cron" / "perennial.crontab"
VARIABLES = {f"PERENNIAL_{key.replace('.', '__')}".upper() for key in known_keys()} | {"PERENNIAL_CONFIG"}


def unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """A unit's sections; a key may stand there several times."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return found


def objects() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in MANIFESTS:
        for each in yaml.safe_load_all(path.read_text("utf-8")):
            yield path.name, each


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, each in objects():
        spec = each.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield f"{name} {each['kind']}", spec["template"]["spec"]


def test_every_unit_runs_a_command_that_there_is_under_a_user_of_its_own() -> None:
    assert [path.name for path in UNITS] == [
        "perennial-monitor.service", "perennial-monitor.timer", "perennial-watch.service", "perennial.service",
    ]  # fmt: skip
    for path in UNITS:
        found = unit(path)
        if path.suffix == ".timer":
            continue
        service = found["Service"]
        for line in service["ExecStart"]:
            assert line.startswith("/opt/perennial/bin/perennial ")
            parse(shlex.split(line))
        for line in service["Environment"]:
            names = {word.partition("=")[0] for word in line.split()}
            assert {name for name in names if name.startswith("PERENNIAL_")} <= VARIABLES
        for key, value in {
            "User": "perennial", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "StateDirectory": "perennial",
            "CapabilityBoundingSet": "", "KillSignal": "SIGTERM",
        }.items():  # fmt: skip
            assert service[key] == [value], f"{path.name}: {key}"
        assert service.get("Restart", []) == ([] if "oneshot" in service["Type"] else ["on-failure"])
    service = unit(ROOT / "deploy" / "systemd" / "perennial.service")["Service"]
    longest = max(each.le for each in ServeSettings.model_fields["drain_timeout"].metadata if hasattr(each, "le"))
    assert float(service["TimeoutStopSec"][0]) > longest


def test_systemd_finds_no_fault_in_the_units_and_calls_them_safe(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed; the test before this one reads the units")
    program = tmp_path / "perennial"
    program.write_text(f"#!{sys.executable}\n", "utf-8")
    program.chmod(0o755)
    for path in UNITS:
        text = path.read_text("utf-8").replace("/opt/perennial/bin/perennial", str(program))
        (tmp_path / path.name).write_text(text, "utf-8")
    copies = [tmp_path / path.name for path in UNITS]
    done = subprocess.run(["systemd-analyze", "verify", *copies], capture_output=True, text=True, check=False)
    faults = [line for line in done.stderr.splitlines() if "perennial" in line]
    assert (done.returncode, faults) == (0, []), done.stderr
    for copy in copies:
        if copy.suffix == ".service":
            rating = subprocess.run(
                ["systemd-analyze", "security", "--offline=true", "--threshold=30", copy],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert rating.returncode == 0, rating.stdout  # an exposure of at most 3.0 of 10


def test_every_pod_runs_commands_that_there_are_with_settings_that_there_are() -> None:
    ran = set()
    for name, pod in pods():
        assert pod["enableServiceLinks"] is False, f"{name}: Kubernetes would set PERENNIAL_* variables of its own"
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            words = container["command"]
            if words[0] == "/bin/sh":
                assert subprocess.run([*words[:1], "-n", *words[1:], *container["args"]], check=False).returncode == 0
                lines = [line.removeprefix("run ") for line in container["args"][0].splitlines()]
                commands = [shlex.split(line) for line in lines if line.startswith("perennial ")]
            else:
                commands = [words]
            for command in commands:
                parse(command)
                ran.add(" ".join(command))
            names = {each["name"] for each in container["env"]}
            assert names <= VARIABLES
            volumes = {each["name"] for each in pod["volumes"]} | {"home"}
            assert {each["name"] for each in container["volumeMounts"]} <= volumes
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert {"perennial serve", "perennial watch", "perennial monitor", "perennial retrain --if-due"} <= ran


def test_probes_ask_for_paths_and_ports_that_there_are() -> None:
    settings = Settings()
    known = {"perennial": settings.serve.port, "perennial-watcher": settings.monitor.port}
    asked = set()
    for name, pod in pods():
        for container in pod["containers"]:
            image = container["image"].partition(":")[0]
            ports = {each["name"]: each["containerPort"] for each in container.get("ports", [])}
            assert set(ports.values()) <= {known[image]}, name
            for probe in (container.get(kind) for kind in ("startupProbe", "livenessProbe", "readinessProbe")):
                if probe is not None:
                    assert probe["httpGet"]["port"] in ports
                    asked.add(probe["httpGet"]["path"])
    assert asked == {"/livez", "/readyz", "/metrics"}
    assert asked <= set(get_args(ReadPath))
    service = next(each for _, each in objects() if each["kind"] == "Service")
    assert service["spec"]["ports"][0]["port"] == settings.serve.port


def test_the_objects_of_kubernetes_name_one_another() -> None:
    everything = [each for _, each in objects()]
    kinds = {each["kind"] for each in everything}
    assert {"ConfigMap", "Service", "StatefulSet", "PersistentVolumeClaim", "Deployment", "CronJob"} == kinds
    maps = {each["metadata"]["name"] for each in everything if each["kind"] == "ConfigMap"}
    claims = {each["metadata"]["name"] for each in everything if each["kind"] == "PersistentVolumeClaim"}
    for _, pod in pods():
        for volume in pod["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims | {"training-data"}
    for each in everything:
        if each["kind"] in ("Deployment", "StatefulSet"):
            labels = each["spec"]["template"]["metadata"]["labels"]
            assert each["spec"]["selector"]["matchLabels"].items() <= labels.items()
        if each["kind"] == "CronJob":
            schedule.check(each["spec"]["schedule"])
            assert (each["spec"]["timeZone"], each["spec"]["concurrencyPolicy"]) == ("Etc/UTC", "Forbid")


def test_the_settings_of_kubernetes_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERENNIAL_TRAIN__THREADS", raising=False)
    path = tmp_path / "perennial.toml"
    path.write_text(
        next(each for _, each in objects() if each["kind"] == "ConfigMap")["data"]["perennial.toml"], "utf-8"
    )
    assert load_settings(path).retrain.data == tomllib.loads(path.read_text("utf-8"))["retrain"]["data"] == "/data"


@pytest.mark.parametrize(("monitor", "code"), [(0, 0), (4, 0), (1, 1)])
def test_a_cron_job_does_every_part_and_fails_only_where_one_did(tmp_path: Path, monitor: int, code: int) -> None:
    stub = tmp_path / "perennial"
    stub.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/ran\n'
        f"case $1 in monitor) exit {monitor} ;; retrain) exit 11 ;; *) exit 4 ;; esac\n"
    )
    stub.chmod(0o755)
    container = next(pod["containers"][0] for name, pod in pods() if "CronJob" in name)
    command = [*container["command"], *container["args"]]
    done = subprocess.run(command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False)
    assert done.returncode == code
    assert (tmp_path / "ran").read_text().splitlines() == [
        "models rollback --if-worse", "monitor", "rollout advance", "retrain --if-due", "prune", "notify",
    ]  # fmt: skip


def test_every_line_of_the_crontab_is_a_time_and_a_command() -> None:
    commands = 0
    for line in CRONTAB.read_text("utf-8").splitlines():
        variable = re.match(r"([A-Z_]+)=", line)
        if variable is not None:
            assert not variable[1].startswith("PERENNIAL_") or variable[1] in VARIABLES
        elif line and not line.startswith("#"):
            *times, user, command = re.split(r"\s+", line, maxsplit=6)
            schedule.check(" ".join(times))
            assert user == "perennial"
            assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0
            parse(shlex.split(command[command.rindex("perennial ") :].partition(" ||")[0]))
            commands += 1
    assert commands == 2
