"""What Prometheus and Grafana are told: rules that promtool accepts, alerts that fire and clear, metrics that exist, a
runbook for each alert."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.prometheus_server import DEPLOY, RULES, needs_prometheus, rules

ROOT = DEPLOY.parent
ALERTS = rules("alerts.yml")
RECORDED = rules("recording.yml")
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
#: Prometheus' own, and its functions and keywords that look like metrics.
PROMETHEUS = {"up", "ALERTS"}
_LABELS = r"\{[^}]*\}"
_GROUPING = r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)"
_NAME = re.compile(r"(?<![\w$:.\"])([a-zA-Z_][\w:]*)(?![\w(:]|\s*\()")
_WORDS = {"and", "or", "unless", "by", "on", "group_left", "group_right", "bool", "offset", "m", "h", "d", "s"}


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("generator", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def metrics_of(query: str) -> set[str]:
    """The metrics that a query names."""
    bare = re.sub(_GROUPING, " ", re.sub(r"\[[^]]*\]", " ", re.sub(_LABELS, " ", query)))
    return {name for name in _NAME.findall(bare) if name not in _WORDS}


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=RULES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_promtool_accepts_configuration_and_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "recording.yml", "alerts.yml")


@needs_prometheus
@pytest.mark.parametrize("name", sorted(path.name for path in (RULES / "tests").glob("*.yml")))
def test_alerts_fire_and_clear(name: str) -> None:
    promtool("test", "rules", f"tests/{name}")


def test_every_alert_is_seen_firing_and_silent() -> None:
    firing: set[str] = set()
    silent: set[str] = set()
    known = {alert["alert"] for alert in ALERTS}
    for path in (RULES / "tests").glob("*.yml"):
        for test in yaml.safe_load(path.read_text("utf-8"))["tests"]:
            for case in test.get("alert_rule_test", []):
                (firing if case["exp_alerts"] else silent).add(case["alertname"])
            for case in test.get("promql_expr_test", []):
                asked = re.search(r'alertname=~?"([^"]*)"', case["expr"])
                if asked is None:
                    continue
                seen = {re.search(r'alertname="(\w+)"', each["labels"])[1] for each in case["exp_samples"]}  # type: ignore[index]
                firing |= seen
                silent |= {name for name in known if re.fullmatch(asked[1], name)} - seen
    assert firing == known
    assert silent == known


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_what_is_and_where_to_read_on(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    annotations = alert["annotations"]
    assert annotations["summary"]
    assert re.search(r"\{\{ \$(value|labels)", annotations["description"]), "a description has numbers or names"
    page, _, anchor = annotations["runbook_url"].partition("#")
    headings = re.findall(r"^## (\w+)$", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE)
    assert anchor == alert["alert"].lower()
    assert alert["alert"] in headings
    section = (ROOT / page).read_text("utf-8").split(f"\n## {alert['alert']}\n")[1].split("\n## ")[0]
    assert section.strip().startswith(f"**{alert['labels']['severity']}.**")
    assert "\n1. " in section, "a runbook says what to do, in order"


def test_there_is_no_runbook_without_an_alert() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbooks.md").read_text("utf-8"), flags=re.MULTILINE)
    assert headings == [alert["alert"] for alert in ALERTS]


def test_rules_and_dashboards_name_only_metrics_that_exist() -> None:
    known = load("docs/make_metrics_page.py").names() | {rule["record"] for rule in RECORDED} | PROMETHEUS
    used: dict[str, set[str]] = {}
    for rule in (*ALERTS, *RECORDED):
        used[rule.get("alert") or rule["record"]] = metrics_of(rule["expr"])
    for path in DASHBOARDS:
        document = json.loads(path.read_text("utf-8"))
        for panel in document["panels"]:
            for target in panel.get("targets", []):
                used[f"{path.name}: {panel['title']}"] = metrics_of(target["expr"])
        for each in document["annotations"]["list"]:
            used[f"{path.name}: {each['name']}"] = metrics_of(each["expr"])
        for variable in document["templating"]["list"]:
            if variable["type"] == "query":
                inner = re.fullmatch(r"label_values\((.*), \w+\)", variable["definition"])
                assert inner is not None
                used[f"{path.name}: ${variable['name']}"] = metrics_of(inner[1])
    for where, names in used.items():
        assert names, where
        assert names <= known, where


def test_the_names_in_a_query_are_found() -> None:
    query = 'sum by (job) (rate(a_total{route!~"/x|/y"}[5m])) / on (job) group_left (b) l:c:r > 3 * q unless e == 1'
    assert metrics_of(query) == {"a_total", "l:c:r", "q", "e"}


def test_the_dashboards_are_what_their_generator_writes() -> None:
    made = load("deploy/grafana/make_dashboards.py").DASHBOARDS
    assert {path.name for path in DASHBOARDS} == set(made)
    for path in DASHBOARDS:
        assert json.loads(path.read_text("utf-8")) == made[path.name], "run python deploy/grafana/make_dashboards.py"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_needs_nothing_but_grafana(path: Any) -> None:
    document = json.loads(path.read_text("utf-8"))
    assert document["schemaVersion"] >= 41
    assert document["uid"] == path.stem
    panels = document["panels"]
    assert {panel["type"] for panel in panels} <= {"row", "stat", "timeseries", "state-timeline"}
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"{panel['title']} lies on another panel"
        assert at["x"] + at["w"] <= 24
        taken |= cells
    names = {variable["name"] for variable in document["templating"]["list"]}
    asked = set(re.findall(r"\$(\w+)", json.dumps([panel.get("targets") for panel in panels])))
    assert asked - {"__rate_interval"} <= names


def test_grafana_is_given_the_dashboards_and_prometheus() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text("utf-8"))["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "perennial.yml").read_text("utf-8"))["providers"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    assert (provider["type"], provider["options"]["path"]) == ("file", "/var/lib/grafana/dashboards")


def test_docs_metrics_is_what_the_code_says() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    assert written == load("docs/make_metrics_page.py").page(), "run python docs/make_metrics_page.py"


def test_every_metric_is_said_what_it_means_and_has_few_labels() -> None:
    page = load("docs/make_metrics_page.py")
    says, itself = page.of_the_watcher()
    rows = [*page.of_the_service(), *says, *itself]
    assert len(rows) > 50
    for row in rows:
        assert row.name.startswith("perennial_")
        assert row.text.endswith("."), row.name
        assert (row.kind == "counter") == row.name.endswith("_total")
        assert not set(row.labels) & {"id", "path", "digest", "key", "client", "prediction_id"}, row.name
