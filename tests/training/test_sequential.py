"""The test that may be looked at after every label."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate

from training.sequential import evidence, fewest_wins


def test_the_evidence_is_the_mixture_that_it_says() -> None:
    for wins, losses in ((0, 0), (3, 1), (2, 7), (40, 12)):
        mixture, _ = integrate.quad(lambda p, w=wins, n=losses: 2 * (2 * p) ** w * (2 * (1 - p)) ** n, 0.5, 1.0)
        assert evidence(wins, losses) == pytest.approx(mixture, rel=1e-6)


def test_of_a_rarer_event_it_is_the_mixture_above_its_chance() -> None:
    for yes, no, chance in ((3, 1, 0.2), (2, 30, 0.05), (40, 12, 0.7)):

        def likelihood(p: float, yes: int = yes, no: int = no, chance: float = chance) -> float:
            return float((p / chance) ** yes * ((1 - p) / (1 - chance)) ** no / (1 - chance))

        mixture, _ = integrate.quad(likelihood, chance, 1.0)
        assert evidence(yes, no, chance) == pytest.approx(mixture, rel=1e-6)


def test_no_rows_say_nothing_and_losses_never_speak_for_the_first() -> None:
    assert evidence(0, 0) == pytest.approx(1.0)
    assert evidence(0, 5) < 1
    assert evidence(0, 5000) < 1e-3
    assert evidence(5000, 0) > 1e100  # finite, too


def test_looking_after_every_label_alarms_no_more_often_than_it_says() -> None:
    random = np.random.default_rng(0)
    alpha, runs, rows = 0.05, 2000, 300
    table = np.zeros((rows + 1, rows + 1))
    for row in range(rows + 1):
        table[row, : row + 1] = [evidence(wins, row - wins) for wins in range(row + 1)]
    won = (random.random((runs, rows)) < 0.5).cumsum(axis=1)
    ever = (table[np.arange(1, rows + 1), won] >= 1 / alpha).any(axis=1).mean()
    assert ever <= alpha
    better = (random.random((runs, rows)) < 0.7).cumsum(axis=1)
    assert (table[np.arange(1, rows + 1), better] >= 1 / alpha).any(axis=1).mean() > 0.99


def test_the_fewest_wins_are_the_first_that_suffice() -> None:
    fewest = fewest_wins(0.01)
    assert evidence(fewest, 0) >= 100 > evidence(fewest - 1, 0)
