"""Is the model as often right as it says? Reliability diagrams (Niculescu-Mizil and Caruana, ICML 2005)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from perennial.bundle import Estimate
from training.evaluate import accuracy_interval, calibration

BINS: Final = 15


@dataclass(frozen=True, slots=True)
class Bin:
    """The answers with a confidence in low..high: how many, how sure on average, and the share that was right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: Estimate


@dataclass(frozen=True, slots=True)
class Reliability:
    """The bins that hold any answer, and the expected calibration error over all of them."""

    bins: tuple[Bin, ...]
    ece: Estimate


def reliability(probabilities: NDArray[np.float32], labels: Sequence[int], seed: int = 0) -> Reliability:
    """15 bins of equal width, those of `evaluate.calibration`, each share with Wilson's 95 % interval.

    Args:
        probabilities: [N, K]; labels: [N] in 0..K-1.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == np.asarray(labels)
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = tuple(
        Bin(
            low=at / BINS,
            high=(at + 1) / BINS,
            count=int(inside.sum()),
            confidence=float(confidence[inside].mean()),
            accuracy=accuracy_interval(int(right[inside].sum()), int(inside.sum())),
        )
        for at in range(BINS)
        if (inside := places == at).any()
    )
    return Reliability(bins, calibration(probabilities, labels, seed)["ece"])


def before_temperature(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """What the probabilities [N, K] were before the logits were divided by `temperature`: p ** temperature,
    normalised."""
    logits = np.log(np.clip(probabilities.astype(np.float64), 1e-45, None)) * temperature
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)
