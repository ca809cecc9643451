"""Every two-sample test of a check, on arrays: the numbers that the verdict rests on and the Evidently report shows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from monitoring.chi_square import two_sample_chi_square
from monitoring.detectors import usable
from monitoring.embedding import Separation, separate, separate_within, separate_within_grown, unlikeness
from monitoring.novelty import Novelty, find_novel
from monitoring.window import Reference, Scores
from perennial.effects import tested_probabilities

CONFIDENCE: Final = "confidence"


@dataclass(frozen=True, slots=True)
class Measured:
    """`p_values` is by column, not corrected; a separation is None where it could not be measured, and so is novelty,
    which is by what it was looked for in."""

    p_values: dict[str, float]
    class_mix: float
    separation: Separation | None
    within: Separation | None
    within_grown: Separation | None
    novelty: dict[str, Novelty | None]


def property_columns(reference: Reference, scores: Scores) -> dict[str, Any]:
    """The properties by column name."""
    return {f"property:{name}": scores.properties[:, index] for index, name in enumerate(reference.properties)}


def output_columns(reference: Reference, scores: Scores) -> dict[str, Any]:
    """The class probabilities and the confidence by column name."""
    tested = tested_probabilities(reference.scores.probabilities)
    columns = {f"probability:{reference.classes[index]}": scores.probabilities[:, index] for index in tested}
    return {**columns, CONFIDENCE: scores.confidence}


def measure(reference: Reference, window: Scores, *, seed: int = 0) -> Measured:
    """Compare a window with its reference: the held-out rows stand for outputs and classes, for embeddings too where
    there are enough, and all rows for the rest."""
    unseen = reference.unseen
    pairs = [
        (property_columns(reference, reference.scores), property_columns(reference, window)),
        (output_columns(reference, unseen), output_columns(reference, window)),
    ]
    p_values = {
        name: _kolmogorov_smirnov(left[name], right[name])
        for left, right in pairs
        for name in left
        if usable(left[name], right[name]) is None
    }
    left, left_classes, right, right_classes = _embeddings(reference.embedded, window)
    return Measured(
        p_values,
        two_sample_chi_square(unseen.predicted, window.predicted),
        separate(left, right, seed=seed),
        separate_within(left, left_classes, right, right_classes, seed=seed),
        separate_within_grown(left, left_classes, right, right_classes, seed=seed),
        {
            "properties": find_novel(reference.scores.properties, window.properties, seed=seed),
            # A network knows what it learnt from: beside that, all else would be new to it.
            "embedding": find_novel(unseen.embedding, window.embedding, seed=seed),
        },
    )


def unlike_reference(reference: Scores, window: Scores, *, seed: int = 0) -> NDArray[np.float64]:
    """How unlike the reference each row of the window is, [M] in 0..1: see `embedding.unlikeness`. Of a row that is not
    all numbers nothing is known: .5."""
    known, whole = (np.isfinite(scores.embedding).all(axis=1) for scores in (reference, window))
    found = np.full(len(window), 0.5)
    found[whole] = unlikeness(reference.embedding[known], window.embedding[whole], seed=seed)
    return found


def usable_components(reference: Scores, window: Scores) -> list[int]:
    """Components of the embedding that can be compared."""
    return [
        index
        for index in range(reference.embedding.shape[1])
        if usable(reference.embedding[:, index], window.embedding[:, index]) is None
    ]


def _kolmogorov_smirnov(left: NDArray[Any], right: NDArray[Any]) -> float:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ks_2samp: Exact calculation unsuccessful", category=RuntimeWarning)
        found = ks_2samp(*(side[np.isfinite(side)].astype(np.float64) for side in (left, right)))
    return float(found.pvalue)


def _embeddings(reference: Scores, window: Scores) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The rows of either side that are all numbers, and the class predicted for each."""
    components = usable_components(reference, window)
    found: list[NDArray[Any]] = []
    for scores in (reference, window):
        rows = scores.embedding[:, components].astype(np.float64)
        kept = np.isfinite(rows).all(axis=1)
        found += [rows[kept], scores.predicted.astype(str)[kept]]
    return found[0], found[1], found[2], found[3]
