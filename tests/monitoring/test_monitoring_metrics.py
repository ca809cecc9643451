"""The watcher's metrics agree with the ledger."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client import generate_latest

from monitoring.accuracy import Accuracy
from monitoring.check import Check
from monitoring.detectors import Column, Family
from monitoring.live_accuracy import Accuracies
from monitoring.persistence import State
from monitoring.policy import RetrainDecision
from monitoring.verdict import Cause, Verdict
from monitoring.watch_metrics import WatchMetrics, next_check, registry
from perennial import ledger
from perennial.errors import LedgerUnavailable
from perennial.ledger import EventKind
from perennial.ledger.connect import writing
from perennial.ledger.schema import deployments
from perennial.settings import Settings


def check(verdict: Verdict = Verdict.SENSOR_SHIFT, labels: Accuracy | None = None) -> Check:
    now = datetime(2026, 5, 1, tzinfo=UTC)
    dark = Column("property:brightness", 1.9, 1e-9, True, -1.9)
    broken = Column("property:saturation", problem="constant")
    return Check(
        name="digits",
        model_version="20260501-000000-00000",
        verdict=verdict,
        causes=(Cause(verdict, "it is dark", ("property:brightness",)),),
        rows=300,
        start=now,
        end=now,
        precision="float32",
        first="1",
        last="2",
        families={"properties": Family(1.9, 1e-9, True, 0.25, (dark, broken))},
        accuracy=Accuracies(labels, 0, Accuracy(0.9, 0.85, 0.94, 300), Accuracy(0.95, 0.92, 0.97, 400)),
        retrain=RetrainDecision(False, "the model still copes"),
        state=State.SUSPECTED,
        false_alarms=None,
        examples=(),
        report_url=None,
        seconds=2.5,
    )


def record(engine: sa.Engine, found: Check) -> None:
    ledger.checks.record(
        engine,
        name=found.name,
        model_version=found.model_version,
        window=found.window(),
        verdict=str(found.verdict),
        detail=found.document(),
        report_url=None,
    )


def scrape(engine: sa.Engine) -> dict[str, float]:
    text = generate_latest(registry(lambda: engine, WatchMetrics(Settings(name="digits")), "digits")).decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_the_latest_check_is_shown(engine: sa.Engine) -> None:
    record(engine, check(Verdict.OK))
    record(engine, check(Verdict.SENSOR_SHIFT, Accuracy(0.8, 0.75, 0.85, 300)))
    ledger.events.add(engine, "digits", EventKind.GATE_REFUSED, {})
    with writing(engine) as connection:
        for actor in ("watch", "cli:ann", "http 10.0.0.7"):
            event = ledger.events.append(connection, "digits", EventKind.ROLLED_BACK, {})
            row = {"at": datetime.now(UTC), "name": "digits", "version": "v1", "reason": "worse"}
            connection.execute(sa.insert(deployments).values(**row, actor=actor, event_id=event))
    found = scrape(engine)
    assert found['perennial_verdict{verdict="sensor_shift"}'] == 1
    assert found['perennial_verdict{verdict="ok"}'] == 0
    assert found['perennial_checks_total{verdict="ok"}'] == 1
    assert found['perennial_checks_total{verdict="data_drift"}'] == 0
    assert found['perennial_drift_score{column="",family="properties"}'] == pytest.approx(1.9)
    assert found['perennial_drift_score{column="property:brightness",family="properties"}'] == pytest.approx(1.9)
    assert 'perennial_drift_score{column="property:saturation",family="properties"}' not in found
    assert found['perennial_accuracy{source="labels"}'] == 0.8
    assert found['perennial_accuracy_low{source="estimated"}'] == 0.85
    assert found['perennial_accuracy_high{source="estimated"}'] == 0.94
    assert found["perennial_accuracy_reference"] == 0.95
    assert found["perennial_labelled_rows"] == 0
    assert found["perennial_window_rows"] == 300
    assert found["perennial_check_seconds"] == 2.5
    assert found["perennial_last_check_timestamp_seconds"] > 1.7e9
    assert found['perennial_retrains_total{outcome="refused"}'] == 1
    assert found['perennial_rollbacks_total{by="watch"}'] == 1
    assert found['perennial_rollbacks_total{by="person"}'] == 2
    assert found["perennial_retrain_due"] == 0
    assert found["perennial_ledger_up"] == 1


def test_what_goes_on_now_is_shown_and_since_when(engine: sa.Engine) -> None:
    def add(*kinds: EventKind) -> None:
        for kind in kinds:
            ledger.events.add(engine, "digits", kind, {})

    refused, failed = EventKind.GATE_REFUSED, EventKind.RETRAIN_FAILED
    add(refused, EventKind.GATE_PASSED, refused, failed, failed, EventKind.DRIFT_OPENED)
    found = scrape(engine)
    assert found["perennial_refusals_in_a_row"] == 1
    assert found["perennial_retrain_failures_in_a_row"] == 2
    assert found["perennial_drift_open"] == 1
    assert found["perennial_drift_opened_timestamp_seconds"] > 1.7e9
    assert found["perennial_retrain_running"] == 0
    with ledger.leases.held(engine, "retrain:digits", 60), ledger.leases.held(engine, "retrain:digits-two", 60):
        assert scrape(engine)["perennial_retrain_running"] == 1
    with ledger.leases.held(engine, "retrain:digits-two", 60):
        assert scrape(engine)["perennial_retrain_running"] == 0
    add(refused, EventKind.DRIFT_CLOSED)
    found = scrape(engine)
    assert found["perennial_refusals_in_a_row"] == 2
    assert found["perennial_retrain_failures_in_a_row"] == 0
    assert found["perennial_drift_open"] == 0
    assert "perennial_drift_opened_timestamp_seconds" not in found
    add(EventKind.GATE_PASSED)
    assert scrape(engine)["perennial_refusals_in_a_row"] == 0


def test_a_rollout_is_shown_with_the_time_of_its_stage(engine: sa.Engine) -> None:
    assert scrape(engine)["perennial_rollout_running"] == 0
    with writing(engine) as connection:
        event = ledger.events.append(connection, "digits", EventKind.DEPLOYED, {})
        row = {"at": datetime.now(UTC), "name": "digits", "version": "v1", "reason": "a test"}
        connection.execute(sa.insert(deployments).values(**row, actor="test", event_id=event))
    said = {"champion": "v1", "challenger": "v2", "stages": ["shadow"], "reason": "a test", "actor": "test"}
    ledger.rollouts.start(engine, "digits", **said)
    found = scrape(engine)
    assert found["perennial_rollout_running"] == 1
    assert found["perennial_rollout_stage_timestamp_seconds"] > 1.7e9
    assert found['perennial_live_since_timestamp_seconds{version="v1"}'] > 1.7e9


def test_the_watcher_says_what_failed_and_what_it_was_told() -> None:
    def away() -> Any:
        raise LedgerUnavailable("gone")

    watched = WatchMetrics(Settings(name="digits"))
    watched.failed("check")
    shown = registry(away, watched, "digits")
    assert shown.get_sample_value("perennial_watch_failures_total", {"child": "check"}) == 1
    assert shown.get_sample_value("perennial_watch_failures_total", {"child": "prune"}) == 0
    assert shown.get_sample_value("perennial_check_interval_seconds") == 300
    assert shown.get_sample_value("perennial_accuracy_drop_limit") == 0.03
    assert shown.get_sample_value("perennial_watch_last_tick_timestamp_seconds") is None
    started, due = (
        shown.get_sample_value(f"perennial_{name}_timestamp_seconds") or 0 for name in ("watch_started", "check_due")
    )
    assert due - started == pytest.approx(300, abs=1)
    watched.ticked(done=False)
    assert shown.get_sample_value("perennial_check_due_timestamp_seconds") == due  # no check succeeded
    watched.checked()
    watched.ticked(done=True)
    assert (shown.get_sample_value("perennial_check_due_timestamp_seconds") or 0) > due
    assert (shown.get_sample_value("perennial_watch_last_tick_timestamp_seconds") or 0) > 1.7e9


def test_before_the_first_check_there_are_only_counts(engine: sa.Engine) -> None:
    found = scrape(engine)
    assert found['perennial_checks_total{verdict="ok"}'] == 0
    assert "perennial_window_rows" not in found


def test_without_labels_there_is_no_accuracy_by_labels(engine: sa.Engine) -> None:
    record(engine, check())
    assert 'perennial_accuracy{source="labels"}' not in scrape(engine)


def away() -> Any:
    raise LedgerUnavailable("gone")


def test_a_ledger_that_is_away_is_said_and_breaks_nothing() -> None:
    text = generate_latest(registry(away, WatchMetrics(Settings(name="digits")), "digits")).decode()
    assert "perennial_ledger_up 0.0" in text
    assert "perennial_verdict" not in text


def test_with_a_schedule_the_next_check_is_due_at_its_next_time() -> None:
    hourly = Settings(name="digits", monitor={"schedule": "0 * * * *"})  # type: ignore[arg-type]
    noon = datetime(2026, 3, 4, 12, 20, tzinfo=UTC)
    assert next_check(hourly, noon) == datetime(2026, 3, 4, 13, 0, tzinfo=UTC)
    text = generate_latest(registry(away, WatchMetrics(hourly), "digits")).decode()
    assert "\nperennial_check_interval_seconds 3600.0\n" in text
