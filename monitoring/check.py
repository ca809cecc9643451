"""One check: the latest window of the live version against its reference, and what follows from it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from monitoring.accuracy import loss_p_value
from monitoring.attribution import Evidence, attribute
from monitoring.collection import Facts, examine
from monitoring.decode_failures import Failures, read_failures
from monitoring.detectors import Family
from monitoring.drift_events import RETRAINS, History, Told, changes, is_requested, read_history
from monitoring.evidence import gather
from monitoring.live import live_model
from monitoring.live_accuracy import Accuracies, read_accuracies
from monitoring.persistence import FalseAlarms, Looked, Persistence, State
from monitoring.policy import RetrainDecision, Situation, decide
from monitoring.prune import prune_reports
from monitoring.two_sample import Measured
from monitoring.verdict import Cause, Verdict
from monitoring.window import Reference, Scores, Window, read_reference, read_window
from perennial import ledger
from perennial.bundle import Manifest
from perennial.errors import LedgerUnavailable, StorageUnavailable, WorkspaceUnavailable
from perennial.ledger import EventKind
from perennial.ledger.ids import new_id
from perennial.settings import Settings
from perennial.storage import Storage

if TYPE_CHECKING:
    from evidently.core.report import Snapshot

logger = logging.getLogger(__name__)

#: A family that tells causes apart and raises no alarm of its own.
WITHIN_CLASSES: Final = "embedding_within_classes"
#: Columns of a family that the check keeps; of more, those with the largest effects.
MOST_COLUMNS: Final = 40


@dataclass(frozen=True, slots=True)
class Check:
    """What a check found. `families` is empty where there was too little to test."""

    name: str
    model_version: str
    verdict: Verdict
    causes: tuple[Cause, ...]
    rows: int
    start: datetime | None
    end: datetime | None
    precision: str
    first: str | None
    last: str | None
    families: dict[str, Family]
    accuracy: Accuracies
    retrain: RetrainDecision
    state: State
    false_alarms: FalseAlarms | None
    report_url: str | None
    seconds: float
    collection: Facts | None = None

    def window(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "start": self.start.isoformat() if self.start else None,
            "end": self.end.isoformat() if self.end else None,
            "precision": self.precision,
            "first": self.first,
            "last": self.last,
        }

    def document(self) -> dict[str, Any]:
        """The check as JSON: what `perennial monitor --json` prints and the ledger keeps."""
        return {
            "name": self.name,
            "verdict": str(self.verdict),
            "state": str(self.state),
            "causes": [
                {"cause": str(cause.cause), "why": cause.why, "columns": list(cause.columns)} for cause in self.causes
            ],
            "model_version": self.model_version,
            "window": self.window(),
            "families": {name: _family(family) for name, family in self.families.items()},
            "collection": self.collection.document() if self.collection is not None else None,
            "problems": [
                {"family": name, "column": column.name, "problem": column.problem}
                for name, family in self.families.items()
                for column in family.columns
                if column.problem is not None
            ],
            "accuracy": asdict(self.accuracy),
            "retrain": asdict(self.retrain),
            "false_alarms": asdict(self.false_alarms) if self.false_alarms is not None else None,
            "report_url": self.report_url,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class _Finding:
    """What the comparison of a window with its reference came to."""

    verdict: Verdict
    causes: tuple[Cause, ...]
    families: dict[str, Family]
    accuracy: Accuracies
    retrain: RetrainDecision
    collection: Facts
    run: Snapshot | None = None


def run_check(engine: sa.Engine, settings: Settings) -> Check:
    """Check the live version of `settings.name`: write the report, the check row and the events it gives rise to.

    Raises:
        NoLiveModel: nothing has been deployed.
        InvalidBundle: the live bundle, or its reference, does not verify.
        LedgerUnavailable, StorageUnavailable: try again later; nothing was written.
    """
    began = time.perf_counter()
    live = live_model(engine, settings)
    version, storage = live.version, Storage(settings.blobs_url)
    window = read_window(engine, version, settings.monitor.window, settings.monitor.sample)
    failures = read_failures(engine, version, window)
    reference = read_reference(live.bundle, window.precision)
    if reference is None:
        found = _incomparable(live.bundle.manifest, window, examine(None, window, failures, settings.monitor))
    else:
        found = _compared(engine, settings, version, reference, window, failures)
    report_url = None
    if found.run is not None:
        html: str = found.run.get_html_str(as_iframe=False)
        report_url = storage.write(f"reports/{settings.name}/{version}/{new_id()}.html", html.encode())
    rule = Persistence(settings.monitor.open_after, settings.monitor.open_of, settings.monitor.close_after)
    now = Looked(found.verdict, window.first, window.last)
    history = read_history(engine, settings.name, version, now, rule)
    check = Check(
        name=settings.name,
        model_version=version,
        verdict=found.verdict,
        causes=found.causes,
        rows=window.rows,
        start=window.start,
        end=window.end,
        precision=window.precision,
        first=window.first,
        last=window.last,
        families=found.families,
        accuracy=found.accuracy,
        retrain=found.retrain,
        state=history.state,
        false_alarms=expected_false_alarms(rule, found.families, settings.monitor.alpha, window),
        report_url=report_url,
        seconds=0.0,
        collection=found.collection,
    )
    check = replace(check, seconds=time.perf_counter() - began)
    ledger.checks.record(
        engine,
        name=check.name,
        model_version=version,
        window=check.window(),
        verdict=str(check.verdict),
        detail=check.document(),
        report_url=report_url,
        events_to_add=_events(engine, check, live.digest, history),
    )
    try:
        prune_reports(engine, storage, settings.name, settings.monitor.keep_reports)
    except (StorageUnavailable, LedgerUnavailable) as error:
        # The check is written; a report too many is no reason to say that it failed.
        logger.warning("old reports are left where they are: %s", error)
    if found.run is not None and settings.monitor.workspace:
        _add_to_workspace(settings, found.run)
    return check


def _add_to_workspace(settings: Settings, run: Snapshot) -> None:
    from monitoring.workspace import add_run  # as heavy as the report

    try:
        add_run(settings.workspace_path, settings.name, run, settings.monitor.keep_reports)
    except WorkspaceUnavailable as error:
        # The check and its report are written; the workspace only draws them over time.
        logger.warning("this check is missing in `perennial ui`: %s", error)


def _compared(
    engine: sa.Engine, settings: Settings, version: str, reference: Reference, window: Window, failures: Failures
) -> _Finding:
    gathered = gather(reference, window, settings.monitor, failures)
    verdict, causes = attribute(gathered.evidence)
    unseen = reference.unseen
    separation = gathered.measured.separation if gathered.measured is not None else None
    unlike = separation.share if separation is not None else None
    accuracy = read_accuracies(engine, settings, version, unseen, window, unlike)
    retrain = _decision(engine, settings, version, verdict, accuracy, unseen, window)
    families = families_of(gathered.evidence)
    run = _rendered(settings, version, reference, window, gathered.measured, verdict, families, accuracy)
    return _Finding(verdict, causes, families, accuracy, retrain, gathered.collection, run)


def _rendered(
    settings: Settings,
    version: str,
    reference: Reference,
    window: Window,
    measured: Measured | None,
    verdict: Verdict,
    families: Mapping[str, Family],
    accuracy: Accuracies,
) -> Snapshot | None:
    """Evidently's report; None where nothing was tested."""
    if measured is None:
        return None
    # Seconds and hundreds of megabytes: only where there is something to show.
    from monitoring import report
    from monitoring.check_metrics import check_metrics

    return report.render(
        reference,
        window.scores,
        measured,
        alpha=settings.monitor.alpha,
        least_labels=settings.monitor.min_labels,
        at=datetime.now(UTC),
        name=f"{settings.name} {version}",
        metadata={
            "model_version": version,
            "rows": str(window.rows),
            "precision": window.precision,
            "window_end": window.end.isoformat() if window.end else "",
        },
        tags=[str(verdict)],
        found=check_metrics(verdict, families, accuracy),
    )


def _incomparable(manifest: Manifest, window: Window, facts: Facts) -> _Finding:
    if window.precision in manifest.precisions:
        why = (
            f"version {manifest.version} has no reference rows: it was imported without images to compare with; "
            "import it again with --data FOLDER, a folder of images like those to be expected"
        )
    else:
        why = (
            f"the latest predictions were made in {window.precision}, and version {manifest.version} has reference "
            f"rows for {', '.join(manifest.precisions)} only; serve it in one of these (serve.precision), or train it "
            "anew"
        )
    faults = (Cause(Verdict.COLLECTION_FAULT, fault) for fault in facts.faults)
    causes = (*faults, Cause(Verdict.INSUFFICIENT_DATA, why))
    return _Finding(
        causes[0].cause,
        causes,
        {},
        Accuracies(labels=None, labelled=len(window.answers), estimated=None, reference=None, withheld=why),
        RetrainDecision(False, why),
        facts,
    )


def _decision(
    engine: sa.Engine,
    settings: Settings,
    version: str,
    verdict: Verdict,
    accuracy: Accuracies,
    unseen: Scores,
    window: Window,
) -> RetrainDecision:
    captures = 0
    if accuracy.labels is not None:
        captures = ledger.predictions.count_labelled_captures(engine, [version])
    last = ledger.events.last(engine, settings.name, RETRAINS)
    return decide(
        Situation(
            verdict=verdict,
            reference=accuracy.reference,
            labelled=accuracy.labels,
            estimated=accuracy.estimated,
            withheld=accuracy.withheld,
            loss_p_value=loss_p_value(unseen.answers, window.answers) if accuracy.labels is not None else 1.0,
            alpha=settings.monitor.alpha,
            captures=captures,
            seconds_since_retrain=(datetime.now(UTC) - last.at).total_seconds() if last is not None else None,
        ),
        settings.retrain,
    )


def _events(engine: sa.Engine, check: Check, digest: str, history: History) -> list[Told]:
    document = check.document()
    numbers = {
        "model_version": check.model_version,
        "bundle_digest": digest,
        **{key: document[key] for key in ("verdict", "causes", "window", "accuracy", "report_url")},
        "scores": {name: family.score for name, family in check.families.items()},
    }
    found = changes(history, check.verdict, numbers)
    if check.retrain.due and not is_requested(engine, check.name):
        why = {"why": check.retrain.why, "labels": check.accuracy.labelled}
        found.append((EventKind.RETRAIN_REQUESTED, {**why, **numbers}))
    return found


def expected_false_alarms(
    rule: Persistence, families: Mapping[str, Family], alpha: float, window: Window
) -> FalseAlarms | None:
    """What chance alone does, if nothing ever changes; None where nothing was tested."""
    tested = sum(name != WITHIN_CLASSES and family.skipped is None for name, family in families.items())
    if not tested:
        return None
    rate = min(1.0, tested * alpha)
    windows = rule.windows_between_false_alarms(rate)
    took = (window.end - window.start).total_seconds() if window.start and window.end else 0.0
    return FalseAlarms(rate, windows, windows * took)


def families_of(evidence: Evidence) -> dict[str, Family]:
    """The families that were tried, by the names that the check gives them."""
    families = {
        "properties": evidence.properties,
        "output": evidence.output,
        "class_mix": evidence.class_mix,
        "embedding": evidence.embedding,
        WITHIN_CLASSES: evidence.within_classes,
        "novelty": evidence.novelty,
        "labels": evidence.labels,
    }
    return {name: family for name, family in families.items() if family is not None}


def _family(family: Family) -> dict[str, Any]:
    kept = sorted(family.columns, key=lambda column: (not column.alarm, -column.effect))[:MOST_COLUMNS]
    return {
        "score": family.score,
        "p_value": family.p_value,
        "alarm": bool(family.alarm),
        "floor": family.floor,
        "skipped": family.skipped,
        "columns": {
            column.name: {
                "effect": column.effect,
                "p_value": column.p_value,
                "shift": column.shift,
                "alarm": bool(column.alarm),
            }
            for column in kept
            if column.problem is None
        },
    }
