"""The linear probe: frozen features, a new head.

Of features that are never negative (pooled after a ReLU, as most networks give) the square root is taken first, and all
are brought to one scale together rather than each to its own. On this project's data (ants and bees, steel defects,
photos, sketches; 10 to 50 images a class) that beats standardising each feature everywhere, by up to seven points
(steel, 10 a class: .962 against .895): a few features with long tails no longer decide (Tukey's ladder of powers;
Yang et al., ICLR 2021).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.float32]

#: Inverse strengths of the L2 penalty that are tried, strongest penalty first.
GRID: Final = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
_ITERATIONS: Final = 300
_WORSE: Final = 1.05  # the loss is unimodal in C: past its minimum by this factor, weaker penalties are not tried


@dataclass(frozen=True, slots=True)
class Probe:
    """A linear head: logits = f(features) @ weight.T + bias, f the square root if `root`, else nothing.

    `weight` [K, D], `bias` [K]. `penalty` is the C that was chosen, `losses` the mean log-loss on rows held out of each
    C that was tried, `accuracy` the share of those rows it has right.
    """

    weight: Floats
    bias: Floats
    penalty: float
    losses: dict[float, float]
    accuracy: float
    root: bool = False

    def logits(self, features: Floats) -> NDArray[np.float64]:
        """[N, D] -> [N, K]."""
        return np.asarray(_shaped(features, self.root) @ self.weight.T.astype(np.float64) + self.bias)


@dataclass(frozen=True, slots=True)
class CrossValidated:
    """A probe of all rows, and what the probe of the other folds said about each: `logits` [N, K], NaN for rows that
    are in no fold."""

    probe: Probe
    logits: NDArray[np.float64]


def linear_probe(
    features: Floats,
    labels: Sequence[int],
    weights: Sequence[float],
    validation_features: Floats,
    validation_labels: Sequence[int],
    classes: int,
    *,
    root: bool | None = None,
) -> Probe:
    """L2-regularised multinomial logistic regression, its penalty the one with the least log-loss on the validation
    rows.

    Args:
        features: [N, D] of the training rows, with `labels` [N] in 0..classes-1 (each at least once) and
            `weights` [N], by which a row counts.
        root: whether to take square roots; unless given, where no feature is negative.
    """
    root = never_negative(features) if root is None else root
    validation = _shaped(validation_features, root)
    truth = np.asarray(validation_labels)
    best: Probe | None = None
    losses: dict[float, float] = {}
    for penalty, weight, bias in _path(_shaped(features, root), np.asarray(labels), weights, classes):
        logits = validation @ weight.T + bias
        losses[penalty] = log_loss(logits, truth)
        if best is None or losses[penalty] < losses[best.penalty]:
            accuracy = float((logits.argmax(axis=1) == truth).mean())
            best = Probe(weight.astype(np.float32), bias.astype(np.float32), penalty, losses, accuracy, root)
        elif losses[penalty] > _WORSE * losses[best.penalty]:
            break
    assert best is not None
    return best


def cross_validated_probe(
    features: Floats,
    labels: Sequence[int],
    weights: Sequence[float],
    folds: NDArray[np.int64],
    classes: int,
    *,
    threads: int = 1,
    root: bool | None = None,
) -> CrossValidated:
    """The same where there are too few rows to keep some back: the penalty with the least log-loss over all folds,
    then a probe of every row.

    Args:
        folds: [N] the fold that each row is held out in, as `split_into_folds` gives them.
    """
    root = never_negative(features) if root is None else root
    X, y, counts = _shaped(features, root), np.asarray(labels), np.asarray(weights, np.float64)

    def held_out(fold: int) -> list[tuple[float, NDArray[np.float64]]]:
        kept = folds != fold
        return [
            (penalty, X[~kept] @ weight.T + bias)
            for penalty, weight, bias in _path(X[kept], y[kept], counts[kept], classes)
        ]

    logits = {penalty: np.full((len(y), classes), np.nan) for penalty in GRID}
    numbers = np.unique(folds[folds >= 0])
    with ThreadPoolExecutor(threads) as pool:
        for fold, answers in zip(numbers, pool.map(held_out, numbers), strict=True):
            for penalty, some in answers:
                logits[penalty][folds == fold] = some
    judged = folds >= 0
    losses = {penalty: log_loss(each[judged], y[judged]) for penalty, each in logits.items()}
    penalty = min(GRID, key=losses.__getitem__)
    accuracy = float((logits[penalty][judged].argmax(axis=1) == y[judged]).mean())
    ((_, weight, bias),) = _path(X, y, counts, classes, (penalty,))
    probe = Probe(weight.astype(np.float32), bias.astype(np.float32), penalty, losses, accuracy, root)
    return CrossValidated(probe, logits[penalty])


def fixed_probe(
    features: Floats, labels: Sequence[int], weights: Sequence[float], classes: int, penalty: float, *, root: bool
) -> Probe:
    """A probe with a penalty that is known."""
    ((_, weight, bias),) = _path(_shaped(features, root), np.asarray(labels), weights, classes, (penalty,))
    return Probe(weight.astype(np.float32), bias.astype(np.float32), penalty, {}, float("nan"), root)


def split_into_folds(labels: Sequence[int], groups: Sequence[str], count: int = 5, seed: int = 0) -> NDArray[np.int64]:
    """Which fold [N] each row is held out in: classes spread evenly, rows of one group in one fold, and every class
    left in every training part.

    A class with fewer groups than folds is held out in fewer of them, and one with a single group never is: such rows
    are in no fold (-1), always trained on.
    """
    random = np.random.default_rng(seed)
    folds = np.full(len(labels), -1, np.int64)
    members: dict[str, list[int]] = {}
    for at, group in enumerate(groups):
        members.setdefault(group, []).append(at)
    of_class: dict[int, list[list[int]]] = {}
    for rows in members.values():
        of_class.setdefault(labels[rows[0]], []).append(rows)
    next_fold = 0
    for label in sorted(of_class):
        sets = of_class[label]
        if len(sets) < 2:
            continue
        for at in random.permutation(len(sets)):
            folds[sets[at]] = next_fold % count
            next_fold += 1
    return folds


def never_negative(features: Floats) -> bool:
    """Whether the features come from a ReLU, so that their square root can be taken."""
    return bool(features.min() >= 0.0)


def row_losses(
    logits: NDArray[np.float64], labels: Sequence[int] | NDArray[np.int64], temperature: float = 1.0
) -> NDArray[np.float64]:
    """Negative log-likelihood of each row, in nats, under softmax(logits / temperature)."""
    scaled = logits / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    log_probabilities = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return np.asarray(-log_probabilities[np.arange(len(labels)), np.asarray(labels)])


def log_loss(logits: NDArray[np.float64], labels: Sequence[int] | NDArray[np.int64], temperature: float = 1.0) -> float:
    """Their mean."""
    return float(row_losses(logits, labels, temperature).mean())


def _shaped(features: Floats, root: bool) -> NDArray[np.float64]:
    # Rounding may have left a hair below zero.
    return np.sqrt(np.maximum(features, 0.0, dtype=np.float64)) if root else features.astype(np.float64)


def _path(
    X: NDArray[np.float64],
    y: NDArray[np.int64],
    weights: Sequence[float] | NDArray[np.float64],
    classes: int,
    penalties: Sequence[float] | None = None,
) -> Iterator[tuple[float, NDArray[np.float64], NDArray[np.float64]]]:
    """(penalty, weight [K, D], bias [K]) for each penalty, each started from the one before."""
    counts = np.asarray(weights, np.float64)
    centre = np.average(X, axis=0, weights=counts)
    centred = X - centre
    scale = float(np.sqrt(np.average((centred**2).mean(axis=1), weights=counts))) or 1.0
    centred /= scale
    # With fewer rows than features the solution lies in the rows' span: the same problem in fewer dimensions.
    basis = np.linalg.qr(centred.T)[0] if len(X) < X.shape[1] else None
    rows = centred if basis is None else centred @ basis
    model = LogisticRegression(max_iter=_ITERATIONS, warm_start=True)
    for penalty in GRID if penalties is None else penalties:
        model.set_params(C=penalty)
        with warnings.catch_warnings():
            # A weak penalty on separable classes has its optimum far out; the path there is judged on rows held out
            # all the same.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(rows, y, sample_weight=counts)
        coefficients, intercept = model.coef_, model.intercept_
        if classes == 2:  # scikit-learn fits one score; half of it each way is the same probability
            coefficients = np.concatenate([-coefficients, coefficients]) / 2
            intercept = np.concatenate([-intercept, intercept]) / 2
        weight = (coefficients if basis is None else coefficients @ basis.T) / scale
        yield penalty, weight, intercept - weight @ centre
