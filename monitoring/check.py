"""One check: the latest window of the live version against its reference, and what follows from it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from scipy.stats import fisher_exact

from monitoring.accuracy import Accuracy, counted, estimated
from monitoring.attribution import Evidence, attribute
from monitoring.detectors import Family
from monitoring.evidence import gather
from monitoring.policy import RetrainDecision, Situation, decide
from monitoring.prune import prune_reports
from monitoring.verdict import CALM, Cause, Verdict
from monitoring.window import Reference, Scores, Window, read_reference, read_window
from perennial import ledger
from perennial.bundle import Manifest, fetch_bundle
from perennial.errors import LedgerUnavailable, StorageUnavailable
from perennial.ledger import EventKind
from perennial.ledger.events import Event
from perennial.ledger.ids import new_id
from perennial.settings import Settings
from perennial.storage import Storage

logger = logging.getLogger(__name__)

#: Columns of a family that the check keeps; of more, those with the largest effects.
MOST_COLUMNS: Final = 40
_RETRAINS: Final = (
    EventKind.RETRAIN_STARTED, EventKind.GATE_PASSED, EventKind.GATE_REFUSED, EventKind.RETRAIN_FAILED,
)  # fmt: skip
_ANSWERS: Final = (*_RETRAINS, EventKind.DEPLOYED, EventKind.ROLLED_BACK)


@dataclass(frozen=True, slots=True)
class Accuracies:
    """`labels` is None where there are fewer than `monitor.min_labels`; `labelled` is how many there are.
    `reference` is the accuracy on the reference's held-out rows."""

    labels: Accuracy | None
    labelled: int
    estimated: Accuracy | None
    reference: Accuracy | None


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
    families: dict[str, Family]
    accuracy: Accuracies
    retrain: RetrainDecision
    report_url: str | None
    seconds: float

    def window(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "start": self.start.isoformat() if self.start else None,
            "end": self.end.isoformat() if self.end else None,
            "precision": self.precision,
        }

    def document(self) -> dict[str, Any]:
        """The check as JSON: what `perennial monitor --json` prints and the ledger keeps."""
        return {
            "name": self.name,
            "verdict": str(self.verdict),
            "causes": [
                {"cause": str(cause.cause), "why": cause.why, "columns": list(cause.columns)} for cause in self.causes
            ],
            "model_version": self.model_version,
            "window": self.window(),
            "families": {name: _family(family) for name, family in self.families.items()},
            "problems": [
                {"family": name, "column": column.name, "problem": column.problem}
                for name, family in self.families.items()
                for column in family.columns
                if column.problem is not None
            ],
            "accuracy": asdict(self.accuracy),
            "retrain": asdict(self.retrain),
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
    html: str | None = None


def run_check(engine: sa.Engine, settings: Settings) -> Check:
    """Check the live version of `settings.name`: write the report, the check row and the events it gives rise to.

    Raises:
        NoLiveModel: nothing has been deployed.
        InvalidBundle: the live bundle, or its reference, does not verify.
        LedgerUnavailable, StorageUnavailable: try again later; nothing was written.
    """
    began = time.perf_counter()
    version = ledger.deployments.live(engine, settings.name).version
    model = ledger.models.get(engine, settings.name, version)
    storage = Storage(settings.blobs_url)
    bundle = fetch_bundle(model.bundle_url, model.digest, storage, settings.cache_path)
    window = read_window(engine, version, settings.monitor.window)
    reference = read_reference(bundle, window.precision)
    if reference is None:
        found = _incomparable(bundle.manifest, window)
    else:
        found = _compared(engine, settings, version, reference, window)
    report_url = None
    if found.html is not None:
        report_url = storage.write(f"reports/{settings.name}/{version}/{new_id()}.html", found.html.encode())
    check = Check(
        name=settings.name,
        model_version=version,
        verdict=found.verdict,
        causes=found.causes,
        rows=window.rows,
        start=window.start,
        end=window.end,
        precision=window.precision,
        families=found.families,
        accuracy=found.accuracy,
        retrain=found.retrain,
        report_url=report_url,
        seconds=0.0,
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
        events_to_add=_events(engine, check, model.digest),
    )
    try:
        prune_reports(engine, storage, settings.name, settings.monitor.keep_reports)
    except (StorageUnavailable, LedgerUnavailable) as error:
        # The check is written; a report too many is no reason to say that it failed.
        logger.warning("old reports are left where they are: %s", error)
    return check


def _compared(engine: sa.Engine, settings: Settings, version: str, reference: Reference, window: Window) -> _Finding:
    gathered = gather(reference, window, settings.monitor, name=settings.name, model_version=version)
    verdict, causes = attribute(gathered.evidence)
    unseen = reference.unseen
    accuracy = _accuracies(unseen, window, settings)
    retrain = _decision(engine, settings, version, verdict, accuracy, unseen, window)
    return _Finding(verdict, causes, _families(gathered.evidence), accuracy, retrain, gathered.html)


def _incomparable(manifest: Manifest, window: Window) -> _Finding:
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
    return _Finding(
        Verdict.INSUFFICIENT_DATA,
        (Cause(Verdict.INSUFFICIENT_DATA, why),),
        {},
        Accuracies(labels=None, labelled=len(window.scores.correct), estimated=None, reference=None),
        RetrainDecision(False, why),
    )


def _accuracies(unseen: Scores, window: Window, settings: Settings) -> Accuracies:
    correct = window.scores.correct
    enough = len(correct) >= settings.monitor.min_labels
    return Accuracies(
        labels=counted(correct) if enough else None,
        labelled=len(correct),
        estimated=estimated(unseen, window.scores),
        reference=counted(unseen.correct),
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
    last = ledger.events.last(engine, settings.name, _RETRAINS)
    return decide(
        Situation(
            verdict=verdict,
            reference=accuracy.reference,
            labelled=accuracy.labels,
            estimated=accuracy.estimated,
            loss_p_value=_loss_p_value(unseen, window.scores) if accuracy.labels is not None else 1.0,
            alpha=settings.monitor.alpha,
            captures=captures,
            seconds_since_retrain=(datetime.now(UTC) - last.at).total_seconds() if last is not None else None,
        ),
        settings.retrain,
    )


def _loss_p_value(unseen: Scores, scores: Scores) -> float:
    before, now = unseen.correct, scores.correct
    table = [[int(now.sum()), int((~now).sum())], [int(before.sum()), int((~before).sum())]]
    return float(fisher_exact(table, alternative="less").pvalue)


def _events(engine: sa.Engine, check: Check, digest: str) -> list[tuple[EventKind, Mapping[str, Any]]]:
    """A change of state, told once."""
    document = check.document()
    previous = ledger.checks.latest(engine, check.name, model_version=check.model_version)
    before = previous[0].verdict if previous else None
    numbers = {
        "model_version": check.model_version,
        "bundle_digest": digest,
        "verdict": document["verdict"],
        "causes": document["causes"],
        "window": document["window"],
        "accuracy": document["accuracy"],
        "scores": {name: family.score for name, family in check.families.items()},
        "report_url": check.report_url,
    }
    found: list[tuple[EventKind, Mapping[str, Any]]] = []
    if before != check.verdict:
        found.append((EventKind.CHECK_CHANGED, {"from": before, "to": str(check.verdict), **numbers}))
    opened = _open_drift(engine, check.name)
    if check.verdict not in CALM and (opened is None or opened.detail.get("model_version") != check.model_version):
        found.append((EventKind.DRIFT_OPENED, numbers))
    if check.verdict is Verdict.OK and opened is not None:
        # Perhaps another version's: a retrained model that knows today's traffic ends the drift of the one before.
        closes = {"opened": opened.id, "opened_on": opened.detail.get("model_version")}
        found.append((EventKind.DRIFT_CLOSED, {**numbers, **closes}))
    if check.retrain.due and not _requested(engine, check.name):
        found.append(
            (
                EventKind.RETRAIN_REQUESTED,
                {"why": check.retrain.why, "labels": check.accuracy.labelled, **numbers},
            )
        )
    return found


def _open_drift(engine: sa.Engine, name: str) -> Event | None:
    """The drift that nothing has closed yet."""
    last = ledger.events.last(engine, name, (EventKind.DRIFT_OPENED, EventKind.DRIFT_CLOSED))
    return last if last is not None and last.kind is EventKind.DRIFT_OPENED else None


def _requested(engine: sa.Engine, name: str) -> bool:
    """Is there a request that nothing has answered yet?"""
    request = ledger.events.last(engine, name, (EventKind.RETRAIN_REQUESTED,))
    answer = ledger.events.last(engine, name, _ANSWERS)
    return request is not None and (answer is None or answer.id < request.id)


def _families(evidence: Evidence) -> dict[str, Family]:
    families = {
        "properties": evidence.properties,
        "output": evidence.output,
        "class_mix": evidence.class_mix,
        "embedding": evidence.embedding,
        "embedding_within_classes": evidence.within_classes,
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
