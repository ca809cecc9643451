"""Effects do not grow with the rows, and chance makes of them what the reference says."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from perennial.chance import ChanceEffects
from perennial.effects import chance_effects, shares, standardised_distance

FAMILIES = ("properties", "output", "class_mix")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def rows(rng: np.random.Generator) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """A thousand rows of three properties and of what a model of four classes says."""
    probabilities = rng.dirichlet([0.3] * 4, 1000)
    return {
        "properties": rng.normal(0, [1.0, 5.0, 0.2], (1000, 3)),
        "probabilities": probabilities,
        "predicted": probabilities.argmax(axis=1),
    }


def test_the_distance_is_in_deviations_of_the_first_and_the_same_at_any_size(rng: np.random.Generator) -> None:
    for count in (2_000, 20_000):
        left = rng.normal(3, 7, count)
        assert standardised_distance(left, left + 3.5) == pytest.approx(0.5, rel=0.03)
        right, weights = np.round(rng.normal(4, 5, count // 3), 1), rng.uniform(0, 2, count)
        for given in (None, weights):
            expected = wasserstein_distance(left, right, u_weights=given) / left.std()
            assert standardised_distance(left, right, given) == pytest.approx(expected, rel=1e-9)
    flat = np.full(50, 2.0)
    assert standardised_distance(flat, flat + 0.001) < 0.2  # a rounding error is no shift


def test_weights_make_the_first_sample_one_of_another_mix(rng: np.random.Generator) -> None:
    left = np.concatenate([rng.normal(0, 1, 500), rng.normal(10, 1, 500)])
    right = rng.normal(10, 1, 500)
    assert standardised_distance(left, right) > 0.9
    assert standardised_distance(left, right, np.repeat([0.0, 1.0], 500)) < 0.03


def test_shares_name_the_categories_of_either_side() -> None:
    names, before, now = shares(np.array(["a", "a", "b", "b"]), np.array(["b", "c"]))
    assert names.tolist() == ["a", "b", "c"]
    assert before.tolist() == [0.5, 0.5, 0.0]
    assert now.tolist() == [0.0, 0.5, 0.5]


@pytest.mark.parametrize("window", [100, 400])
def test_chance_stays_under_what_the_reference_says(
    rows: dict[str, np.ndarray],  # type: ignore[type-arg]
    rng: np.random.Generator,
    window: int,
) -> None:
    """Of 200 windows out of the same images a tenth is expected beyond; 36 would come by chance once in 10,000."""
    chance = chance_effects(**rows)
    assert chance is not None
    beyond = dict.fromkeys(FAMILIES, 0)
    for _ in range(200):
        order = rng.permutation(1000)
        now, known = order[:window], order[window:]
        found = {
            "properties": max(standardised_distance(column[known], column[now]) for column in rows["properties"].T),
            "output": max(standardised_distance(column[known], column[now]) for column in rows["probabilities"].T),
        }
        _, before, after = shares(rows["predicted"][known], rows["predicted"][now])
        found["class_mix"] = float(np.abs(before - after).sum() / 2)
        for family, effect in found.items():
            beyond[family] += effect > chance.of(family, len(known), window)
    assert max(beyond.values()) < 36, beyond
    assert min(beyond.values()) > 4, beyond
    assert chance.of("properties", 1000, 1000) < chance.of("properties", 1000, 100) / 2


def test_chance_follows_the_root_of_the_rows() -> None:
    chance = ChanceEffects(properties=2.0, output=3.0, class_mix=1.0)
    assert chance.of("output", 400, 100) == pytest.approx(3 * sqrt(1 / 400 + 1 / 100))
    assert chance.of("output", 0, 100) == 0.0


def test_a_reference_too_small_to_split_says_nothing(rows: dict[str, np.ndarray]) -> None:  # type: ignore[type-arg]
    assert chance_effects(**{name: values[:39] for name, values in rows.items()}) is None


def test_rows_that_are_not_numbers_are_left_out(rows: dict[str, np.ndarray]) -> None:  # type: ignore[type-arg]
    properties = rows["properties"].copy()
    properties[::3, 1] = np.nan
    found = chance_effects(**{**rows, "properties": properties})
    assert found is not None
    assert np.isfinite(found.properties)
