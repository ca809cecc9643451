"""A window and its reference -> the evidence a verdict rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from monitoring import detectors, two_sample
from monitoring.attribution import Evidence
from monitoring.collection import Facts, examine
from monitoring.decode_failures import NONE_FAILED, Failures
from monitoring.detectors import Column, Family
from monitoring.embedding import MIN_ROWS, chance_auc
from monitoring.lens import misfit
from monitoring.novelty import Novelty
from monitoring.two_sample import Measured
from monitoring.window import Reference, Scores, Window
from perennial.effects import LEAST_SPREAD, shares, standardised_distance
from perennial.settings_sections import MonitorSettings

#: Standard deviations by which a property of the novel images differs if it is to be named.
_NOVEL_BY: Final = 1.0


@dataclass(frozen=True, slots=True)
class Gathered:
    """`collection` is how the window came in; `measured` has the numbers of the tests, None where none could be run."""

    evidence: Evidence
    collection: Facts
    measured: Measured | None = None


def gather(
    trained: Reference,
    window: Window,
    settings: MonitorSettings,
    failures: Failures = NONE_FAILED,
    *,
    usual: Reference | None = None,
) -> Gathered:
    """Run every family of tests that the window has rows for.

    Args:
        trained: the bundle's reference. Labels are compared with it, and how images came in.
        usual: what all else is compared with, if not with the same.
    """
    reference = usual or trained
    if window.rows < settings.min_rows or len(window.scores) < MIN_ROWS:
        facts = examine(trained, window, failures, settings)
        evidence = Evidence(
            rows=window.rows, distinct=len(window.scores), min_rows=settings.min_rows, faults=facts.faults
        )
        return Gathered(evidence, facts)
    scores, alpha, floors = window.scores, settings.alpha, _floors(reference, window.scores, settings)
    measured = two_sample.measure(reference, scores)
    unseen = reference.unseen
    # Half the floor: "the class mix explains it" must not be said of a shift that only just misses the floor.
    within_floor = 0.5 + (floors.embedding - 0.5) / 2
    properties = detectors.shifted(
        two_sample.property_columns(reference, reference.scores),
        two_sample.property_columns(reference, scores),
        measured.p_values,
        alpha=alpha,
        floor=floors.properties,
    )
    found = misfit(reference.scores.properties, scores.properties) if properties.alarm else None
    other_images = found is not None and not found.one_lens
    facts = examine(trained, window, failures, settings, other_images=other_images)
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
                floor=floors.output,
            ),
            class_mix=detectors.class_mix(unseen, scores, measured.class_mix, alpha=alpha, floor=floors.class_mix),
            embedding=detectors.embedding(measured.separation, alpha=alpha, floor=floors.embedding),
            novelty=detectors.novelty(measured.novelty, alpha=alpha, floor=settings.novelty_floor),
            within_classes=detectors.embedding_within_classes(
                measured.within, measured.within_grown, alpha=alpha, floor=within_floor
            ),
            labels=detectors.labels(
                trained.unseen.answers,
                window.answers,
                reference.classes,
                alpha=alpha,
                floor=settings.accuracy_drop,
                least=settings.min_labels,
            ),
            misfit=found,
            mix_explains_properties=properties.alarm and mix_explains(reference, window, properties),
            novel_properties=novel_properties(reference, scores, measured.novelty["properties"]),
        ),
        facts,
        measured,
    )


@dataclass(frozen=True, slots=True)
class _Floors:
    """The least effect that counts, by family."""

    properties: float
    output: float
    class_mix: float
    embedding: float


def _floors(reference: Reference, window: Scores, settings: MonitorSettings) -> _Floors:
    """What the settings call worth acting on, and never less than what chance makes of windows of this size."""
    every, unseen, now = len(reference.scores), int(reference.held_out.sum()), len(window)
    chance = reference.chance

    def least(family: str, known: int, practical: float) -> float:
        return practical if chance is None else max(practical, chance.of(family, known, now))

    return _Floors(
        least("properties", every, settings.property_floor),
        least("output", unseen, settings.output_floor),
        least("class_mix", unseen, settings.class_mix_floor),
        max(settings.embedding_floor, chance_auc(len(reference.embedded), now)),
    )


def novel_properties(reference: Reference, window: Scores, found: Novelty | None) -> tuple[Column, ...]:
    """The properties by which the window's novel images differ from the reference, at most three, most first."""
    if found is None or not found.rows.any():
        return ()
    columns = []
    for index, name in enumerate(reference.properties):
        known = reference.scores.properties[:, index]
        known, novel = known[np.isfinite(known)], window.properties[found.rows, index]
        effect = standardised_distance(known, novel)
        shift = float(novel.mean() - known.mean()) / max(float(known.std()), LEAST_SPREAD)
        columns.append(Column(f"property:{name}", effect, shift=shift))
    moved = sorted(columns, key=lambda column: -column.effect)
    return tuple(column for column in moved[:3] if column.effect >= _NOVEL_BY)


def mix_explains(reference: Reference, window: Window, properties: Family) -> bool:
    """Does the class mix explain the shift of the properties? True where every column that raised the alarm falls
    under the floor once reference rows weigh as much as the window has of their class."""
    names, before, now = shares(reference.scores.predicted, window.scores.predicted)
    ratio = dict(zip(names, np.divide(now, before, out=np.zeros_like(now), where=before > 0), strict=True))
    weights = np.array([ratio[str(name)] for name in reference.scores.predicted])
    for column in properties.alarmed:
        index = reference.properties.index(column.name.removeprefix("property:"))
        left, right = reference.scores.properties[:, index], window.scores.properties[:, index]
        known = np.isfinite(left)
        right = right[np.isfinite(right)]
        if weights[known].sum() <= 0:
            return False
        if standardised_distance(left[known], right, weights[known]) >= properties.floor:
            return False
    return True
