"""The watcher's metrics, read from the ledger at each scrape: they outlive a restart and agree with the audit trail.

Neither evidently nor pandas is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from monitoring.verdict import Verdict
from perennial.errors import InvalidImage, PerennialError
from perennial.ledger import EventKind, checks, deployments, events, watches

#: How retrains end, and the events that say so.
OUTCOMES: Final = {
    "promoted": EventKind.GATE_PASSED,
    "refused": EventKind.GATE_REFUSED,
    "failed": EventKind.RETRAIN_FAILED,
}
#: What an image can be refused for.
IMAGE_PROBLEMS: Final = tuple(sorted({InvalidImage.slug, *(kind.slug for kind in InvalidImage.__subclasses__())}))


class LedgerCollector(Collector):
    """Reads one model's checks and events. While the ledger is away only `perennial_ledger_up` is given."""

    def __init__(self, open_engine: Callable[[], sa.Engine], name: str) -> None:
        self._open_engine = open_engine
        self._name = name

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("perennial_ledger_up", "Whether the ledger answered this scrape.")
        try:
            engine = self._open_engine()
            latest = checks.latest(engine, self._name)
            by_verdict = checks.count_by_verdict(engine, self._name)
            by_kind = events.count_by_kind(engine, self._name)
            rollbacks = deployments.count_rollbacks(engine, self._name)
        except PerennialError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from _counters(by_verdict, by_kind, rollbacks)
        if latest:
            yield from _gauges(latest[0])


def registry(open_engine: Callable[[], sa.Engine], name: str) -> CollectorRegistry:
    """A registry with the metrics of one model, separate from the service's.

    Args:
        open_engine: gives the ledger; may raise LedgerUnavailable.
    """
    found = CollectorRegistry()
    found.register(LedgerCollector(open_engine, name))
    return found


def _counters(by_verdict: dict[str, int], by_kind: dict[EventKind, int], by_actor: dict[str, int]) -> Iterator[Metric]:
    counted = CounterMetricFamily("perennial_checks", "Checks so far, by verdict.", labels=["verdict"])
    for verdict in Verdict:
        counted.add_metric([str(verdict)], by_verdict.get(str(verdict), 0))
    yield counted
    retrains = CounterMetricFamily("perennial_retrains", "Retrains so far, by outcome.", labels=["outcome"])
    for outcome, kind in OUTCOMES.items():
        retrains.add_metric([outcome], by_kind.get(kind, 0))
    yield retrains
    rollbacks = CounterMetricFamily(
        "perennial_rollbacks", "Rollbacks so far: by the watch over what went live, or by a person.", labels=["by"]
    )
    by_itself = by_actor.get(watches.ACTOR, 0)
    rollbacks.add_metric(["watch"], by_itself)
    rollbacks.add_metric(["person"], sum(by_actor.values()) - by_itself)
    yield rollbacks


def _gauges(check: checks.CheckRow) -> Iterator[Metric]:
    detail = check.detail
    verdict = GaugeMetricFamily("perennial_verdict", "The latest check's verdict: 1, the others 0.", labels=["verdict"])
    for known in Verdict:
        verdict.add_metric([str(known)], float(check.verdict == known))
    yield verdict
    yield _gauge("perennial_window_rows", "Rows in the latest check's window.", check.window["rows"])
    failures = GaugeMetricFamily(
        "perennial_window_decode_failures",
        "Images that could not be read since the latest check's window began, by the slug of the problem.",
        labels=["reason"],
    )
    by_reason = (detail.get("collection") or {}).get("failures", {}).get("by_reason", {})  # older checks have none
    for reason in IMAGE_PROBLEMS:
        failures.add_metric([reason], by_reason.get(reason, 0))
    yield failures
    yield _gauge("perennial_check_seconds", "How long the latest check took.", detail["seconds"])
    yield _gauge(
        "perennial_last_check_timestamp_seconds", "When the latest check was made (Unix time).", check.at.timestamp()
    )
    yield _gauge(
        "perennial_retrain_due", "Whether the latest check calls for a retrain.", float(detail["retrain"]["due"])
    )
    scores = GaugeMetricFamily(
        "perennial_drift_score",
        "Effect of the latest check by family (column empty) and by column.",
        labels=["family", "column"],
    )
    for family, found in detail["families"].items():
        scores.add_metric([family, ""], found["score"])
        for column, numbers in found["columns"].items():
            scores.add_metric([family, column], numbers["effect"])
    yield scores
    for suffix, key in (("", "value"), ("_low", "low"), ("_high", "high")):
        accuracy = GaugeMetricFamily(
            f"perennial_accuracy{suffix}", f"Accuracy of the latest window ({key}).", labels=["source"]
        )
        for source in ("labels", "estimated"):
            estimate = detail["accuracy"][source]
            if estimate is not None:
                accuracy.add_metric([source], estimate[key])
        yield accuracy
    yield _gauge(
        "perennial_accuracy_estimate_withheld",
        "Whether the latest check withholds its estimate of accuracy.",
        bool(detail["accuracy"].get("withheld")),
    )


def _gauge(name: str, text: str, value: Any) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))
