"""Adapt a pretrained backbone. The linear probe: frozen features, a new head."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from training.features import Floats

#: Inverse strengths of the L2 penalty that are tried, strongest penalty first.
GRID: Final = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
_ITERATIONS: Final = 300
_WORSE: Final = 1.05  # the loss is unimodal in C: past its minimum by this factor, weaker penalties are not tried


@dataclass(frozen=True, slots=True)
class Probe:
    """A linear head on raw features: logits = features @ weight.T + bias. `weight` [K, D], `bias` [K].

    `penalty` is the C that was chosen, `losses` the validation log-loss of each C that was tried, `accuracy` the share
    of the validation rows it has right.
    """

    weight: Floats
    bias: Floats
    penalty: float
    losses: dict[float, float]
    accuracy: float

    def logits(self, features: Floats) -> NDArray[np.float64]:
        """[N, D] -> [N, K]."""
        return np.asarray(features.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias)


def linear_probe(
    features: Floats,
    labels: Sequence[int],
    weights: Sequence[float],
    validation_features: Floats,
    validation_labels: Sequence[int],
    classes: int,
) -> Probe:
    """L2-regularised multinomial logistic regression on standardised features, folded into one linear layer.

    The penalty is the strongest one of `GRID` whose log-loss on the validation rows is within one standard error of
    the least.

    Args:
        features: [N, D] of the training rows, with `labels` [N] in 0..classes-1 (each at least once) and
            `weights` [N], by which a row counts.
    """
    y, sample_weights = np.asarray(labels), np.asarray(weights, np.float64)
    X = features.astype(np.float64)
    centre = np.average(X, axis=0, weights=sample_weights)
    spread = np.sqrt(np.average((X - centre) ** 2, axis=0, weights=sample_weights))
    spread[spread < 1e-6 * max(1.0, float(spread.max()))] = np.inf  # a constant feature says nothing
    standard = (X - centre) / spread
    # With fewer rows than features the solution lies in the rows' span: the same problem in fewer dimensions.
    basis = np.linalg.qr(standard.T)[0] if len(X) < X.shape[1] else np.eye(X.shape[1])
    X = standard @ basis

    model = LogisticRegression(max_iter=_ITERATIONS, warm_start=True)
    tried: list[tuple[Probe, NDArray[np.float64]]] = []
    losses: dict[float, float] = {}
    for penalty in GRID:
        model.set_params(C=penalty)
        with warnings.catch_warnings():
            # A weak penalty on separable classes has its optimum far out; the path there is judged on validation rows
            # all the same.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(X, y, sample_weight=sample_weights)
        weight, bias = _folded(model, classes, basis, centre, spread)
        logits = validation_features.astype(np.float64) @ weight.T.astype(np.float64) + bias
        each = row_losses(logits, validation_labels)
        losses[penalty] = float(each.mean())
        accuracy = float((logits.argmax(axis=1) == np.asarray(validation_labels)).mean())
        tried.append((Probe(weight, bias, penalty, losses, accuracy), each))
        if losses[penalty] > _WORSE * min(losses.values()):
            break
    # On a few dozen validation rows the least loss is partly luck: the strongest penalty within one standard error
    # of it is taken (Breiman et al., 1984).
    _, least = min(tried, key=lambda candidate: float(candidate[1].mean()))
    return next(probe for probe, each in tried if _within_one_error(each - least))


def _within_one_error(excess: NDArray[np.float64]) -> bool:
    return float(excess.mean()) <= float(excess.std()) / math.sqrt(len(excess))


def row_losses(logits: NDArray[np.float64], labels: Sequence[int], temperature: float = 1.0) -> NDArray[np.float64]:
    """Negative log-likelihood of each row, in nats, under softmax(logits / temperature)."""
    scaled = logits / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    log_probabilities = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return np.asarray(-log_probabilities[np.arange(len(labels)), np.asarray(labels)])


def log_loss(logits: NDArray[np.float64], labels: Sequence[int], temperature: float = 1.0) -> float:
    """Their mean."""
    return float(row_losses(logits, labels, temperature).mean())


def _folded(model: Any, classes: int, basis: Any, centre: Any, spread: Any) -> tuple[Floats, Floats]:
    coefficients, intercept = model.coef_, model.intercept_
    if classes == 2:  # scikit-learn fits one score; half of it each way is the same probability
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercept = np.concatenate([-intercept, intercept]) / 2
    weight = coefficients @ basis.T / spread
    return weight.astype(np.float32), (intercept - weight @ centre).astype(np.float32)
