"""The watcher's metrics, read from the ledger at each scrape: they outlive a restart and agree with the audit trail.

Neither evidently nor pandas is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from monitoring.metric_families import Declared, Scrape
from monitoring.verdict import Verdict
from perennial.errors import InvalidImage, NoLiveModel, PerennialError
from perennial.ledger import EventKind, checks, deployments, events, leases, rollouts, watches
from perennial.ledger.deployments import Deployment
from perennial.ledger.events import Event
from perennial.ledger.rollouts import Rollout

#: How retrains end, and the events that say so.
OUTCOMES: Final = {
    "promoted": EventKind.GATE_PASSED,
    "refused": EventKind.GATE_REFUSED,
    "failed": EventKind.RETRAIN_FAILED,
}
#: What an image can be refused for.
IMAGE_PROBLEMS: Final = tuple(sorted({InvalidImage.slug, *(kind.slug for kind in InvalidImage.__subclasses__())}))

UP: Final = Declared("gauge", "perennial_ledger_up", "Whether the ledger answered this scrape.")
CHECKS: Final = Declared("counter", "perennial_checks", "Checks so far, by verdict.", ("verdict",))
RETRAINS: Final = Declared("counter", "perennial_retrains", "Retrains so far, by outcome.", ("outcome",))
ROLLBACKS: Final = Declared(
    "counter", "perennial_rollbacks", "Rollbacks so far: by the watch over what went live, or by a person.", ("by",)
)
REFUSALS_IN_A_ROW: Final = Declared(
    "gauge", "perennial_refusals_in_a_row", "Challengers that the gate has refused since it last let one pass."
)
FAILURES_IN_A_ROW: Final = Declared(
    "gauge", "perennial_retrain_failures_in_a_row", "Retrains that have failed since one last came as far as the gate."
)
RETRAIN_RUNNING: Final = Declared("gauge", "perennial_retrain_running", "Whether a retrain runs now, on any machine.")
LIVE_SINCE: Final = Declared(
    "gauge", "perennial_live_since_timestamp_seconds", "When the live version went live (Unix time).", ("version",)
)
DRIFT_OPEN: Final = Declared("gauge", "perennial_drift_open", "Whether drift was opened and not closed since.")
DRIFT_OPENED_AT: Final = Declared(
    "gauge", "perennial_drift_opened_timestamp_seconds", "Since when drift is open (Unix time); absent while none is."
)
ROLLOUT_RUNNING: Final = Declared("gauge", "perennial_rollout_running", "Whether a challenger goes live in stages now.")
ROLLOUT_STAGE_AT: Final = Declared(
    "gauge",
    "perennial_rollout_stage_timestamp_seconds",
    "Since when it is at its present stage (Unix time); absent while none is rolled out.",
)
VERDICT: Final = Declared("gauge", "perennial_verdict", "The latest check's verdict: 1, the others 0.", ("verdict",))
WINDOW_ROWS: Final = Declared("gauge", "perennial_window_rows", "Rows in the latest check's window.")
LABELLED_ROWS: Final = Declared(
    "gauge", "perennial_labelled_rows", "Rows of the latest check's window that have a label."
)
DECODE_FAILURES: Final = Declared(
    "gauge",
    "perennial_window_decode_failures",
    "Images that could not be read since the latest check's window began, by the slug of the problem.",
    ("reason",),
)
CHECK_SECONDS: Final = Declared("gauge", "perennial_check_seconds", "How long the latest check took.")
LAST_CHECK_AT: Final = Declared(
    "gauge", "perennial_last_check_timestamp_seconds", "When the latest check was made (Unix time)."
)
RETRAIN_DUE: Final = Declared("gauge", "perennial_retrain_due", "Whether the latest check calls for a retrain.")
DRIFT_SCORE: Final = Declared(
    "gauge",
    "perennial_drift_score",
    "Effect of the latest check by family (column empty) and by column.",
    ("family", "column"),
)
ACCURACY: Final = Declared(
    "gauge",
    "perennial_accuracy",
    "Accuracy of the latest window, by labels (from `monitor.min_labels` of them) and as estimated without.",
    ("source",),
)
ACCURACY_LOW: Final = Declared("gauge", "perennial_accuracy_low", "Its 95 % interval's lower end.", ("source",))
ACCURACY_HIGH: Final = Declared("gauge", "perennial_accuracy_high", "Its 95 % interval's upper end.", ("source",))
ACCURACY_REFERENCE: Final = Declared(
    "gauge", "perennial_accuracy_reference", "Accuracy of the live model on its reference's held-out rows."
)
WITHHELD: Final = Declared(
    "gauge",
    "perennial_accuracy_estimate_withheld",
    "Whether the latest check withholds its estimate of accuracy.",
)
#: All of them, in the order of the page.
DECLARED: Final = (
    UP, VERDICT, CHECKS, LAST_CHECK_AT, CHECK_SECONDS, WINDOW_ROWS, LABELLED_ROWS, DECODE_FAILURES,
    DRIFT_OPEN, DRIFT_OPENED_AT, DRIFT_SCORE,
    ACCURACY, ACCURACY_LOW, ACCURACY_HIGH, ACCURACY_REFERENCE, WITHHELD,
    RETRAIN_DUE, RETRAIN_RUNNING, RETRAINS, FAILURES_IN_A_ROW, REFUSALS_IN_A_ROW,
    LIVE_SINCE, ROLLBACKS, ROLLOUT_RUNNING, ROLLOUT_STAGE_AT,
)  # fmt: skip


class LedgerCollector(Collector):
    """Reads one model's checks and events. While the ledger is away only `perennial_ledger_up` is given."""

    def __init__(self, open_engine: Callable[[], sa.Engine], name: str) -> None:
        self._open_engine = open_engine
        self._name = name

    def describe(self) -> Iterable[Metric]:
        return [metric.family() for metric in DECLARED]

    def collect(self) -> Iterator[Metric]:
        scrape = Scrape()
        try:
            story = _read(self._open_engine(), self._name)
        except PerennialError:
            scrape.add(UP, 0)
        else:
            scrape.add(UP, 1)
            _add_story(scrape, story)
            if story.check is not None:
                _add_check(scrape, story.check)
        yield from scrape.families()


@dataclass(frozen=True, slots=True)
class _Story:
    """What the ledger says of a model now. `drift` is the newest event that opened or closed one."""

    check: checks.CheckRow | None
    by_verdict: dict[str, int]
    by_kind: dict[EventKind, int]
    rollbacks: dict[str, int]
    refusals: int
    failures: int
    retraining: bool
    live: Deployment | None
    drift: Event | None
    rollout: Rollout | None


def _read(engine: sa.Engine, name: str) -> _Story:
    """Raises LedgerUnavailable."""
    latest = checks.latest(engine, name)
    try:
        live = deployments.live(engine, name)
    except NoLiveModel:
        live = None
    came_to_the_gate = (EventKind.GATE_PASSED, EventKind.GATE_REFUSED)
    return _Story(
        check=latest[0] if latest else None,
        by_verdict=checks.count_by_verdict(engine, name),
        by_kind=events.count_by_kind(engine, name),
        rollbacks=deployments.count_rollbacks(engine, name),
        refusals=events.count_after_last(engine, name, EventKind.GATE_REFUSED, (EventKind.GATE_PASSED,)),
        failures=events.count_after_last(engine, name, EventKind.RETRAIN_FAILED, came_to_the_gate),
        retraining=any(held.name == f"retrain:{name}" for held in leases.holders(engine, f"retrain:{name}")),
        live=live,
        drift=events.last(engine, name, (EventKind.DRIFT_OPENED, EventKind.DRIFT_CLOSED)),
        rollout=rollouts.running(engine, name),
    )


def _add_story(scrape: Scrape, story: _Story) -> None:
    for verdict in Verdict:
        scrape.add(CHECKS, story.by_verdict.get(str(verdict), 0), str(verdict))
    for outcome, kind in OUTCOMES.items():
        scrape.add(RETRAINS, story.by_kind.get(kind, 0), outcome)
    by_itself = story.rollbacks.get(watches.ACTOR, 0)
    scrape.add(ROLLBACKS, by_itself, "watch")
    scrape.add(ROLLBACKS, sum(story.rollbacks.values()) - by_itself, "person")
    scrape.add(REFUSALS_IN_A_ROW, story.refusals)
    scrape.add(FAILURES_IN_A_ROW, story.failures)
    scrape.add(RETRAIN_RUNNING, story.retraining)
    if story.live is not None:
        scrape.add(LIVE_SINCE, story.live.at.timestamp(), story.live.version)
    is_open = story.drift is not None and story.drift.kind is EventKind.DRIFT_OPENED
    scrape.add(DRIFT_OPEN, is_open)
    if story.drift is not None and is_open:
        scrape.add(DRIFT_OPENED_AT, story.drift.at.timestamp())
    scrape.add(ROLLOUT_RUNNING, story.rollout is not None)
    if story.rollout is not None:
        scrape.add(ROLLOUT_STAGE_AT, story.rollout.at.timestamp())


def _add_check(scrape: Scrape, check: checks.CheckRow) -> None:
    detail = check.detail
    for known in Verdict:
        scrape.add(VERDICT, check.verdict == known, str(known))
    scrape.add(WINDOW_ROWS, check.window["rows"])
    by_reason = (detail.get("collection") or {}).get("failures", {}).get("by_reason", {})  # older checks have none
    for reason in IMAGE_PROBLEMS:
        scrape.add(DECODE_FAILURES, by_reason.get(reason, 0), reason)
    scrape.add(CHECK_SECONDS, detail["seconds"])
    scrape.add(LAST_CHECK_AT, check.at.timestamp())
    scrape.add(RETRAIN_DUE, detail["retrain"]["due"])
    for family, found in detail["families"].items():
        scrape.add(DRIFT_SCORE, found["score"], family, "")
        for column, numbers in found["columns"].items():
            scrape.add(DRIFT_SCORE, numbers["effect"], family, column)
    accuracy = detail["accuracy"]
    for metric, key in ((ACCURACY, "value"), (ACCURACY_LOW, "low"), (ACCURACY_HIGH, "high")):
        for source in ("labels", "estimated"):
            if accuracy[source] is not None:
                scrape.add(metric, accuracy[source][key], source)
    if accuracy.get("reference") is not None:
        scrape.add(ACCURACY_REFERENCE, accuracy["reference"]["value"])
    scrape.add(LABELLED_ROWS, accuracy.get("labelled") or 0)
    scrape.add(WITHHELD, bool(accuracy.get("withheld")))
