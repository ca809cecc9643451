"""How good a model is on held-out images, each number with its 95 % interval, scored by the exported graph."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from perennial.bundle import ClassMetrics, Estimate
from perennial.errors import TruncatedImage
from perennial.graph import Graph, GraphOutput
from perennial.images import ImageLimits, InputRule, Pixels
from perennial.intervals import accuracy_interval as accuracy_interval
from perennial.progress import IMAGES, Progress, Step, silent
from training.datasets import DEFAULT_LIMITS, Row
from training.features import BATCH, decode, in_batches

_DRAWS: Final = 2000
_DRAWN_AT_ONCE: Final = 2**22  # numbers: 32 MiB
_BINS: Final = 15


def score(
    graph: Graph,
    rows: Sequence[Row],
    rule: InputRule,
    limits: ImageLimits = DEFAULT_LIMITS,
    progress: Progress = silent,
) -> GraphOutput:
    """Decode the rows' images and run the graph on them, in row order. Raises as `score_each` does."""
    return score_each({graph.precision: graph}, rows, rule, limits, progress)[graph.precision]


def score_each(
    graphs: Mapping[str, Graph],
    rows: Sequence[Row],
    rule: InputRule,
    limits: ImageLimits = DEFAULT_LIMITS,
    progress: Progress = silent,
    look: Callable[[Sequence[Row], Pixels], None] | None = None,
) -> dict[str, GraphOutput]:
    """Decode the rows' images once and run every graph on them, in row order. `look` is shown each batch's rows and
    pixels [N, H, W, 3], on several threads at a time.

    Raises:
        TruncatedImage: an image cannot be decoded; the message names it.
        InvalidDataset: a file is gone, or was changed since it was listed.
    """

    def run(batch: Sequence[Row]) -> dict[str, GraphOutput]:
        _, pixels, broken = decode(batch, rule, limits)
        if broken:
            row = next(row for row in batch if row.digest in broken)
            raise TruncatedImage(f"{row.location}: {broken[row.digest]}")
        if look is not None:
            look(batch, pixels)
        return {name: graph.run(pixels) for name, graph in graphs.items()}

    parts: dict[str, list[GraphOutput]] = {name: [] for name in graphs}
    done = 0
    for outputs in in_batches(rows, run, threads=os.cpu_count() or 1):
        for name, output in outputs.items():
            parts[name].append(output)
        done = min(done + BATCH, len(rows))
        progress(Step("scoring images", done, len(rows), IMAGES))
    if not done:
        raise ValueError("there are no rows to score")
    return {name: _joined(each) for name, each in parts.items()}


def _joined(parts: Sequence[GraphOutput]) -> GraphOutput:
    return GraphOutput(
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.embedding for part in parts]),
        np.concatenate([part.properties for part in parts]),
    )


def f1_interval(right: int, wrong: int) -> Estimate:
    """F1 with its 95 % interval, of `right` true positives and `wrong` false positives and false negatives together.

    Wilson's interval of right / (right + wrong), of which F1 is a rising function (Lam, Gopal and Qian,
    arXiv:2309.14621, "Wilson indirect"). Of nothing it is 0, anywhere in 0..1.
    """
    share = accuracy_interval(right, right + wrong)
    value, low, high = (2 * number / (1 + number) for number in (share.value, share.low, share.high))
    return Estimate(value=value, low=low, high=high)


def metrics(
    true: Sequence[str], predicted: Sequence[str], classes: Sequence[str], seed: int = 0
) -> tuple[dict[str, Estimate], dict[str, ClassMetrics]]:
    """`accuracy` and `macro_f1` over all classes; precision, recall and F1 of each class.

    Shares and the F1 of a class have Wilson's interval, macro-F1 a seeded Bayesian one. A class never predicted has
    precision 0 (0..1).
    """
    counts = confusion(true, predicted, classes)
    right, of_true, of_predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    overall = {
        "accuracy": accuracy_interval(int(right.sum()), int(counts.sum())),
        "macro_f1": _macro_f1(counts, seed),
    }
    each = {
        name: ClassMetrics(
            precision=accuracy_interval(int(right[at]), int(of_predicted[at])),
            recall=accuracy_interval(int(right[at]), int(of_true[at])),
            f1=f1_interval(int(right[at]), int(of_true[at] + of_predicted[at] - 2 * right[at])),
            support=int(of_true[at]),
        )
        for at, name in enumerate(classes)
    }
    return overall, each


def confusion(true: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Counts [K, K]: rows are true classes, columns predicted ones."""
    index = {name: at for at, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), np.int64)
    for truth, guess in zip(true, predicted, strict=True):
        counts[index[truth], index[guess]] += 1
    return counts


def calibration(probabilities: NDArray[np.float32], true: Sequence[int], seed: int = 0) -> dict[str, Estimate]:
    """How far to trust the probabilities [N, K]: `nll` (nats) and `ece` (expected calibration error, 15 equal bins;
    Guo et al., 2017), each with a seeded bootstrap interval."""
    labels = np.asarray(true)
    chosen = np.clip(probabilities[np.arange(len(labels)), labels].astype(np.float64), 1e-12, 1.0)
    losses = -np.log(chosen)
    confidence = probabilities.max(axis=1).astype(np.float64)
    gap = (probabilities.argmax(axis=1) == labels) - confidence
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    member = np.eye(_BINS)[bins] * gap[:, None]
    random, share = np.random.default_rng(seed), np.full(len(labels), 1 / len(labels))
    nll, ece = [], []
    most = max(1, _DRAWN_AT_ONCE // len(labels))
    for start in range(0, _DRAWS, most):
        resamples = random.multinomial(len(labels), share, min(most, _DRAWS - start))
        nll.append(resamples @ losses / len(labels))
        ece.append(np.abs(resamples @ member).sum(axis=1) / len(labels))
    return {
        "nll": _interval(float(losses.mean()), np.concatenate(nll)),
        "ece": _interval(float(np.abs(member.sum(axis=0)).sum() / len(labels)), np.concatenate(ece)),
    }


def _macro_f1(counts: NDArray[np.int64], seed: int) -> Estimate:
    # Resampling rows would call ten right answers of ten certain. Drawing what the confusion matrix could have been
    # does not: a Dirichlet for each true class (Goutte and Gaussier, 2005), one pseudo-count over all cells (Perks).
    # The empty cells of a row are drawn as one, and only sums are kept: whole matrices of a thousand classes would take
    # 16 GB and minutes.
    classes = len(counts)
    random = np.random.default_rng(seed)
    support, pseudo = counts.sum(axis=1), 1 / classes**2
    right, answered, everywhere = np.empty((_DRAWS, classes)), np.zeros((_DRAWS, classes)), np.zeros((_DRAWS, 1))
    for at, row in enumerate(counts):
        filled = np.flatnonzero((row > 0) | (np.arange(classes) == at))
        empty = classes - len(filled)
        drawn = random.dirichlet([*(row[filled] + pseudo), *([empty * pseudo] if empty else [])], _DRAWS) * support[at]
        share = drawn[:, -1:] / empty if empty else 0.0
        right[:, at] = drawn[:, np.searchsorted(filled, at)]
        answered[:, filled] += drawn[:, : len(filled)] - share
        everywhere += share
    answered += everywhere
    value = _mean_f1(counts.diagonal()[None], counts.sum(axis=0)[None], support)
    return _interval(float(value[0]), _mean_f1(right, answered, support))


def _mean_f1(
    right: NDArray[np.generic], answered: NDArray[np.generic], support: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Macro-F1 of M confusion matrices, from their diagonals and column sums [M, K] and their row sums [K]; a class
    with neither truth nor prediction counts 0."""
    above = 2.0 * right.astype(np.float64)
    below = answered.astype(np.float64) + support
    return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=below > 0).mean(axis=1))


def _interval(value: float, draws: NDArray[np.float64]) -> Estimate:
    low, high = np.percentile(draws, (2.5, 97.5))
    return Estimate(value=value, low=min(value, float(low)), high=max(value, float(high)))
