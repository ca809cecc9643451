"""Ways of saying that a window has drifted, each a function of the reference's and the window's rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest, ks_2samp
from sklearn.linear_model import LogisticRegression

from benchmarks.drift.worlds import window_of
from monitoring.attribution import attribute
from monitoring.evidence import gather
from monitoring.quiet_evidently import quietly
from monitoring.verdict import CALM, Verdict
from monitoring.window import Reference, Scores
from perennial.settings_sections import MonitorSettings

ALPHA: Final = 0.05  # of the peers, as in the paper
_UNLABELLED: Final = 5  # families of tests
STATED: Final = _UNLABELLED * MonitorSettings().alpha  # of Perennial's whole verdict where there are no labels
_PERMUTATIONS: Final = 100


@dataclass(frozen=True, eq=False)
class Sides:
    """`before` and `now` are principal components [N, 32] and [M, 32] of the raw pixels."""

    reference: Reference
    window: Scores
    before: NDArray[np.float32]
    now: NDArray[np.float32]
    seed: int


Alarm = Callable[[Sides], bool]


def perennial(sides: Sides) -> bool:
    return verdict(sides.reference, sides.window) not in CALM


def verdict(reference: Reference, window: Scores, *, labelled: bool = False) -> Verdict:
    """The whole verdict, at the defaults but for the least rows."""
    rows = window if labelled else without_labels(window)
    settings = MonitorSettings(min_rows=20, min_labels=min(200, max(1, len(window))))
    return attribute(gather(reference, window_of(rows), settings).evidence)[0]


def without_labels(scores: Scores) -> Scores:
    return Scores(
        scores.probabilities, scores.embedding, scores.properties, scores.predicted, scores.confidence,
        (None,) * len(scores), scores.digests,
    )  # fmt: skip


def _kolmogorov_smirnov(before: NDArray[np.float32], now: NDArray[np.float32], alpha: float = ALPHA) -> bool:
    """Any column, Bonferroni."""
    least = min(float(ks_2samp(a, b).pvalue) for a, b in zip(before.T, now.T, strict=True))
    return least <= alpha / before.shape[1]


def softmax_ks(sides: Sides) -> bool:
    """Black-box shift detection (Lipton et al., ICML 2018): the probabilities of each class."""
    return _kolmogorov_smirnov(sides.reference.scores.probabilities, sides.window.probabilities)


def strict_softmax_ks(sides: Sides) -> bool:
    """The same at the false-alarm rate that Perennial states."""
    return _kolmogorov_smirnov(sides.reference.scores.probabilities, sides.window.probabilities, STATED)


def pixels_ks(sides: Sides) -> bool:
    return _kolmogorov_smirnov(sides.before, sides.now)


def domain_classifier(sides: Sides) -> bool:
    """Learn from half of either side, and count what is right of the other half (Lopez-Paz and Oquab, 2017)."""
    random = np.random.default_rng(sides.seed)
    x = np.concatenate([sides.reference.scores.embedding, sides.window.embedding])
    y = np.repeat([0, 1], [len(sides.reference.scores), len(sides.window)])
    least = min(len(sides.reference.scores), len(sides.window))
    balanced = np.concatenate([random.permutation(np.flatnonzero(y == side))[:least] for side in (0, 1)])
    order = random.permutation(balanced)
    learnt, asked = order[: len(order) // 2], order[len(order) // 2 :]
    if len(np.unique(y[learnt])) < 2:
        return False
    model = LogisticRegression(C=0.1, max_iter=200).fit(x[learnt], y[learnt])
    right = int((model.predict(x[asked]) == y[asked]).sum())
    return float(binomtest(right, len(asked), 0.5, alternative="greater").pvalue) <= ALPHA


def mmd(sides: Sides) -> bool:
    """Maximum mean discrepancy of the embedding, a Gaussian kernel as wide as the median distance (Gretton et al.,
    2012), with a permutation test."""
    before, now = sides.reference.scores.embedding, sides.window.embedding
    x = np.concatenate([before, now]).astype(np.float32)
    squares = (x**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares[None] - 2 * x @ x.T, 0)
    kernel = np.exp(-distances / np.median(distances[np.triu_indices(len(x), 1)]))
    random = np.random.default_rng(sides.seed)
    signs = np.repeat([1 / len(before), -1 / len(now)], [len(before), len(now)]).astype(np.float32)
    drawn = np.stack([signs, *(random.permutation(signs) for _ in range(_PERMUTATIONS))], axis=1)
    found = (drawn * (kernel @ drawn)).sum(axis=0)
    return float((found >= found[0] - 1e-9).mean()) <= ALPHA


def evidently_any(sides: Sides) -> bool:
    """What Evidently's data drift preset calls a drifted column, in any column."""
    return max(_evidently(sides)) == 1


def evidently_half(sides: Sides) -> bool:
    """What Evidently's data drift preset calls dataset drift: half of the columns or more."""
    return float(np.mean(_evidently(sides))) >= 0.5


@lru_cache(maxsize=1)  # both rows ask about the same sides, one after the other
def _evidently(sides: Sides) -> list[bool]:
    """Of each property, probability, the confidence and the prediction: Evidently's choice of test and threshold."""
    with quietly():
        from evidently.legacy.calculations.stattests import get_stattest
        from evidently.legacy.core import ColumnType

    reference, window = sides.reference.scores, sides.window
    left, right = (
        np.column_stack([side.properties, side.probabilities, side.confidence]) for side in (reference, window)
    )
    pairs = [(ColumnType.Numerical, pd.Series(a), pd.Series(b)) for a, b in zip(left.T, right.T, strict=True)]
    pairs.append((ColumnType.Categorical, pd.Series(reference.predicted), pd.Series(window.predicted)))
    drifted = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of exact p-values with ties
        for kind, before, now in pairs:
            test = get_stattest(before, now, kind, None)
            drifted.append(bool(test(before, now, kind, None).drifted))
    return drifted


#: By the name in the tables.
METHODS: Final[dict[str, Alarm]] = {
    "Perennial": perennial,
    "softmax KS (BBSDs)": softmax_ks,
    f"softmax KS at {STATED:.2%}": strict_softmax_ks,
    "PCA KS": pixels_ks,
    "domain classifier": domain_classifier,
    "MMD": mmd,
    "Evidently's defaults, any column": evidently_any,
    "Evidently's defaults, half of them": evidently_half,
}
