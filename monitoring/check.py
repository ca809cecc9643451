"""One check: the latest window of the live version against its reference, and what follows from it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from monitoring import page
from monitoring.collection import Facts, examine
from monitoring.comparison import WITHIN_CLASSES, Finding, compare, incomparable
from monitoring.decode_failures import read_failures
from monitoring.detectors import Family
from monitoring.drawing import Drawing, DrawingHere, Drawn
from monitoring.drawn import most_moved, numbers, sides
from monitoring.drift_events import History, Told, changes, read_history
from monitoring.examples import Example
from monitoring.live import live_model
from monitoring.live_accuracy import Accuracies
from monitoring.persistence import FalseAlarms, Looked, Persistence, State
from monitoring.policy import RetrainDecision
from monitoring.prune import prune_reports
from monitoring.verdict import CALM, Cause, Verdict
from monitoring.window import Window, read_reference, read_window
from perennial import ledger
from perennial.errors import DrawingFailed, LedgerUnavailable, StorageUnavailable, WorkspaceUnavailable
from perennial.ids import new_id
from perennial.ledger import EventKind
from perennial.ledger.requests import Trigger, open_request
from perennial.settings import Settings
from perennial.storage import Storage, reference_key

logger = logging.getLogger(__name__)

#: Columns of a family that the check keeps; of more, those with the largest effects.
MOST_COLUMNS: Final = 40
#: The clocks of two machines differ by no more than this, unless one of them is wrong.
_CLOCKS_DIFFER: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class ComparedWith:
    """The rows that a window is compared with: the reference of the `training`, or the `same_hours` of weeks before."""

    reference: str
    rows: int


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
    examples: tuple[Example, ...]
    report_url: str | None
    seconds: float
    collection: Facts | None = None
    compared_with: ComparedWith | None = None
    #: Labels that are no class of the model, and that enough images have for them to count as errors.
    new_classes: tuple[str, ...] = ()

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
            "compared_with": asdict(self.compared_with) if self.compared_with is not None else None,
            "scores": {name: family.score for name, family in self.families.items()},
            "families": {name: _family(family) for name, family in self.families.items()},
            "collection": self.collection.document() if self.collection is not None else None,
            "problems": [
                {"family": name, "column": column.name, "problem": column.problem}
                for name, family in self.families.items()
                for column in family.columns
                if column.problem is not None
            ],
            "accuracy": asdict(self.accuracy),
            "new_classes": list(self.new_classes),
            "retrain": asdict(self.retrain),
            "false_alarms": asdict(self.false_alarms) if self.false_alarms is not None else None,
            "examples": [example.document() for example in self.examples],
            "report_url": self.report_url,
            "seconds": round(self.seconds, 3),
        }


def run_check(engine: sa.Engine, settings: Settings, drawing: Drawing | None = None) -> Check:
    """Check the live version of `settings.name`: write the report, the check row and the events it gives rise to.
    Evidently's part is left to `drawing`; without one it is drawn here.

    Raises:
        NoLiveModel: nothing has been deployed.
        InvalidBundle: the live bundle, or its reference, does not verify.
        LedgerUnavailable, StorageUnavailable: try again later; nothing was written, but perhaps a report that no check
            names, which `perennial prune` removes.
    """
    began = time.perf_counter()
    live = live_model(engine, settings)
    version, storage = live.version, Storage(settings.blobs_url)
    at_least = settings.retrain.new_class_labels
    arriving = ledger.new_classes.find(engine, settings.name, live.bundle.manifest.classes, at_least).classes
    window = read_window(engine, version, settings.monitor.window, settings.monitor.sample, new=arriving)
    failures = read_failures(engine, version, window)
    _warn_of_the_future(window)
    reference = read_reference(live.bundle, window.precision)
    if reference is None:
        found = incomparable(live.bundle.manifest, window, examine(None, window, failures, settings.monitor))
    else:
        found = compare(engine, settings, live, reference, window, failures)
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
        examples=found.examples,
        report_url=None,
        seconds=0.0,
        collection=found.collection,
        compared_with=ComparedWith("same_hours" if found.same_hours else "training", len(found.compared.scores))
        if found.compared is not None
        else None,
        new_classes=window.new_classes,
    )
    drawing = drawing or DrawingHere()
    evidently = _drawn(drawing, settings, version, found, window)
    if found.compared is not None and (evidently.wanted or (found.examples and settings.monitor.report != "never")):
        html = page.of_check(
            check.document(),
            settings,
            live.bundle.manifest.input,
            found.compared,
            window,
            properties=found.families.get("properties"),
            examples=found.examples,
            thumbnails=found.thumbnails,
            evidently=evidently.html,
            missing=evidently.missing,
        )
        report_url = storage.write(f"reports/{settings.name}/{version}/{new_id()}.html", html.encode())
        check = replace(check, report_url=report_url)
    _keep_references(storage, settings.name, version, found.examples, found.thumbnails)
    check = replace(check, seconds=time.perf_counter() - began)
    ledger.checks.record(
        engine,
        name=check.name,
        model_version=version,
        window=check.window(),
        verdict=str(check.verdict),
        detail=check.document(),
        report_url=check.report_url,
        events_to_add=_events(engine, check, live.digest, history),
    )
    try:
        keep, days = settings.monitor.keep_reports, settings.retention.images_days
        prune_reports(engine, storage, settings.name, keep, images_days=days)
    except (StorageUnavailable, LedgerUnavailable) as error:
        # The check is written; a report too many is no reason to say that it failed.
        logger.warning("old reports are left where they are: %s", error)
    if evidently.html is not None and settings.monitor.workspace:
        _add_to_workspace(settings, drawing)
    return check


@dataclass(frozen=True, slots=True)
class _Evidently:
    """Its report, or why there is none though it was `wanted`."""

    wanted: bool
    html: str | None = None
    missing: str = ""


def _drawn(drawing: Drawing, settings: Settings, version: str, found: Finding, window: Window) -> _Evidently:
    wanted = {"always": True, "drift": found.verdict not in CALM, "never": False}[settings.monitor.report]
    if not wanted or found.measured is None or found.compared is None:
        return _Evidently(False)
    reference, current = sides(found.compared, window.scores, most_moved(found.families))
    drawn = Drawn(
        reference,
        current,
        numbers(found.verdict, found.families, found.accuracy, found.measured),
        tested=len(found.measured.p_values),
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
        tags=(str(found.verdict),),
    )
    try:
        return _Evidently(True, html=drawing.html(drawn))
    except DrawingFailed as error:
        # What was found stands without it.
        logger.warning("the report is without Evidently's part: %s", error)
        return _Evidently(True, missing=str(error))


def _keep_references(
    storage: Storage, name: str, version: str, examples: Sequence[Example], thumbnails: Mapping[str, bytes]
) -> None:
    """Put the reference images that the examples are held against where the operations page finds them: a service
    cannot read the bundle's table of them."""
    shown = {neighbour.digest for example in examples for neighbour in example.nearest}
    for digest in sorted(shown & thumbnails.keys()):
        key = reference_key(name, version, digest)
        if not storage.exists(key):
            storage.write(key, thumbnails[digest])


def _warn_of_the_future(window: Window) -> None:
    """Predictions are sorted by the clock of the service. One that was set back hides what comes after behind what came
    before, until it is as late again."""
    ahead = window.end - datetime.now(UTC) if window.end is not None else timedelta(0)
    if ahead > _CLOCKS_DIFFER:
        logger.warning(
            "the newest predictions are dated %s ahead of this machine's clock: a clock was wrong or was set back; "
            "predictions with earlier dates are looked at once they are the newest",
            timedelta(seconds=round(ahead.total_seconds())),
        )


def _add_to_workspace(settings: Settings, drawing: Drawing) -> None:
    try:
        drawing.keep(settings.workspace_path, settings.name, settings.monitor.keep_reports)
    except (WorkspaceUnavailable, DrawingFailed) as error:
        # The check and its report are written; the workspace only draws them over time.
        logger.warning("this check is missing in `perennial ui`: %s", error)


def _events(engine: sa.Engine, check: Check, digest: str, history: History) -> list[Told]:
    document = check.document()
    numbers = {
        "model_version": check.model_version,
        "bundle_digest": digest,
        **{key: document[key] for key in ("verdict", "causes", "window", "accuracy", "scores", "report_url")},
    }
    found = changes(history, check.verdict, numbers)
    if check.retrain.due and open_request(engine, check.name) is None:
        why = {"why": check.retrain.why, "trigger": str(Trigger.DRIFT), "labels": check.accuracy.labelled}
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
