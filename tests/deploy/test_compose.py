"""compose.yaml, as far as it can be checked without an engine that starts it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from perennial.settings import known_keys

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "compose.yaml").read_text("utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXAMPLE = (ROOT / ".env.example").read_text("utf-8")
SETTINGS = {f"PERENNIAL_{key.replace('.', '__')}".upper() for key in known_keys()}


def test_it_starts_all_five() -> None:
    assert set(SERVICES) == {"service", "watcher", "postgres", "prometheus", "grafana"}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_each_is_watched_over_and_started_again(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"]
    assert service["restart"] == "unless-stopped"
    if "build" not in service:
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+(\.\d+)?", service["image"]), "an image is pinned by its tag"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_each_mounts_what_exists(name: str) -> None:
    for mount in SERVICES[name]["volumes"]:
        source, target = re.fullmatch(r"((?:\$\{[^}]*\}|[^:])+):([^:]+)(?::ro)?", mount).groups()  # type: ignore[union-attr]
        assert target.startswith("/")
        if source.startswith("./"):
            assert (ROOT / source).is_dir(), source
            assert mount.endswith(":ro")
        elif not source.startswith("${"):
            assert source in COMPOSE["volumes"], source
    named = {volume.partition(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    assert set(COMPOSE["volumes"]) <= named


def test_what_waits_for_another_waits_until_it_is_healthy() -> None:
    for service in SERVICES.values():
        for other, condition in service.get("depends_on", {}).items():
            assert other in SERVICES
            assert condition == {"condition": "service_healthy"}


def test_the_settings_are_settings() -> None:
    found = {key for service in SERVICES.values() for key in service.get("environment", {}) if "PERENNIAL" in key}
    assert {"PERENNIAL_DATABASE_URL", "PERENNIAL_NAME", "PERENNIAL_RETRAIN__DATA"} <= found <= SETTINGS


def test_no_secret_is_in_it_and_every_variable_is_explained() -> None:
    variables = set(re.findall(r"\$\{(\w+)", TEXT))
    assert variables == set(re.findall(r"^(\w+)=", EXAMPLE, flags=re.MULTILINE))
    for name in variables:
        if "PASSWORD" in name:
            assert re.search(rf"^{name}=$", EXAMPLE, flags=re.MULTILINE), "an example is no password"
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            if "PASSWORD" in key:
                assert re.fullmatch(r"\$\{\w+:\?.*\}", value), "a secret is required, and comes from outside"
    assert ".env" in (ROOT / ".gitignore").read_text("utf-8").splitlines()


def test_no_port_is_open_beyond_this_machine() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == len(set(ports)) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_prometheus_scrapes_its_services_at_the_ports_of_their_images() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text("utf-8"))
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert targets == {"perennial": ["service:3000"], "perennial-watcher": ["watcher:3001"]}
    for (target,) in targets.values():
        host, _, port = target.partition(":")
        assert host in SERVICES
        assert f"EXPOSE {port}\n" in dockerfile
        assert f"127.0.0.1:{port}/" in SERVICES[host]["healthcheck"]["test"][-1]
    assert SERVICES["grafana"]["environment"]["PROMETHEUS_URL"] == "http://prometheus:9090"


def test_the_images_that_are_built_are_stages_of_the_dockerfile() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    for name in ("service", "watcher"):
        build = SERVICES[name]["build"]
        assert (ROOT / build["context"]).resolve() == ROOT
        if "target" in build:
            assert re.search(rf"^FROM \S+ AS {build['target']}$", dockerfile, flags=re.MULTILINE)
        for argument, extras in build["args"].items():
            assert f"ARG {argument}=" in dockerfile
            assert "postgres" in extras
