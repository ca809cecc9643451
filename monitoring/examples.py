"""The images that show what a check found, each beside the reference images that it is most like."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from monitoring.diversity import apart
from monitoring.embedding import domain_scores, share_below
from monitoring.verdict import CALM, Verdict
from monitoring.window import Reference, Scores, Window

Array = NDArray[np.float64]

MOST: Final = 8
NEIGHBOURS: Final = 3
# An image is worth showing by the share of the reference that is less drifted, to this power, and not below so much:
# what is as the reference has it, and near-copies of what is shown already, are left out.
_CLEARLY: Final = 4
_LEAST: Final = 0.1


class Why(StrEnum):
    """What an image is an example of."""

    DRIFTED = "drifted"
    CONTRADICTED = "contradicted"  # its label is not what the model said


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A reference image and how far it is, in standard deviations of the reference's embedding."""

    digest: str
    label: str | None
    predicted: str
    distance: float


@dataclass(frozen=True, slots=True)
class Example:
    """A captured image. `drift` is the share of reference images that look less like the window's; `stands_out` is the
    property in which it is furthest from the reference's mean, and by how many standard deviations; `nearest` are the
    reference images that it is most like, the nearest first."""

    prediction_id: str
    image_url: str
    why: Why
    drift: float
    predicted: str
    confidence: float
    label: str | None
    stands_out: tuple[str, float] | None
    nearest: tuple[Neighbour, ...]

    def document(self) -> dict[str, Any]:
        """For programs, and for the operations page."""
        return {
            "prediction_id": self.prediction_id,
            "why": str(self.why),
            "drift": self.drift,
            "predicted": self.predicted,
            "confidence": self.confidence,
            "label": self.label,
            "stands_out": list(self.stands_out) if self.stands_out is not None else None,
            "nearest": [
                {"digest": each.digest, "label": each.label, "predicted": each.predicted} for each in self.nearest
            ],
        }


def examples_of(
    verdict: Verdict,
    reference: Reference,
    window: Window,
    pictured: Collection[str],
    *,
    novel: NDArray[np.bool_] | None = None,
    most: int = MOST,
) -> tuple[Example, ...]:
    """Up to `most` captured images of the window that show what the verdict says; none where it says that nothing
    changed. Of a concept drift they are images whose label contradicts the model, the surest answers first; else those
    that drifted most. They are not like one another.

    Args:
        pictured: the digests of reference images that can be shown, among which the nearest are sought.
        novel: [M] where a few images like nothing in the reference are all that was found: these, and no others.
    """
    scores = window.scores
    whole = np.isfinite(scores.embedding).all(axis=1) & np.isfinite(scores.confidence)
    at = [place for place, image in enumerate(window.images) if image is not None and whole[place]]
    contradicted = verdict is Verdict.CONCEPT_DRIFT
    if contradicted:
        at = [place for place in at if scores.labels[place] not in (None, scores.predicted[place])]
    elif novel is not None:
        at = [place for place in at if novel[place]]
    if verdict in CALM or not at:
        return ()
    found = domain_scores(reference.embedded.embedding, scores.embedding)
    drift = np.full(len(scores), 0.5) if found is None else share_below(*found)
    worth = scores.confidence[at].astype(np.float64) if contradicted else _drifted(drift, found)[at]
    if novel is not None and not contradicted:
        worth = (1 + worth) / 2  # each is worth showing, though a classifier of whole windows may not see it
    points, places = _standardised(reference.scores, scores.embedding[at])
    shown = [place for place, digest in enumerate(reference.scores.digests) if digest in pictured]
    chosen = apart(worth, points, most, least=_LEAST)
    return tuple(
        Example(
            prediction_id=window.ids[at[number]],
            image_url=str(window.images[at[number]]),
            why=Why.CONTRADICTED if contradicted else Why.DRIFTED,
            drift=float(drift[at[number]]),
            predicted=str(scores.predicted[at[number]]),
            confidence=float(scores.confidence[at[number]]),
            label=scores.labels[at[number]],
            stands_out=_stands_out(reference, scores.properties[at[number]]),
            nearest=_nearest(reference.scores, places, shown, points[number]),
        )
        for number in chosen
    )


def _drifted(drift: Array, found: tuple[Array, Array] | None) -> Array:
    """How much each row [M] is worth showing, in 0..1; all are 1 where nothing is known. Where drift is plain, every
    row is further out than all of the reference: then it is their order among themselves that tells them apart."""
    if found is None:
        return np.ones(len(drift))
    order = rankdata(np.nan_to_num(found[1], nan=-np.inf), method="max") / len(drift)
    return np.asarray((drift * order) ** _CLEARLY)


def _standardised(reference: Scores, rows: NDArray[Any]) -> tuple[Array, Array]:
    """The rows' embeddings [n, C] and the reference's [N, C] in standard deviations of the reference, in the components
    that vary there. A reference row with a value that is not a number lies infinitely far."""
    known = reference.embedding.astype(np.float64)
    whole = np.asarray(np.isfinite(known).all(axis=1))
    middle, spread = _moments(known[whole])
    varies = spread > 0
    places = np.where(whole[:, None], (known[:, varies] - middle[varies]) / spread[varies], np.inf)
    return (rows[:, varies].astype(np.float64) - middle[varies]) / spread[varies], places


def _moments(values: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each column's numbers; the latter is 0 where nothing varies, or is known."""
    finite = np.isfinite(values)
    count = np.maximum(finite.sum(axis=0), 1)
    mean = np.where(finite, values, 0.0).sum(axis=0) / count
    spread = np.sqrt((np.where(finite, values - mean, 0.0) ** 2).sum(axis=0) / count)
    return mean, np.where(spread > 1e-9 * (1 + np.abs(mean)), spread, 0.0)


def _nearest(reference: Scores, places: Array, shown: Sequence[int], point: Array) -> tuple[Neighbour, ...]:
    distance = np.linalg.norm(places[list(shown)] - point, axis=1)
    return tuple(
        Neighbour(
            reference.digests[shown[near]],
            reference.labels[shown[near]],
            str(reference.predicted[shown[near]]),
            float(distance[near]),
        )
        for near in np.argsort(distance, kind="stable")[:NEIGHBOURS]
        if np.isfinite(distance[near])
    )


def _stands_out(reference: Reference, properties: NDArray[Any]) -> tuple[str, float] | None:
    mean, spread = _moments(reference.scores.properties.astype(np.float64))
    distance = np.where(spread > 0, properties - mean, 0.0) / np.where(spread > 0, spread, 1.0)
    distance = np.where(np.isfinite(distance), distance, 0.0)
    furthest = int(np.abs(distance).argmax())
    return (reference.properties[furthest], float(distance[furthest])) if distance[furthest] else None
