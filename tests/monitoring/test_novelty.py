"""A few images like nothing in the reference are found, and chance finds none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from monitoring import detectors
from monitoring.novelty import find_novel
from perennial.settings_sections import MonitorSettings

SETTINGS = MonitorSettings()


def test_one_image_in_ten_that_is_far_off_is_found_and_pointed_at(rng: np.random.Generator) -> None:
    reference, window = rng.normal(0, 1, (600, 8)), rng.normal(0, 1, (300, 8))
    odd = np.zeros(300, dtype=bool)
    odd[::10] = True
    window[odd] += 4 * rng.choice([-1, 1], (30, 8))  # in all directions: the mean stays where it was
    found = find_novel(reference, window)
    assert found is not None
    assert found.p_value < 1e-6
    assert found.excess == pytest.approx(0.1, abs=0.03)
    assert found.rows[odd].mean() > 0.6
    assert found.rows[~odd].mean() < 0.1


def test_a_noisy_digit_in_ten_is_seen_where_whole_distributions_show_nothing(world: Any) -> None:
    reference, rows = world.scores(world.reference_rows), world.traffic[:300]
    scores = world.scores(rows)
    embedding = scores.embedding.copy()
    properties = scores.properties.copy()
    noisy = world.scores(
        rows[:30], lambda images: np.clip(images + np.random.default_rng(0).normal(0, 0.6, images.shape), 0, 1)
    )
    embedding[:30], properties[:30] = noisy.embedding, noisy.properties
    found = {
        "properties": find_novel(reference.properties, properties),
        "embedding": find_novel(reference.embedding, embedding),
    }
    family = detectors.novelty(found, alpha=SETTINGS.alpha, floor=SETTINGS.novelty_floor)
    assert family.alarm
    assert 0.02 < family.score < 0.2


def test_the_p_value_keeps_its_level(rng: np.random.Generator) -> None:
    """Of 300 clean windows 3 are expected at a level of .01; eleven would come by chance once in 3,000."""
    low = 0
    for seed in range(300):
        reference, window = rng.standard_t(2, (200, 4)), rng.standard_t(2, (150, 4))  # heavy tails: outliers are usual
        found = find_novel(reference, window, seed=seed)
        assert found is not None
        low += found.p_value <= 0.01
    assert low < 11


def test_copies_and_constant_columns_are_not_new(rng: np.random.Generator) -> None:
    flat = find_novel(np.full((100, 3), 7.0), np.full((80, 3), 7.0))
    assert flat is not None
    assert flat.p_value > 0.5
    assert flat.excess == 0.0


def test_rows_that_are_not_numbers_are_left_out_and_too_few_are_not_judged(rng: np.random.Generator) -> None:
    reference, window = rng.normal(0, 1, (200, 4)), rng.normal(0, 1, (100, 4))
    window[:20] = np.nan
    found = find_novel(reference, window)
    assert found is not None
    assert not found.rows[:20].any()
    window[:85] = np.nan
    assert find_novel(reference, window) is None
    assert find_novel(reference[:39], rng.normal(0, 1, (100, 4))) is None
    assert find_novel(np.empty((0, 0)), np.empty((0, 0))) is None
    family = detectors.novelty({"embedding": None}, alpha=0.01, floor=0.02)
    assert family.skipped is not None
    assert not family.alarm


def test_an_excess_below_the_floor_is_no_alarm(rng: np.random.Generator) -> None:
    reference, window = rng.normal(0, 1, (4000, 3)), rng.normal(0, 1, (4000, 3))
    window[:40] += 30
    found = {"properties": find_novel(reference, window)}
    assert not detectors.novelty(found, alpha=0.0015, floor=0.02).alarm
    assert detectors.novelty(found, alpha=0.0015, floor=0.002).alarm
