"""The linear probe: frozen features, a new head.

Of features that are never negative (pooled after a ReLU, as most networks give) the square root is taken first, and all
are brought to one scale together rather than each to its own. On this project's data (ants and bees, steel defects,
photos, sketches; 10 to 50 images a class) that beats standardising each feature everywhere, by up to seven points
(steel, 10 a class: .962 against .895): a few features with long tails no longer decide (Tukey's ladder of powers;
Yang et al., ICLR 2021).

Up to 2^23 numbers (6,500 images of 1,280 features) all is float64. Of more there is one float32 copy, worked on in
place and in blocks, and the penalty is looked for on a sample first: 100,000 images take half a gigabyte beside the
features, and a minute or two.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from training.resident import BLOCK, LARGE, Indexes, blocks

Floats = NDArray[np.float32]
Matrix = NDArray[np.float64] | Floats

#: Inverse strengths of the L2 penalty that are tried, strongest penalty first.
GRID: Final = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
_ITERATIONS: Final = 300
_WORSE: Final = 1.05  # the loss is unimodal in C: past its minimum by this factor, weaker penalties are not tried
_SAMPLED: Final = 10_000  # rows, of large data, on which the search for the penalty starts


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
        return _answers(features, self.root, self.weight.astype(np.float64), self.bias)


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
    overwrite: bool = False,
) -> Probe:
    """L2-regularised multinomial logistic regression, its penalty the one with the least log-loss on the validation
    rows.

    Of large data (more than 2^23 numbers) the search for the penalty starts on a sample of 10,000 rows, spread over the
    classes; from there, on all rows, it goes on to weaker or to stronger ones for as long as the loss falls. A penalty
    is a prior on the weights, which does not depend on the number of rows, so the sample's is seldom off by more than
    a step. `losses` are then those of probes of all rows.

    Args:
        features: [N, D] of the training rows, with `labels` [N] in 0..classes-1 (each at least once) and
            `weights` [N], by which a row counts.
        root: whether to take square roots; unless given, where no feature is negative.
        overwrite: `features` are not needed any more: large ones are changed in place instead of copied.
    """
    root = never_negative(features) if root is None else root
    truth = np.asarray(validation_labels)
    problem = _Problem(_shaped(features, root, overwrite), np.asarray(labels), weights, classes)
    losses: dict[float, float] = {}

    def tried(penalty: float, at: NDArray[np.intp] | None = None) -> Probe:
        weight, bias = problem.fitted(penalty, at)
        logits = _answers(validation_features, root, weight, bias)
        losses[penalty] = log_loss(logits, truth)
        accuracy = float((logits.argmax(axis=1) == truth).mean())
        return Probe(weight.astype(np.float32), bias.astype(np.float32), penalty, losses, accuracy, root)

    sample = problem.sample()
    best = tried(GRID[0], sample)
    for penalty in GRID[1:]:
        found = tried(penalty, sample)
        if losses[penalty] < losses[best.penalty]:
            best = found
        elif losses[penalty] > _WORSE * losses[best.penalty]:
            break
    if sample is None:
        return best
    losses.clear()
    start = GRID.index(best.penalty)
    best = tried(GRID[start])
    for penalties in (GRID[start + 1 :], GRID[:start][::-1]):
        for penalty in penalties:
            found = tried(penalty)
            if losses[penalty] >= losses[best.penalty]:
                break
            best = found
        if best.penalty != GRID[start]:
            break
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
        problem = _Problem(X[kept], y[kept], counts[kept], classes)
        probes = ((penalty, *problem.fitted(penalty)) for penalty in GRID)
        return [(penalty, np.asarray(X[~kept] @ weight.T + bias)) for penalty, weight, bias in probes]

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
    weight, bias = _Problem(X, y, counts, classes).fitted(penalty)
    probe = Probe(weight.astype(np.float32), bias.astype(np.float32), penalty, losses, accuracy, root)
    return CrossValidated(probe, logits[penalty])


def fixed_probe(
    features: Floats,
    labels: Sequence[int],
    weights: Sequence[float],
    classes: int,
    penalty: float,
    *,
    root: bool,
    overwrite: bool = False,
) -> Probe:
    """A probe with a penalty that is known. `overwrite`: as in `linear_probe`."""
    weight, bias = _Problem(_shaped(features, root, overwrite), np.asarray(labels), weights, classes).fitted(penalty)
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


def never_negative(features: Floats, at: Indexes | None = None) -> bool:
    """Whether the features (the rows at `at`, unless all) come from a ReLU, so that their square root can be taken."""
    return all(float(rows.min()) >= 0.0 for _, rows in blocks(features, at))


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


def _shaped(features: Floats, root: bool, overwrite: bool = False) -> Matrix:
    """What the linear model sees: a copy in float64; in float32 if it is large, which is contiguous."""
    if features.size > LARGE:
        shaped = np.ascontiguousarray(features) if overwrite else np.array(features, np.float32, order="C")
        return np.sqrt(np.maximum(shaped, 0.0, out=shaped), out=shaped) if root else shaped
    # Rounding may have left a hair below zero.
    return np.sqrt(np.maximum(features, 0.0, dtype=np.float64)) if root else features.astype(np.float64)


def _answers(
    features: Floats, root: bool, weight: NDArray[np.float64], bias: NDArray[np.floating]
) -> NDArray[np.float64]:
    """The logits [N, K], a few thousand rows at a time."""
    found = np.empty((len(features), len(weight)))
    for place, rows in blocks(features):
        found[place : place + len(rows)] = _shaped(rows, root) @ weight.T + bias
    return found


class _Problem:
    """Rows to be told apart, brought to one centre and scale, for any number of penalties, each started from the one
    before. `X` may be overwritten."""

    def __init__(
        self,
        X: Matrix,
        y: NDArray[np.int64],
        weights: Sequence[float] | NDArray[np.float64],
        classes: int,
    ) -> None:
        self._y, self._counts, self._classes = y, np.asarray(weights, np.float64), classes
        centred = self._centred_in_place(X) if X.dtype == np.float32 else self._centred(X)
        # With fewer rows than features the solution lies in the rows' span: the same problem in fewer dimensions.
        self._basis = np.linalg.qr(centred.T)[0] if len(X) < X.shape[1] else None
        self._rows = centred if self._basis is None else centred @ self._basis
        self._model = LogisticRegression(max_iter=_ITERATIONS, warm_start=True)

    def sample(self) -> NDArray[np.intp] | None:
        """Some rows, of every class and in order; None where all of them are few enough."""
        if self._rows.dtype != np.float32 or len(self._y) <= _SAMPLED:
            return None
        order = np.argsort(self._y, kind="stable")
        first = np.unique(self._y, return_index=True)[1]
        some = order[np.linspace(0, len(order) - 1, _SAMPLED).astype(np.intp)]
        return np.union1d(some, first)

    def fitted(
        self, penalty: float, at: NDArray[np.intp] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weight [K, D] and bias [K], of the rows at `at` alone if it is given."""
        rows, y, counts = self._rows, self._y, self._counts
        if at is not None:
            rows, y, counts = rows[at], y[at], counts[at]
        self._model.set_params(C=penalty)
        with warnings.catch_warnings():
            # A weak penalty on separable classes has its optimum far out; the path there is judged on rows held out
            # all the same.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model.fit(rows, y, sample_weight=counts)
        coefficients = np.asarray(self._model.coef_, np.float64)
        intercept = np.asarray(self._model.intercept_, np.float64)
        if self._classes == 2:  # scikit-learn fits one score; half of it each way is the same probability
            coefficients = np.concatenate([-coefficients, coefficients]) / 2
            intercept = np.concatenate([-intercept, intercept]) / 2
        weight = (coefficients if self._basis is None else coefficients @ self._basis.T) / self._scale
        return weight, intercept - weight @ self._centre

    def _centred(self, X: Matrix) -> Matrix:
        self._centre: NDArray[np.float64] = np.average(X, axis=0, weights=self._counts)
        centred: NDArray[np.float64] = X - self._centre
        self._scale = float(np.sqrt(np.average((centred**2).mean(axis=1), weights=self._counts))) or 1.0
        centred /= self._scale
        return centred

    def _centred_in_place(self, X: Matrix) -> Matrix:
        total, squares = float(self._counts.sum()), 0.0
        parts = [slice(start, start + BLOCK) for start in range(0, len(X), BLOCK)]
        self._centre = np.sum([self._counts[part] @ X[part] for part in parts], axis=0) / total
        for part in parts:
            X[part] -= self._centre.astype(np.float32)
            squares += float(self._counts[part] @ np.square(X[part]).mean(axis=1, dtype=np.float64))
        self._scale = float(np.sqrt(squares / total)) or 1.0
        X /= np.float32(self._scale)
        return X
