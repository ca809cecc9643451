"""Writes deploy/grafana/dashboards/*.json: `python deploy/grafana/make_dashboards.py`. Core panels only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

SCHEMA: Final = 41
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
WIDTH: Final = 24  # of Grafana's grid
_FLAG: Final = {"0": {"text": "no", "color": "green"}, "1": {"text": "yes", "color": "orange"}}

Panel = dict[str, Any]
#: A query and its legend.
Query = tuple[str, str]

# What is asked of the service, of which there may be several replicas, and of one model's watcher.
SERVICE: Final = 'job=~"$job", instance=~"$instance"'
WATCHER: Final = 'job=~"$watcher_job", instance=~"$watcher"'
RATE: Final = "[$__rate_interval]"


def series(title: str, *queries: Query, unit: str = "short", width: int = 8, text: str = "", **more: Any) -> Panel:
    custom = {"fillOpacity": 10, "showPoints": "never", **more.pop("custom", {})}
    defaults = {"unit": unit, "custom": custom, **more.pop("defaults", {})}
    return _panel("timeseries", title, queries, width, 8, defaults, text, **more) | {
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    }


def stat(title: str, query: str, *, unit: str = "short", legend: str = "", flag: bool = False, text: str = "") -> Panel:
    defaults: dict[str, Any] = {"unit": unit, "color": {"mode": "thresholds"}, "thresholds": _plain("text")}
    if flag:
        defaults["mappings"] = [{"type": "value", "options": _FLAG}]
    return _panel("stat", title, [(query, legend)], 4, 4, defaults, text) | {
        "options": {
            "reduceOptions": {"calcs": ["lastNotNull"]},
            "colorMode": "value",
            "graphMode": "none",
            "textMode": "value_and_name" if legend else "value",
        }
    }


def states(title: str, query: Query, *, text: str = "") -> Panel:
    defaults = {
        "mappings": [{"type": "value", "options": {"0": {"text": " "}, "1": {"text": " "}}}],
        "color": {"mode": "thresholds"},
        "thresholds": {"mode": "absolute", "steps": [_step(None, "transparent"), _step(1, "blue")]},
        "custom": {"fillOpacity": 80, "lineWidth": 0},
    }
    return _panel("state-timeline", title, [query], 12, 8, defaults, text) | {
        "options": {"showValue": "never", "legend": {"showLegend": False}, "mergeValues": True}
    }


def with_band(title: str, source: str, *, text: str) -> Panel:
    """An accuracy with its interval, and the reference's."""
    of = f'{{{WATCHER}, source="{source}"}}'
    return series(
        title,
        (f"perennial_accuracy{of}", "accuracy"),
        (f"perennial_accuracy_high{of}", "high"),
        (f"perennial_accuracy_low{of}", "low"),
        (f"perennial_accuracy_reference{{{WATCHER}}}", "reference"),
        unit="percentunit",
        width=12,
        text=text,
        custom={"fillOpacity": 0},
        overrides=[
            _override("high", {"custom.fillBelowTo": "low", "custom.fillOpacity": 20, "custom.lineWidth": 0}),
            _override("low", {"custom.lineWidth": 0}),
            _override("reference", {"custom.lineStyle": {"fill": "dash", "dash": [6, 6]}}),
        ],
    )


def row(title: str) -> Panel:
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"h": 1, "w": WIDTH}}


def dashboard(uid: str, title: str, panels: Sequence[Panel], variables: Sequence[Panel]) -> dict[str, Any]:
    return {
        "uid": uid,
        "title": title,
        "tags": ["perennial"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_datasource(), *variables]},
        "annotations": {"list": ANNOTATIONS},
        "links": [{"type": "dashboards", "title": "Perennial", "tags": ["perennial"], "asDropdown": False}],
        "panels": list(_placed(panels)),
    }


def variable(name: str, label: str, query: str, *, many: bool) -> dict[str, Any]:
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": many,
        "includeAll": many,
        "allValue": ".*" if many else None,
        "current": {"text": "All", "value": "$__all"} if many else {},
    }


def _datasource() -> dict[str, Any]:
    return {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus", "current": {}}


def _annotation(name: str, query: str, colour: str, title: str) -> dict[str, Any]:
    return {
        "name": name,
        "datasource": SOURCE,
        "enable": True,
        "expr": query,
        "iconColor": colour,
        "titleFormat": title,
        "step": "60s",
        "useValueForTime": True,  # each value is a moment, in milliseconds
    }


def _panel(
    kind: str,
    title: str,
    queries: Sequence[Query],
    width: int,
    height: int,
    defaults: dict[str, Any],
    text: str,
    overrides: Sequence[Panel] = (),
) -> Panel:
    return {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": SOURCE,
        "gridPos": {"h": height, "w": width},
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
        "targets": [
            {"refId": chr(ord("A") + at), "datasource": SOURCE, "expr": query, "legendFormat": legend or "__auto"}
            for at, (query, legend) in enumerate(queries)
        ],
    }


def _override(name: str, properties: dict[str, Any]) -> Panel:
    found = [{"id": key, "value": value} for key, value in properties.items()]
    return {"matcher": {"id": "byName", "options": name}, "properties": found}


def _plain(colour: str) -> Panel:
    return {"mode": "absolute", "steps": [_step(None, colour)]}


def _step(value: float | None, colour: str) -> Panel:
    return {"value": value, "color": colour}


def _placed(panels: Sequence[Panel]) -> Iterator[Panel]:
    """From left to right and from top to bottom."""
    x = y = tallest = 0
    for number, panel in enumerate(panels, start=1):
        size = panel["gridPos"]
        if x + size["w"] > WIDTH:
            x, y, tallest = 0, y + tallest, 0
        yield {"id": number, **panel, "gridPos": {**size, "x": x, "y": y}}
        x, tallest = x + size["w"], max(tallest, size["h"])


JOBS: Final = [
    variable("job", "Service", "label_values(perennial_queue_limit, job)", many=True),
    variable("instance", "Instance", 'label_values(perennial_queue_limit{job=~"$job"}, instance)', many=True),
]
WATCHERS: Final = [
    variable("watcher_job", "Watchers", "label_values(perennial_check_interval_seconds, job)", many=True),
    variable(
        "watcher",
        "Watcher",
        'label_values(perennial_check_interval_seconds{job=~"$watcher_job"}, instance)',
        many=False,
    ),
]
ANNOTATIONS: Final = [
    _annotation("Deployments", "perennial_live_since_timestamp_seconds * 1000", "blue", "{{version}} live"),
    _annotation("Drift opened", "perennial_drift_opened_timestamp_seconds * 1000", "red", "drift opened"),
]


def quantile(share: float, metric: str, labels: str, by: str = "") -> str:
    return f"histogram_quantile({share}, sum by (le{by}) (rate({metric}_bucket{{{labels}}}{RATE})))"


MODEL: Final = [
    row("State"),
    stat("Drift open", f"max(perennial_drift_open{{{WATCHER}}})", flag=True),
    stat("Since the last check", f"time() - max(perennial_last_check_timestamp_seconds{{{WATCHER}}})", unit="s"),
    stat("Live", f"perennial_live_since_timestamp_seconds{{{WATCHER}}} * 1000", unit="dateTimeFromNow",
         legend="{{version}}"),
    stat("Retrain running", f"max(perennial_retrain_running{{{WATCHER}}})", flag=True),
    stat("Labelled rows in the window", f"max(perennial_labelled_rows{{{WATCHER}}})"),
    stat("Alerts", 'count(ALERTS{alertname=~"Perennial.*", alertstate="firing"}) or vector(0)'),
    row("Traffic"),
    series("Predictions by class", (f"sum by (label) (rate(perennial_predictions_total{{{SERVICE}}}{RATE}))",
           "{{label}}"), unit="reqps", custom={"stacking": {"mode": "normal"}}),
    series("Predictions by model", (f"sum by (model_version) (rate(perennial_predictions_total{{{SERVICE}}}{RATE}))",
           "{{model_version}}"), unit="reqps"),
    series("Confidence", *((quantile(share, "perennial_confidence", SERVICE), f"{share:.0%}")
           for share in (0.1, 0.5, 0.9)), unit="percentunit", text="Quantiles of the confidence of all answers."),
    row("Accuracy"),
    with_band("Accuracy by labels", "labels",
              text="Of the latest window, with its 95 % interval; empty below `monitor.min_labels` labels."),
    with_band("Accuracy, estimated without labels", "estimated",
              text="With its 95 % interval; empty where the check withholds it, as the window is too unlike the past."),
    row("Drift"),
    states("Verdict", (f"perennial_verdict{{{WATCHER}}}", "{{verdict}}"), text="Of the latest check."),
    series("Drift by family", (f'perennial_drift_score{{{WATCHER}, column=""}}', "{{family}}"), width=12,
           text="The effect that each family of tests found; its floor is a setting of [monitor]."),
    series("What moved most", (f'topk(10, perennial_drift_score{{{WATCHER}, column!=""}})', "{{family}} {{column}}"),
           width=12),
    series("Uploads that could not be read", (f"perennial_window_decode_failures{{{WATCHER}}}", "{{reason}}"), width=6),
    series("Window", (f"perennial_window_rows{{{WATCHER}}}", "rows"), (f"perennial_labelled_rows{{{WATCHER}}}",
           "labelled"), width=6),
    row("Retrains, gate, rollout"),
    series("Retrains", (f"perennial_retrains_total{{{WATCHER}}}", "{{outcome}}"),
           (f"perennial_rollbacks_total{{{WATCHER}}}", "rolled back by {{by}}"), width=6),
    series("In a row", (f"perennial_refusals_in_a_row{{{WATCHER}}}", "refused by the gate"),
           (f"perennial_retrain_failures_in_a_row{{{WATCHER}}}", "failed"), width=6),
    series("Retrain", (f"perennial_retrain_due{{{WATCHER}}}", "due by the latest check"),
           (f"perennial_retrain_running{{{WATCHER}}}", "running"),
           (f"perennial_rollout_running{{{WATCHER}}}", "rollout"), width=6),
    series("Share of a challenger", (f"max by (version) (perennial_rollout_share{{{SERVICE}}})", "{{version}}"),
           unit="percentunit", width=6),
    series("Labels received", (f"sum by (outcome) (rate(perennial_feedback_total{{{SERVICE}}}{RATE}))", "{{outcome}}"),
           unit="cps", width=6),
    series("Shadow", (f"sum by (outcome) (rate(perennial_shadow_total{{{SERVICE}}}{RATE}))", "{{outcome}}"),
           unit="cps", width=6),
    row("The watcher"),
    series("Checks", (f"sum by (verdict) (increase(perennial_checks_total{{{WATCHER}}}[1h]))", "{{verdict}}"), width=6,
           text="In an hour."),
    series("A check takes", (f"perennial_check_seconds{{{WATCHER}}}", "seconds"), unit="s", width=6),
    series("Work that failed", (f"sum by (child) (increase(perennial_watch_failures_total{{{WATCHER}}}[1h]))",
           "{{child}}"), width=6, text="In an hour."),
    series("Age of the last check", ("model:perennial_check_age:seconds", "{{model}}"), unit="s", width=6),
    series("Ledger", (f"perennial_ledger_up{{{WATCHER}}}", "up"), width=6),
]  # fmt: skip

SERVING: Final = [
    row("Requests"),
    series("By route", (f"sum by (route) (rate(perennial_requests_total{{{SERVICE}}}{RATE}))", "{{route}}"),
           unit="reqps"),
    series("By status", (f"sum by (status) (rate(perennial_requests_total{{{SERVICE}}}{RATE}))", "{{status}}"),
           unit="reqps", text="0: the client left before its answer."),
    series("Refused", (f"sum by (reason) (rate(perennial_rejected_total{{{SERVICE}}}{RATE}))", "{{reason}}"),
           unit="reqps"),
    series("Errors", (f"instance:perennial_errors:ratio_rate5m{{{SERVICE}}}", "{{instance}} failed"),
           (f"instance:perennial_overloaded:ratio_rate5m{{{SERVICE}}}", "{{instance}} full"), unit="percentunit",
           text="Share of the requests of 5 minutes."),
    series("Latency of predictions", *((quantile(share, "perennial_request_seconds", SERVICE +
           ', route="/v1/predict"'), f"{share:.0%}") for share in (0.5, 0.9, 0.99)), unit="s"),
    series("Latency by route, 99 %", (f"instance_route:perennial_request_seconds:p99_rate5m{{{SERVICE}}}",
           "{{instance}} {{route}}"), unit="s"),
    row("Where the time goes"),
    series("Mean by stage", (f"sum by (stage) (rate(perennial_stage_seconds_sum{{{SERVICE}}}{RATE})) / "
           f"sum by (stage) (rate(perennial_stage_seconds_count{{{SERVICE}}}{RATE}))", "{{stage}}"), unit="s",
           custom={"stacking": {"mode": "normal"}}),
    series("99 % by stage", (quantile(0.99, "perennial_stage_seconds", SERVICE, ", stage"), "{{stage}}"), unit="s"),
    series("Images in one inference", (f"sum(rate(perennial_batch_images_sum{{{SERVICE}}}{RATE})) / "
           f"sum(rate(perennial_batch_images_count{{{SERVICE}}}{RATE}))", "mean"),
           text="Where they are gathered for a GPU; empty on processors."),
    row("Queue and inference"),
    series("Queue", (f"perennial_queue_images{{{SERVICE}}}", "{{instance}} images"),
           (f"perennial_queue_limit{{{SERVICE}}}", "{{instance}} limit"),
           text="Looked at with each scrape: what is shorter than its interval shows in the 503s."),
    series("Inference processes started again", (f"increase(perennial_inference_restarts_total{{{SERVICE}}}[15m])",
           "{{instance}}"), text="In 15 minutes."),
    series("Models served", (f"perennial_live_model_info{{{SERVICE}}}", "{{instance}} {{version}} {{precision}}"),
           (f"increase(perennial_swaps_total{{{SERVICE}, outcome=\"failed\"}}[15m])", "{{instance}} failed swaps")),
    row("What is recorded"),
    series("Rows that wait for the ledger", (f"perennial_recorder_pending_rows{{{SERVICE}}}", "{{instance}}"),
           width=6),
    series("The ledger is behind", (f"perennial_recorder_behind_seconds{{{SERVICE}}}", "{{instance}}"), unit="s",
           width=6),
    series("Captured images", (f"sum by (outcome) (rate(perennial_captures_total{{{SERVICE}}}{RATE}))", "{{outcome}}"),
           unit="cps", width=6),
    series("Images that wait for the storage", (f"perennial_recorder_pending_captures{{{SERVICE}}}", "{{instance}}"),
           width=6),
    series("Disk of the journal", (f"perennial_disk_free_bytes{{{SERVICE}}}", "{{instance}} free"),
           (f"perennial_disk_min_free_bytes{{{SERVICE}}}", "{{instance}} kept free"), unit="bytes", width=12),
    series("Refused by the ledger", (f"increase(perennial_recorder_refused_rows_total{{{SERVICE}}}[1h])",
           "{{instance}}"), width=6, text="Rows in an hour; they are kept in refused.jsonl."),
    series("Access log", (f"rate(perennial_access_log_dropped_total{{{SERVICE}}}{RATE})", "{{instance}} dropped"),
           unit="cps", width=6),
]  # fmt: skip

DASHBOARDS: Final = {
    "perennial.json": dashboard("perennial", "Perennial", MODEL, [*WATCHERS, *JOBS]),
    "perennial-service.json": dashboard("perennial-service", "Perennial service", SERVING, JOBS),
}

if __name__ == "__main__":
    for name, document in DASHBOARDS.items():
        path = Path(__file__).with_name("dashboards") / name
        path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
