from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import make_blobs

from training.datasets import Row
from training.errors import MOST_ANSWERS, MOST_POINTS, analyse, embedding_map
from training.evaluate import accuracy_interval, calibration
from training.reliability import before_temperature, reliability

CLASSES = ("ant", "bee", "cow")


def rows_of(labels: list[str]) -> list[Row]:
    return [Row(f"/data/{at}.jpg", label, f"{at:064d}", "test") for at, label in enumerate(labels)]


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def some(count: int, skill: float = 2.0, seed: int = 0) -> tuple[list[str], np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    logits = random.normal(size=(count, 3)) + skill * np.eye(3)[labels]
    return [CLASSES[at] for at in labels], softmax(logits).astype(np.float32)


def test_the_worst_answers_are_those_with_the_highest_loss() -> None:
    labels, probabilities = some(300)
    found = analyse(rows_of(labels), probabilities, np.zeros((300, 4), np.float32), CLASSES, 1.0)
    of_label = probabilities[np.arange(300), [CLASSES.index(label) for label in labels]]
    assert [answer.of_label for answer in found.worst] == pytest.approx(sorted(of_label)[:MOST_ANSWERS])
    assert found.worst[0].loss == pytest.approx(-np.log(of_label.min()), rel=1e-5)
    predicted = [CLASSES[at] for at in probabilities.argmax(axis=1)]
    assert found.mistakes == sum(one != other for one, other in zip(labels, predicted, strict=True))
    for answer in found.worst:
        at = int(answer.row.location.removeprefix("/data/").removesuffix(".jpg"))
        assert (answer.answered, answer.right) == (predicted[at], predicted[at] == labels[at])


def test_a_right_answer_is_shown_only_where_the_model_was_unsure() -> None:
    probabilities = np.array([[0.9, 0.05, 0.05], [0.5, 0.3, 0.2], [0.2, 0.7, 0.1]], np.float32)
    found = analyse(rows_of(["ant"] * 3), probabilities, np.zeros((3, 2), np.float32), CLASSES, 1.0)
    assert [(answer.answered, answer.right) for answer in found.worst] == [("bee", False), ("ant", True)]


def test_the_confused_pairs_are_counted_with_their_share_of_the_class() -> None:
    labels = ["ant"] * 10 + ["bee"] * 5 + ["cow"] * 5
    answers = ["bee"] * 4 + ["ant"] * 6 + ["bee"] * 4 + ["cow"] + ["cow"] * 5
    probabilities = np.stack([np.eye(3, dtype=np.float32)[CLASSES.index(name)] for name in answers])
    found = analyse(rows_of(labels), probabilities, np.zeros((20, 2), np.float32), CLASSES, 1.0)
    assert [(pair.label, pair.answered, pair.count) for pair in found.confused] == [
        ("ant", "bee", 4),
        ("bee", "cow", 1),
    ]
    assert found.confused[0].share == accuracy_interval(4, 10)
    assert found.pairs == 2
    assert found.counts.tolist() == [[6, 4, 0], [0, 4, 1], [0, 0, 5]]


@pytest.mark.parametrize("temperature", [0.25, 1.0, 1.7, 10.0])
def test_probabilities_before_temperature_are_those_of_the_undivided_logits(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(0, 6, (200, 5))
    served = softmax(logits / temperature).astype(np.float32)
    assert np.allclose(before_temperature(served, temperature), softmax(logits), atol=2e-4)


def test_bins_hold_every_answer_and_add_up_to_the_calibration_error() -> None:
    labels, probabilities = some(500)
    true = [CLASSES.index(label) for label in labels]
    found = reliability(probabilities, true)
    assert sum(each.count for each in found.bins) == 500
    assert all(each.low <= each.confidence <= each.high for each in found.bins)
    error = sum(each.count * abs(each.accuracy.value - each.confidence) for each in found.bins) / 500
    assert found.ece.value == pytest.approx(error) == pytest.approx(calibration(probabilities, true)["ece"].value)


def test_an_answer_of_certainty_falls_into_the_last_bin() -> None:
    found = reliability(np.array([[1.0, 0.0]], np.float32), [0])
    assert [(each.low, each.high, each.count) for each in found.bins] == [(14 / 15, 1.0, 1)]


def test_the_map_keeps_clusters_together_and_is_the_seeds() -> None:
    embedding, labels = make_blobs(200, 12, centers=4, cluster_std=1.0, random_state=0)
    right = np.ones(200, bool)
    right[7] = False
    found = embedding_map(embedding.astype(np.float32), labels, right)
    assert found is not None
    assert found.method == "t-SNE"
    assert found == embedding_map(embedding.astype(np.float32), labels, right)
    places = np.array([(point.x, point.y) for point in found.points])
    assert places.min() == 0.0
    assert places.max() == 1.0
    distances = ((places[:, None] - places[None]) ** 2).sum(axis=2) + 9 * np.eye(200)
    assert (labels[distances.argmin(axis=1)] == labels).mean() == 1.0
    assert [at for at, point in enumerate(found.points) if not point.right] == [7]


def test_many_rows_are_sampled_and_laid_out_by_their_principal_components() -> None:
    embedding = np.random.default_rng(0).normal(size=(4000, 16)).astype(np.float32)
    found = embedding_map(embedding, np.zeros(4000, int), np.ones(4000, bool))
    assert found is not None
    assert (found.method, len(found.points), found.rows) == ("principal components", MOST_POINTS, 4000)


@pytest.mark.parametrize("embedding", [np.zeros((5, 4)), np.ones((50, 4)), np.zeros((50, 0))])
def test_what_cannot_be_mapped_has_no_map(embedding: np.ndarray) -> None:
    rows = len(embedding)
    assert embedding_map(embedding.astype(np.float32), np.zeros(rows, int), np.ones(rows, bool)) is None


def test_one_dimension_is_enough_for_a_map() -> None:
    found = embedding_map(np.arange(20, dtype=np.float32)[:, None], np.zeros(20, int), np.ones(20, bool))
    assert found is not None
    assert len(found.points) == 20
