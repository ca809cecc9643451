from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from training import probe as probing
from training.calibrate import HIGHEST, LOWEST, fit_temperature
from training.probe import linear_probe, log_loss


def blobs(
    count: int, width: int, classes: int, seed: int = 0, spread: float = 1.0
) -> tuple[NDArray[np.float32], list[int]]:
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    # One set of centres for every seed, on a scale where standardising matters.
    centres = np.random.default_rng(99).normal(size=(classes, width)) * spread
    points = (centres[labels] + random.normal(size=(count, width))) * np.linspace(0.01, 30, width) + 5
    return points.astype(np.float32), labels.tolist()


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("width", [12, 150])  # fewer and more features than rows
def test_the_folded_head_is_scikit_learns_pipeline(classes: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "GRID", (0.01,))
    X, y = blobs(80, width, classes)
    other, other_labels = blobs(40, width, classes, seed=1)
    probe = linear_probe(X, y, [1.0] * 80, other, other_labels, classes)
    scale = np.sqrt(((X - X.mean(axis=0)) ** 2).mean())  # one for all features together
    pipeline = make_pipeline(
        FunctionTransformer(lambda features: features / scale), StandardScaler(with_std=False),
        LogisticRegression(C=0.01, max_iter=2000, tol=1e-8),
    ).fit(X, y)  # fmt: skip
    assert probe.weight.shape == (classes, width)
    assert np.allclose(softmax(probe.logits(other)), pipeline.predict_proba(other), atol=2e-3)


def test_a_weight_of_three_counts_as_three_images() -> None:
    X, y = blobs(60, 10, 3, spread=0.3)
    validation = blobs(60, 10, 3, seed=1, spread=0.3)
    weights = [3.0 if label == 0 else 1.0 for label in y]
    weighted = linear_probe(X, y, weights, *validation, 3)
    times = [int(weight) for weight in weights]
    repeated = linear_probe(
        np.repeat(X, times, axis=0), np.repeat(y, times).tolist(), [1.0] * sum(times), *validation, 3
    )
    plain = linear_probe(X, y, [1.0] * 60, *validation, 3)
    assert np.allclose(softmax(weighted.logits(X)), softmax(repeated.logits(X)), atol=5e-3)
    assert softmax(weighted.logits(X))[:, 0].mean() > softmax(plain.logits(X))[:, 0].mean() + 0.02


def test_the_penalty_comes_from_the_validation_rows() -> None:
    X, y = blobs(200, 30, 3, spread=2.0)
    separable = linear_probe(X, y, [1.0] * 200, *blobs(120, 30, 3, seed=1, spread=2.0), 3)
    random = np.random.default_rng(0)
    noise = random.normal(size=(200, 30)).astype(np.float32)
    unrelated = linear_probe(noise, y, [1.0] * 200, random.normal(size=(120, 30)).astype(np.float32), y[:120], 3)
    assert unrelated.penalty < separable.penalty
    assert separable.accuracy > 0.95
    assert separable.losses[separable.penalty] == pytest.approx(
        log_loss(separable.logits(blobs(120, 30, 3, seed=1, spread=2.0)[0]), blobs(120, 30, 3, seed=1)[1]), abs=1e-4
    )


def test_a_constant_feature_says_nothing_and_breaks_nothing() -> None:
    X, y = blobs(60, 8, 2)
    X[:, 3] = 7.0
    probe = linear_probe(X, y, [1.0] * 60, X, y, 2)
    assert np.isfinite(probe.weight).all()
    assert not probe.weight[:, 3].any()


def test_the_usual_size_takes_seconds() -> None:
    X, y = blobs(1200, 1280, 7, spread=0.2)
    validation = blobs(250, 1280, 7, seed=1, spread=0.2)
    began = time.process_time()
    probe = linear_probe(X, y, [1.0] * 1200, *validation, 7)
    assert time.process_time() - began < 60  # 2 to 6 s; the bound is for slow and shared machines
    assert probe.accuracy > 0.9


# --- temperature -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_temperature_is_found_and_never_makes_validation_worse(factor: float) -> None:
    random = np.random.default_rng(3)
    logits = random.normal(size=(3000, 4)) * 2
    labels = [int(random.choice(4, p=row)) for row in softmax(logits)]
    temperature = fit_temperature(factor * logits, labels)
    assert temperature == pytest.approx(factor, rel=0.1)
    assert log_loss(factor * logits, labels, temperature) <= log_loss(factor * logits, labels)


def test_a_few_right_answers_do_not_make_it_certain() -> None:
    logits = np.eye(3)[[0, 1, 2, 0, 1]] * 2.0
    assert fit_temperature(logits, [0, 1, 2, 0, 1]) == pytest.approx(LOWEST, rel=1e-2)
    assert fit_temperature(logits, [1, 2, 0, 1, 2]) == pytest.approx(HIGHEST, rel=1e-2)


def test_temperature_changes_no_answer() -> None:
    X, y = blobs(60, 8, 3)
    logits = linear_probe(X, y, [1.0] * 60, X, y, 3).logits(X)
    temperature = fit_temperature(logits, y)
    assert ((logits / temperature).argmax(axis=1) == logits.argmax(axis=1)).all()
