"""Which labels are probably wrong: confident learning (Northcutt, Jiang and Chuang, JAIR 70, 2021), and a bar to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import poisson

from training.calibrate import fit_temperature

Floats = NDArray[np.float64]

#: Confident learning names every row that it finds off the diagonal: on clean sketches, of which a probe has five in
#: six right, 45 to 75 of 980, none of them wrongly labelled. With these bars it names at most 3 there, and of 3 and
#: 10 % planted errors in photos and steel 38 to 75 %, .98 to 1.00 of those named being planted.
LEAST_MARGIN: Final = 0.5
MOST_EXPECTED: Final = 0.5
_CHANCE: Final = 0.05
_LEVELS: Final = 2000
_CHUNK: Final = 4096  # rows


@dataclass(frozen=True, slots=True)
class LabelError:
    """Row `index` is labelled `given` (a class's index), and the model is sure that it is `suggested`. `score` is the
    normalised margin, in 0..1: the suggested class's probability less the given one's, both calibrated."""

    index: int
    given: int
    suggested: int
    score: float


def likely_label_errors(
    probabilities: NDArray[np.floating],
    labels: Sequence[int],
    *,
    least_margin: float = LEAST_MARGIN,
    most_expected: float = MOST_EXPECTED,
) -> tuple[LabelError, ...]:
    """The rows whose label the model contradicts with confidence, the surest first; none where the evidence is weak.

    A class's threshold is the mean probability that the rows labelled with it have of it. A row counts as the most
    probable of the classes whose threshold it reaches (the confident joint); off its diagonal are the candidates. The
    list is cut where it stops being a surprise: a model that is as sure as it is right is contradicted now and then by
    labels that are right. No more than `most_expected` of the list may be explained by that, and its length must be
    beyond chance (a Poisson count, at 5 %).

    Args:
        probabilities: [N, K], each row by a model that was not trained on it (cross-validation, or held out); they are
            calibrated here, on the given labels.
        labels: [N] in 0..K-1, as given.
        least_margin: a row with a smaller score is never named.
        most_expected: the share of the list that chance alone may explain.
    """
    given = np.asarray(labels)
    if not len(given):
        return ()
    calibrated = _calibrated(probabilities, given)
    thresholds = np.full(calibrated.shape[1], np.inf)  # a class that nothing is labelled with is not suggested
    for label in np.unique(given):
        thresholds[label] = calibrated[given == label, label].mean()
    reached = np.where(calibrated >= thresholds, calibrated, 0.0)
    suggested, confidence = reached.argmax(axis=1), reached.max(axis=1)
    margins = confidence - calibrated[np.arange(len(given)), given]
    candidates = np.flatnonzero((suggested != given) & (margins > 0))
    candidates = candidates[np.argsort(-margins[candidates], kind="stable")]
    expected = _expected(calibrated, suggested, confidence, margins[candidates])
    count = np.arange(1, len(candidates) + 1)
    surprising = np.flatnonzero((expected <= most_expected * count) & (poisson.sf(count - 1, expected) <= _CHANCE))
    named = candidates[: surprising[-1] + 1] if len(surprising) else candidates[:0]
    return tuple(
        LabelError(int(at), int(given[at]), int(suggested[at]), float(margins[at]))
        for at in named
        if margins[at] >= least_margin
    )


def _calibrated(probabilities: NDArray[np.floating], given: NDArray[np.int64]) -> Floats:
    logits = np.log(np.clip(probabilities.astype(np.float64), 1e-12, None))
    scaled = np.exp(logits / fit_temperature(logits, given.tolist()))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))


def _expected(calibrated: Floats, suggested: NDArray[np.int64], confidence: Floats, margins: Floats) -> Floats:
    """How many rows would have at least each of these margins if every label were drawn from the calibrated
    probabilities: what right labels alone would show."""
    counts = np.zeros(_LEVELS)
    for start in range(0, len(calibrated), _CHUNK):
        part = slice(start, start + _CHUNK)
        chance = calibrated[part].copy()
        below = confidence[part, None] - chance
        chance[np.arange(len(chance)), suggested[part]] = 0.0
        chance[confidence[part] == 0] = 0.0  # reaches no class's threshold, so it would not be a candidate
        counts += np.histogram(below, bins=_LEVELS, range=(0.0, 1.0), weights=chance)[0]
    at_least = counts[::-1].cumsum()[::-1]
    return np.asarray(at_least[np.minimum((margins * _LEVELS).astype(int), _LEVELS - 1)])
