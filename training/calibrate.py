"""Temperature scaling: one number that makes probabilities as sure as they are right (Guo et al., ICML 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from training.probe import log_loss

#: A few dozen validation images, all right, would otherwise ask for certainty.
LOWEST: Final = 0.25
HIGHEST: Final = 10.0


def fit_temperature(logits: NDArray[np.float64], labels: Sequence[int]) -> float:
    """The temperature with the least log-loss on these rows; never worse than 1.

    Args:
        logits: [N, K]; labels: [N] in 0..K-1. Rows the head was not trained on.
    """
    found = minimize_scalar(
        lambda log_temperature: log_loss(logits, labels, math.exp(log_temperature)),
        bounds=(math.log(LOWEST), math.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    temperature = math.exp(float(found.x))
    return temperature if log_loss(logits, labels, temperature) < log_loss(logits, labels) else 1.0
