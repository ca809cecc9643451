from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training import backbones, datasets, features
from training.label_errors import likely_label_errors

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


def clusters(count: int, classes: int, spread: float, seed: int = 0) -> tuple[Floats, Labels]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    return random.normal(0, spread, (count, 8)) + 3 * random.normal(size=(classes, 8))[labels], labels


def flipped(labels: Labels, share: float, seed: int = 0) -> Labels:
    random = np.random.default_rng(seed)
    given, classes = labels.copy(), int(labels.max()) + 1
    at = random.choice(len(given), int(share * len(given)), replace=False)
    given[at] = (given[at] + random.integers(1, classes, len(at))) % classes
    return given


def out_of_sample(vectors: NDArray[np.floating], given: Labels, penalty: float = 0.1) -> Floats:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=300))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return np.asarray(cross_val_predict(model, vectors, given, cv=folds, method="predict_proba"))


def planted(vectors: NDArray[np.floating], labels: Labels, share: float, penalty: float = 0.1) -> tuple[float, float]:
    """Precision and recall of the list, at its own length."""
    given = flipped(labels, share)
    found = [error.index for error in likely_label_errors(out_of_sample(vectors, given, penalty), given.tolist())]
    hits = int((given != labels)[found].sum())
    return hits / max(1, len(found)), hits / int((given != labels).sum())


@pytest.mark.parametrize("share", [0.03, 0.1])
def test_planted_errors_are_found_and_little_else(share: float) -> None:
    precision, recall = planted(*clusters(1000, 5, spread=1.5), share)
    assert precision >= 0.95
    assert recall >= 0.4


def test_the_surest_come_first_and_name_the_true_class() -> None:
    vectors, labels = clusters(1000, 5, spread=1.0)
    given = flipped(labels, 0.05)
    found = likely_label_errors(out_of_sample(vectors, given), given.tolist())
    assert [error.score for error in found] == sorted((error.score for error in found), reverse=True)
    assert all(0.5 <= error.score <= 1 and error.given == given[error.index] for error in found)
    assert np.mean([error.suggested == labels[error.index] for error in found]) >= 0.98


def test_right_labels_of_a_hard_task_are_left_alone() -> None:
    for seed in range(5):
        vectors, labels = clusters(1000, 5, spread=5.0, seed=seed)
        probabilities = out_of_sample(vectors, labels)
        wrong = probabilities.argmax(axis=1) != labels
        assert (wrong & (probabilities.max(axis=1) > 0.8)).sum() >= 5
        assert len(likely_label_errors(probabilities, labels.tolist())) <= 3


def test_an_overconfident_model_does_not_see_errors_everywhere() -> None:
    vectors, labels = clusters(1000, 5, spread=5.0)
    sure = out_of_sample(vectors, labels) ** 20
    assert len(likely_label_errors(sure / sure.sum(axis=1, keepdims=True), labels.tolist())) <= 5


def test_labels_that_mean_nothing_cannot_be_wrong() -> None:
    vectors, labels = clusters(600, 4, spread=1.0)
    given = np.random.default_rng(1).permutation(labels)
    assert likely_label_errors(out_of_sample(vectors, given, penalty=100.0), given.tolist()) == ()


def test_no_rows_and_a_class_without_rows() -> None:
    assert likely_label_errors(np.empty((0, 3)), []) == ()
    vectors, labels = clusters(200, 2, spread=1.0)
    probabilities = np.column_stack([out_of_sample(vectors, labels), np.zeros(200)])
    probabilities[:50, 2] = 0.9  # a third class that no row is labelled with
    assert all(error.suggested != 2 for error in likely_label_errors(probabilities, labels.tolist()))


def test_planted_errors_in_photos_of_steel_are_found(test_data: Path, tmp_path: Path) -> None:
    images = datasets.load(str(test_data / "neu_surface_defects"), validation=0.15, test=0.15, seed=0)
    rows = [row for label in images.classes for row in [row for row in images.rows if row.label == label][:40]]
    weights = str(test_data / "weights" / "mobilenet_v2_imagenet.pth")
    backbone = backbones.load("mobilenet_v2", weights, image_size=96, seed=0)
    vectors = features.embed(rows, backbone, tmp_path, threads=1).features
    labels = np.array([images.classes.index(row.label) for row in rows])
    assert len(likely_label_errors(out_of_sample(vectors, labels, 0.001), labels.tolist())) <= 2
    precision, recall = planted(vectors, labels, 0.1, penalty=0.001)
    print(f"\nsteel, 24 of 240 labels planted: precision {precision:.2f}, recall {recall:.2f}", end=" ")
    assert precision >= 0.9
    assert recall >= 0.2
