"""A window against its reference: the verdict, what it rests on, and what follows from it; nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from monitoring.accuracy import loss_p_value
from monitoring.attribution import Evidence, attribute
from monitoring.collection import Facts
from monitoring.decode_failures import Failures
from monitoring.detectors import Family
from monitoring.evidence import gather
from monitoring.examples import Example, examples_of
from monitoring.live import Live
from monitoring.live_accuracy import Accuracies, read_accuracies
from monitoring.pictures import reference_thumbnails
from monitoring.policy import RetrainDecision, Situation, decide, is_lost
from monitoring.same_hours import read_same_hours
from monitoring.two_sample import Measured
from monitoring.verdict import CALM, Cause, Verdict
from monitoring.window import Reference, Scores, Window
from perennial import ledger
from perennial.bundle import Manifest
from perennial.ledger.requests import COOLS_DOWN_FROM
from perennial.settings import Settings

#: A family that tells causes apart and raises no alarm of its own.
WITHIN_CLASSES: Final = "embedding_within_classes"


@dataclass(frozen=True, slots=True)
class Finding:
    """What comparing a window came to. `compared` is what with, which with `same_hours` is not the bundle's reference;
    `measured` is None where nothing was tested."""

    verdict: Verdict
    causes: tuple[Cause, ...]
    families: dict[str, Family]
    accuracy: Accuracies
    retrain: RetrainDecision
    collection: Facts
    examples: tuple[Example, ...] = ()
    thumbnails: dict[str, bytes] = field(default_factory=dict)
    compared: Reference | None = None
    same_hours: bool = False
    measured: Measured | None = None


def compare(
    engine: sa.Engine, settings: Settings, live: Live, reference: Reference, window: Window, failures: Failures
) -> Finding:
    """The window against the bundle's reference, or against what is usual at its hours.

    Raises:
        LedgerUnavailable, StorageUnavailable: try again later.
    """
    usual = read_same_hours(engine, settings, live.version, reference, window)
    compared = usual or reference
    gathered = gather(reference, window, settings.monitor, failures, usual=usual)
    verdict, causes = attribute(gathered.evidence)
    unseen = reference.unseen
    separation = gathered.measured.separation if gathered.measured is not None else None
    unlike = separation.share if separation is not None else None
    accuracy = read_accuracies(engine, settings, live.version, unseen, window, unlike)
    families = families_of(gathered.evidence)
    thumbnails = reference_thumbnails(live.bundle) if verdict not in CALM else {}
    return Finding(
        verdict,
        causes,
        families,
        accuracy,
        _decision(engine, settings, live.version, verdict, accuracy, unseen, window),
        gathered.collection,
        examples_of(verdict, reference, window, thumbnails, novel=_only_novel(families, gathered.measured)),
        thumbnails,
        compared,
        usual is not None,
        gathered.measured,
    )


def _only_novel(families: Mapping[str, Family], measured: Measured | None) -> NDArray[np.bool_] | None:
    """[M], the novel images, where only novelty alarmed."""
    alarmed = {name for name, family in families.items() if family.alarm and name != WITHIN_CLASSES}
    if alarmed != {"novelty"} or measured is None:
        return None
    rows = [measured.novelty[column.name] for column in families["novelty"].alarmed]
    return np.asarray(np.any([found.rows for found in rows if found is not None], axis=0))


def incomparable(manifest: Manifest, window: Window, facts: Facts) -> Finding:
    """Of a window that the bundle has no reference rows for, in words that say what to do."""
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
    return Finding(
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
    last = ledger.events.last(engine, settings.name, COOLS_DOWN_FROM)
    situation = Situation(
        verdict=verdict,
        reference=accuracy.reference,
        labelled=accuracy.labels,
        estimated=accuracy.estimated,
        withheld=accuracy.withheld,
        loss_p_value=loss_p_value(unseen.answers, window.answers) if accuracy.labels is not None else 1.0,
        alpha=settings.monitor.alpha,
        captures=0,
        seconds_since_retrain=(datetime.now(UTC) - last.at).total_seconds() if last is not None else None,
        errors_rose=accuracy.errors_rose,
    )
    if is_lost(situation, settings.retrain):  # counting takes the longer the more labels there are
        captures = ledger.predictions.count_labelled_captures(engine, [version], new=window.new_classes)
        situation = replace(situation, captures=captures)
    return decide(situation, settings.retrain)


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
