"""A window and its reference -> the evidence a verdict rests on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import wasserstein_distance

from monitoring import detectors, two_sample
from monitoring.attribution import Evidence
from monitoring.collection import Facts, examine
from monitoring.decode_failures import NONE_FAILED, Failures
from monitoring.detectors import LEAST_SPREAD, Family
from monitoring.embedding import MIN_ROWS
from monitoring.lens import misfit
from monitoring.two_sample import Measured
from monitoring.window import Reference, Window
from perennial.settings import MonitorSettings


@dataclass(frozen=True, slots=True)
class Gathered:
    """`collection` is how the window came in; `measured` has the numbers of the tests, None where none could be run."""

    evidence: Evidence
    collection: Facts
    measured: Measured | None = None


def gather(
    reference: Reference, window: Window, settings: MonitorSettings, failures: Failures = NONE_FAILED
) -> Gathered:
    """Run every family of tests that the window has rows for."""
    if window.rows < settings.min_rows or len(window.scores) < MIN_ROWS:
        facts = examine(reference, window, failures, settings)
        evidence = Evidence(
            rows=window.rows, distinct=len(window.scores), min_rows=settings.min_rows, faults=facts.faults
        )
        return Gathered(evidence, facts)
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
    found = misfit(reference.scores.properties, scores.properties) if properties.alarm else None
    other_images = found is not None and not found.one_lens
    facts = examine(reference, window, failures, settings, other_images=other_images)
    return Gathered(
        Evidence(
            rows=window.rows,
            distinct=len(scores),
            min_rows=settings.min_rows,
            faults=facts.faults,
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
            misfit=found,
            mix_explains_properties=properties.alarm and mix_explains(reference, window, properties),
        ),
        facts,
        measured,
    )


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
