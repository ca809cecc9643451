"""Writes docs/metrics.md from the metrics themselves: `python docs/make_metrics_page.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prometheus_client.metrics import MetricWrapperBase

import monitoring.metrics
import monitoring.watch_metrics
import service.metrics
from monitoring.metric_families import Declared
from service.gathering import GatheredCounter, GatheredHistogram, GatheredHistograms

HEAD: Final = """# Metrics

All that Perennial shows to Prometheus: the service at `GET /metrics` of `serve.port`, summed over its workers; the
watcher at `http://HOST:PORT/metrics` of `monitor.host` and `monitor.port`. Names and labels are promises
(`CHANGELOG.md`). A label has few values: never an id, a path or a digest. A histogram is there as `_bucket`, `_sum` and
`_count`. How to scrape, show and alert on them: [operations.md](operations.md). What to do when an alert fires:
[runbooks.md](runbooks.md). This page is written by `python docs/make_metrics_page.py`.
"""
SERVICE: Final = """
## The service

Counters begin at 0 with each start of the server. Gauges of several workers are added up, or the largest is shown, as
the meaning says.
"""
WATCHER: Final = """
## The watcher: what the ledger says

Read from the ledger at each scrape, so that they outlive a restart, and are the same from whichever watcher of the
model. While the ledger is away only `perennial_ledger_up` is there. What speaks of the latest check is absent before
the first.
"""
WATCHING: Final = """
## The watcher: what it says of itself

Of this process, so a watcher that was killed says nothing: the alert `PerennialMonitorStale` goes by what it said last.
"""
TAIL: Final = """
## Not ours

The service's page has BentoML's `bentoml_service_request_duration_seconds`, `bentoml_service_request_total`,
`bentoml_service_request_in_progress` and `bentoml_service_last_request_timestamp_seconds` too. They do not see all:
`POST /v1/predict` goes past them, and so does whatever is refused at the edge (keys, limits, unknown paths, a full
queue). Go by `perennial_requests_total` and `perennial_request_seconds`, which see every request. Prometheus adds `up`
and `scrape_duration_seconds` to each target.
"""
#: By the end of a name without `_total`, the first that fits.
UNITS: Final = (
    ("timestamp_seconds", "Unix seconds"), ("seconds", "seconds"), ("bytes", "bytes"), ("images", "images"),
    ("captures", "images"), ("decode_failures", "images"), ("queue_limit", "images"),
    ("rows", "rows"), ("info", "1"), ("confidence", "0..1"), ("share", "0..1"), ("drop_limit", "0..1"),
)  # fmt: skip
RATIOS: Final = tuple(f"perennial_accuracy{end}" for end in ("", "_low", "_high", "_reference"))
FLAGS: Final = ("perennial_verdict", "perennial_accuracy_estimate_withheld", "perennial_retrain_due")
ON_OR_OFF: Final = ("_up", "_open", "_running")


@dataclass(frozen=True, slots=True)
class Row:
    """One metric, by the name that a query uses for it (a histogram's is without `_bucket`)."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str

    @property
    def unit(self) -> str:
        name = self.name.removesuffix("_total")
        if name in RATIOS:
            return "0..1"
        if name in FLAGS or name.endswith(ON_OR_OFF):
            return "0 or 1"
        if name == "perennial_drift_score":
            return "effect"
        return next((unit for end, unit in UNITS if name.endswith(end)), "count")


def of_the_service() -> list[Row]:
    """In the order in which `service/metrics.py` has them."""
    found: dict[str, Row] = {}
    for value in vars(service.metrics).values():
        wrapper = _wrapper(value)
        if wrapper is None or wrapper._labelvalues:  # one of a family, which is listed by itself
            continue
        for metric in wrapper.describe():
            name = metric.name + ("_total" if metric.type == "counter" else "")
            found.setdefault(name, Row(name, metric.type, tuple(wrapper._labelnames), metric.documentation))
    return list(found.values())


def of_the_watcher() -> tuple[list[Row], list[Row]]:
    """What the ledger says, and what the watcher says of itself."""
    return [*map(_row, monitoring.metrics.DECLARED)], [*map(_row, monitoring.watch_metrics.DECLARED)]


def names() -> set[str]:
    """Every name of a sample that a query may use."""
    found: set[str] = set()
    ledger, itself = of_the_watcher()
    for row in (*of_the_service(), *ledger, *itself):
        parts = ("_bucket", "_sum", "_count") if row.kind == "histogram" else ("",)
        found.update(row.name + part for part in parts)
    return found


def page() -> str:
    ledger, itself = of_the_watcher()
    tables = [SERVICE, _table(of_the_service()), WATCHER, _table(ledger), WATCHING, _table(itself), TAIL]
    return HEAD + "".join(tables)


def _table(rows: list[Row]) -> str:
    return "\n| metric | type | labels | unit | meaning |\n| --- | --- | --- | --- | --- |\n" + "".join(_lines(rows))


def _lines(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        yield f"| `{row.name}` | {row.kind} | {labels} | {row.unit} | {row.text} |\n"


def _row(metric: Declared) -> Row:
    name = metric.name + ("_total" if metric.kind == "counter" else "")
    return Row(name, metric.kind, metric.labels, metric.text)


def _wrapper(value: Any) -> MetricWrapperBase | None:
    if isinstance(value, GatheredCounter):
        return value._counter
    if isinstance(value, GatheredHistograms):
        return value._family
    if isinstance(value, GatheredHistogram):
        return value._histogram
    return value if isinstance(value, MetricWrapperBase) else None


if __name__ == "__main__":
    Path(__file__).with_name("metrics.md").write_text(page(), "utf-8")
