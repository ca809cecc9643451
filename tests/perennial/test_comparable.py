"""Two models are compared on rows that favour neither, however the rows came to be labelled."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from perennial.comparable import comparable
from training.sequential import evidence

ROUNDS, WINDOW, LABELS = 4, 1000, 50


def two_models(random: np.random.Generator, worse: float = 0.0) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Of 4,000 images which each of two models has right [2, N], and how sure it is [2, N]; they disagree on one in
    seven, and the first has fewer right if it is `worse`."""
    hard = random.normal(0, 0.8, ROUNDS * WINDOW)
    margins = np.array([[2.0 - worse], [2.0]]) - hard + random.normal(0, 1.25, (2, ROUNDS * WINDOW))
    return margins > 0, 1 / (1 + np.exp(-1.2 * np.abs(margins)))


def labelled(how: str, sure: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int64]:
    """What people label: at random, what the live model is least sure of in each window, half of each, or at random of
    what it is unsure of."""
    chosen = []
    for window in np.arange(ROUNDS * WINDOW).reshape(ROUNDS, WINDOW):
        least = window[np.argsort(sure[window])]
        chosen += {
            "random": lambda window=window: random.choice(window, LABELS, replace=False),
            "queue": lambda least=least: least[:LABELS],
            "both": lambda least=least: np.r_[least[: LABELS // 2], random.choice(least[LABELS:], LABELS // 2)],
            "uncertain": lambda window=window: random.choice(window[sure[window] < 0.8], LABELS, replace=False),
        }[how]().tolist()
    return np.unique(chosen)


def undone(how: str, *, fair: bool, worse: float = 0.0, runs: int = 100) -> float:
    """How often the first model is called worse on 200 labels."""
    random, found = np.random.default_rng(3), 0
    for _ in range(runs):
        right, sure = two_models(random, worse)
        rows = labelled(how, sure[0], random)
        counts = comparable(sure[0], sure[0][rows], sure[0][rows], sure[1][rows], random.random(len(rows)))
        one, other = right[:, rows[counts] if fair else rows]
        found += evidence(int((other & ~one).sum()), int((one & ~other).sum())) >= 100
    return found / runs


@pytest.mark.parametrize("how", ["random", "queue", "both", "uncertain"])
def test_a_model_is_not_called_worse_for_being_asked_what_it_was_unsure_of(how: str) -> None:
    assert undone(how, fair=True) <= 0.03
    if how != "random":
        assert undone(how, fair=False) > 0.3, "what this is for"


@pytest.mark.parametrize("how", ["random", "both"])
def test_a_bad_model_is_still_found(how: str) -> None:
    assert undone(how, fair=True, worse=1.7) > 0.9


def test_labels_on_everything_all_count() -> None:
    sure = np.random.default_rng(0).random(300)
    assert comparable(sure, sure, sure, sure[::-1], np.full(300, 0.999999)).all()


def test_without_answers_to_compare_with_every_row_counts() -> None:
    assert comparable([], [], [0.4], [0.9], [0.99]).tolist() == [True]
    assert comparable([0.4], [], [], [], []).tolist() == []
    assert comparable([1.0] * 500, [1.0, 1.0], [1.0, 1.0], [1.0, 0.2], [0.5, 0.5]).tolist() == [True, True]
