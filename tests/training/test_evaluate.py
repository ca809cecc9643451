from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, precision_score, recall_score

from training.evaluate import accuracy_interval, calibration, confusion, f1_interval, metrics

CLASSES = ("a", "b", "c", "d")


def answers(count: int, skill: float, seed: int = 0) -> tuple[list[str], list[str]]:
    random = np.random.default_rng(seed)
    true = random.choice(CLASSES, count, p=(0.5, 0.3, 0.15, 0.05))
    guess = np.where(random.random(count) < skill, true, random.choice(CLASSES[:3], count))
    return true.tolist(), guess.tolist()


def test_metrics_are_scikit_learns() -> None:
    true, predicted = answers(200, 0.6)
    overall, each = metrics(true, predicted, CLASSES)
    assert overall["accuracy"].value == pytest.approx(accuracy_score(true, predicted))
    assert overall["macro_f1"].value == pytest.approx(f1_score(true, predicted, labels=CLASSES, average="macro"))
    precision = precision_score(true, predicted, labels=CLASSES, average=None, zero_division=0)
    recall = recall_score(true, predicted, labels=CLASSES, average=None)
    for at, name in enumerate(CLASSES):
        assert each[name].precision.value == pytest.approx(precision[at])
        assert each[name].recall.value == pytest.approx(recall[at])
        assert each[name].support == true.count(name)
    assert (confusion(true, predicted, CLASSES) == confusion_matrix(true, predicted, labels=CLASSES)).all()


def test_every_interval_holds_its_value_within_0_and_1() -> None:
    for skill in (0.0, 0.5, 1.0):
        overall, each = metrics(*answers(60, skill), CLASSES)
        estimates = [*overall.values()]
        estimates += [estimate for one in each.values() for estimate in (one.precision, one.recall)]
        for estimate in estimates:
            assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(correct: int, total: int, low: float, high: float) -> None:
    estimate = accuracy_interval(correct, total)
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_nothing_counted_is_anywhere_between_0_and_1() -> None:
    estimate = accuracy_interval(0, 0)
    assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 1.0)


def test_ten_right_of_ten_is_not_certain() -> None:
    true = ["a", "b"] * 5
    f1 = metrics(true, true, ("a", "b"))[0]["macro_f1"]
    assert f1.value == f1.high == 1.0
    assert f1.low < 0.9


def test_macro_f1s_interval_is_the_seeds_and_narrows_with_more_images() -> None:
    few, many = answers(100, 0.7), answers(10_000, 0.7)
    first = metrics(*few, CLASSES, seed=1)[0]["macro_f1"]
    assert first == metrics(*few, CLASSES, seed=1)[0]["macro_f1"]
    assert first != metrics(*few, CLASSES, seed=2)[0]["macro_f1"]
    wide = metrics(*many, CLASSES)[0]["macro_f1"]
    assert (wide.high - wide.low) * 4 < first.high - first.low


def test_macro_f1s_interval_holds_the_truth_about_95_times_in_100() -> None:
    truth = metrics(*answers(400_000, 0.6, seed=999), CLASSES)[0]["macro_f1"].value
    held = 0
    for seed in range(100):
        estimate = metrics(*answers(200, 0.6, seed), CLASSES)[0]["macro_f1"]
        held += estimate.low <= truth <= estimate.high
    assert 88 <= held <= 100


def test_log_loss_is_scikit_learns_and_calibrated_answers_have_little_error() -> None:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet((0.6, 0.6, 0.6), 4000).astype(np.float32)
    true = [int(random.choice(3, p=row / row.sum())) for row in probabilities.astype(np.float64)]
    found = calibration(probabilities, true)
    assert found["nll"].value == pytest.approx(log_loss(true, probabilities), rel=1e-3)
    assert found["nll"].low < found["nll"].value < found["nll"].high
    assert found["ece"].value < 0.03
    sharpened = probabilities**4 / (probabilities**4).sum(axis=1, keepdims=True)
    assert calibration(sharpened.astype(np.float32), true)["ece"].value > 0.1


def test_the_f1_of_a_class_is_scikit_learns_and_its_interval_the_closed_form() -> None:
    true, predicted = answers(200, 0.6)
    each = metrics(true, predicted, CLASSES)[1]
    expected = f1_score(true, predicted, labels=CLASSES, average=None, zero_division=0)
    for name, value in zip(CLASSES, expected, strict=True):
        f1 = each[name].f1
        assert f1 is not None
        assert f1.value == pytest.approx(value)
        assert 0 <= f1.low <= f1.value <= f1.high <= 1
    jaccard = accuracy_interval(18, 21)  # F1 = 2J / (1 + J)
    assert f1_interval(18, 3).low == pytest.approx(2 * jaccard.low / (1 + jaccard.low))
    assert f1_interval(0, 0) == accuracy_interval(0, 0)


@pytest.mark.parametrize(("classes", "support"), [(2, 5), (2, 40), (20, 5), (20, 40)])
def test_the_interval_of_a_classs_f1_holds_the_truth_about_95_times_in_100(classes: int, support: int) -> None:
    random = np.random.default_rng(classes * support)
    chances = np.full((classes, classes), 0.2 / (classes - 1))
    np.fill_diagonal(chances, 0.8)
    truth = 2 * 0.8 / (1 + chances[:, 0].sum())
    held = 0
    for _ in range(400):
        counts = np.stack([random.multinomial(support, row) for row in chances])
        wrong = int(counts[0].sum() + counts[:, 0].sum() - 2 * counts[0, 0])
        estimate = f1_interval(int(counts[0, 0]), wrong)
        held += estimate.low <= truth <= estimate.high
    assert 0.91 <= held / 400 <= 0.99


def test_a_thousand_classes_take_a_second_or_so_and_little_memory() -> None:
    random = np.random.default_rng(0)
    classes = [f"class {at}" for at in range(1000)]
    truth = random.integers(0, 1000, 5000)
    guess = np.where(random.random(5000) < 0.8, truth, random.integers(0, 1000, 5000))
    tracemalloc.start()
    overall, each = metrics([classes[at] for at in truth], [classes[at] for at in guess], classes)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 300e6
    assert overall["macro_f1"].low < overall["macro_f1"].value < overall["macro_f1"].high
    assert len(each) == 1000
