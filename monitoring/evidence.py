"""A window and its reference -> the evidence a verdict rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import wasserstein_distance

from monitoring import detectors, two_sample
from monitoring.attribution import Evidence
from monitoring.detectors import LEAST_SPREAD, Family
from monitoring.embedding import MIN_ROWS
from monitoring.lens import misfit
from monitoring.two_sample import Measured
from monitoring.window import Reference, Window
from perennial.settings import MonitorSettings

#: Shares of the window at which collection is called broken. High: a clean stream does not come near them.
MOST_REPEATED: Final = 0.5
MOST_EMPTY: Final = 0.5
MOST_DAMAGED: Final = 0.1
#: An image is empty when its contrast is below this share of nearly every reference image's.
_EMPTY_CONTRAST: Final = 0.1


@dataclass(frozen=True, slots=True)
class Gathered:
    """`measured` has the numbers of the tests; None where none could be run."""

    evidence: Evidence
    measured: Measured | None = None


def gather(reference: Reference, window: Window, settings: MonitorSettings) -> Gathered:
    """Run every family of tests that the window has rows for."""
    evidence = Evidence(
        rows=window.rows,
        distinct=len(window.scores),
        min_rows=settings.min_rows,
        faults=collection_faults(reference, window),
    )
    if window.rows < settings.min_rows or len(window.scores) < MIN_ROWS:
        return Gathered(evidence)
    scores, alpha = window.scores, settings.alpha
    measured = two_sample.measure(reference, scores)
    unseen = reference.unseen
    # Half the floor: "the class mix explains it" must not be said of a shift that only just misses the floor.
    within_floor = 0.5 + (settings.embedding_floor - 0.5) / 2
    properties = detectors.shifted(
        two_sample.property_columns(reference, reference.scores),
        two_sample.property_columns(reference, scores),
        measured.p_values,
        alpha=alpha,
        floor=settings.property_floor,
    )
    return Gathered(
        Evidence(
            rows=evidence.rows,
            distinct=evidence.distinct,
            min_rows=evidence.min_rows,
            faults=evidence.faults,
            properties=properties,
            output=detectors.shifted(
                two_sample.output_columns(reference, unseen),
                two_sample.output_columns(reference, scores),
                measured.p_values,
                alpha=alpha,
                floor=settings.output_floor,
            ),
            class_mix=detectors.class_mix(
                unseen, scores, measured.class_mix, alpha=alpha, floor=settings.class_mix_floor
            ),
            embedding=detectors.embedding(measured.separation, alpha=alpha, floor=settings.embedding_floor),
            within_classes=detectors.embedding_within_classes(
                measured.within, measured.within_grown, alpha=alpha, floor=within_floor
            ),
            labels=detectors.labels(
                unseen.answers,
                window.answers,
                reference.classes,
                alpha=alpha,
                floor=settings.accuracy_drop,
                least=settings.min_labels,
            ),
            misfit=misfit(reference.scores.properties, scores.properties) if properties.alarm else None,
            mix_explains_properties=properties.alarm and mix_explains(reference, window, properties),
        ),
        measured,
    )


def collection_faults(reference: Reference, window: Window) -> tuple[str, ...]:
    """Broken rules of collection, in words. Only what no healthy stream does: the reference says nothing about
    formats, modes and sizes."""
    faults = []
    repeated = window.collection.most_repeated
    if window.rows > 1 and repeated >= MOST_REPEATED:
        faults.append(f"{repeated:.0%} of the window is one and the same image: a frozen camera, or a client in a loop")
    scores = window.scores
    if len(scores) and "contrast" in reference.properties:
        index = reference.properties.index("contrast")
        known = reference.scores.properties[:, index]
        known = known[np.isfinite(known)]
        if len(known):
            empty = float((scores.properties[:, index] < _EMPTY_CONTRAST * np.quantile(known, 0.01)).mean())
            if empty >= MOST_EMPTY:
                faults.append(f"{empty:.0%} of the images show nothing (contrast near 0): a covered lens or no light")
    if len(scores):
        outputs = {
            "probabilities": scores.probabilities,
            "embedding": scores.embedding,
            "properties": scores.properties,
            "confidence": scores.confidence[:, None],
        }
        for output, rows in outputs.items():
            damaged = float((~np.isfinite(rows)).any(axis=1).mean())
            if damaged >= MOST_DAMAGED:
                faults.append(f"{damaged:.0%} of the rows hold {output} that are not numbers: the recording is damaged")
    return tuple(faults)


def mix_explains(reference: Reference, window: Window, properties: Family) -> bool:
    """Does the class mix explain the shift of the properties? True where every column that raised the alarm falls
    under the floor once reference rows weigh as much as the window has of their class."""
    names, before, now = detectors.mixes(reference.scores.predicted, window.scores.predicted)
    ratio = dict(zip(names, np.divide(now, before, out=np.zeros_like(now), where=before > 0), strict=True))
    weights = np.array([ratio[str(name)] for name in reference.scores.predicted])
    for column in properties.alarmed:
        index = reference.properties.index(column.name.removeprefix("property:"))
        left, right = reference.scores.properties[:, index], window.scores.properties[:, index]
        known = np.isfinite(left)
        right = right[np.isfinite(right)]
        if weights[known].sum() <= 0:
            return False
        distance = wasserstein_distance(left[known], right, u_weights=weights[known])
        if distance / max(float(left[known].std()), LEAST_SPREAD) >= properties.floor:
            return False
    return True
