"""The families on real handwriting: calm on clean windows, loud on changed ones; and on columns that are broken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import ks_2samp

from monitoring import detectors
from monitoring.accuracy import counted
from monitoring.chi_square import two_sample_chi_square
from monitoring.detectors import Family
from monitoring.embedding import separate, separate_within
from monitoring.evidence import gather
from monitoring.lens import misfit
from monitoring.window import Scores, window_of
from perennial.graph import PROPERTIES
from perennial.settings_sections import MonitorSettings

SETTINGS = MonitorSettings(min_rows=200, min_labels=100)
CLASSES = tuple(str(digit) for digit in range(10))


def families(reference: Scores, window: Scores) -> dict[str, Family]:
    """Every family, with the p-values that the report takes from Evidently."""
    alpha = SETTINGS.alpha

    def columns(scores: Scores, which: str) -> dict[str, Any]:
        if which == "properties":
            return {f"property:{name}": scores.properties[:, i] for i, name in enumerate(PROPERTIES)}
        shares = {f"probability:{name}": scores.probabilities[:, i] for i, name in enumerate(CLASSES)}
        return {**shares, "confidence": scores.confidence}

    def shifted(which: str, floor: float) -> Family:
        left, right = columns(reference, which), columns(window, which)
        p_values = {
            name: float(ks_2samp(left[name], right[name]).pvalue)
            for name in left
            if detectors.usable(left[name], right[name]) is None
        }
        return detectors.shifted(left, right, p_values, alpha=alpha, floor=floor)

    p_value = two_sample_chi_square(reference.predicted, window.predicted)
    return {
        "properties": shifted("properties", SETTINGS.property_floor),
        "output": shifted("output", SETTINGS.output_floor),
        "class_mix": detectors.class_mix(reference, window, p_value, alpha=alpha, floor=SETTINGS.class_mix_floor),
        "embedding": detectors.embedding(
            separate(reference.embedding, window.embedding), alpha=alpha, floor=SETTINGS.embedding_floor
        ),
        "labels": detectors.labels(
            reference.answers,
            window.answers,
            CLASSES,
            alpha=alpha,
            floor=SETTINGS.accuracy_drop,
            least=SETTINGS.min_labels,
        ),
    }


def alarms(found: dict[str, Family]) -> set[str]:
    return {name for name, family in found.items() if family.alarm}


def test_clean_windows_rarely_alarm(world: Any) -> None:
    """60 re-splits: at a rate of 1 % a check, 4 or more alarms would come once in 250 runs."""
    everything = np.concatenate([world.reference_rows, world.traffic])
    loud = []
    for seed in range(60):
        rows = np.random.default_rng(seed).permutation(everything)
        found = alarms(families(world.scores(rows[:400]), world.scores(rows[400:700])))
        if found:
            loud.append((seed, found))
    assert len(loud) <= 3, loud


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda images: np.clip(images + 0.1, 0, 1), {"properties", "embedding"}),
        (lambda images: images * 0.8, {"properties"}),
        (lambda images: np.stack([ndimage.gaussian_filter(i, 0.7) for i in images]), {"properties"}),
        (
            lambda images: np.clip(images + np.random.default_rng(0).normal(0, 0.2, images.shape), 0, 1),
            {"properties", "embedding"},
        ),
        (lambda images: np.rot90(images, axes=(1, 2)), {"output", "class_mix", "embedding", "labels"}),
        (lambda images: images[:, :, ::-1], {"output", "embedding", "labels"}),
    ],
    ids=["brighter", "darker", "blurred", "noisy", "turned", "mirrored"],
)
def test_a_changed_window_alarms(world: Any, change: Any, expected: set[str]) -> None:
    reference = world.scores(world.reference_rows)
    found = alarms(families(reference, world.scores(world.traffic[:300], change)))
    assert expected <= found


def test_classes_gone_alarm_the_class_mix_and_nothing_within_classes(world: Any) -> None:
    reference = world.scores(world.reference_rows)
    rows = world.traffic[~np.isin(world.digits[world.traffic], [0, 1])][:300]
    window = world.scores(rows)
    found = families(reference, window)
    assert "class_mix" in alarms(found)
    assert not found["properties"].alarm
    within = separate_within(reference.embedding, reference.predicted, window.embedding, window.predicted)
    assert within is not None
    assert within.p_value > SETTINGS.alpha


def test_swapped_labels_alarm_the_labels_only_and_name_the_classes(world: Any) -> None:
    reference, window = world.scores(world.reference_rows), world.scores(world.traffic[:300])
    swap = {"3": "8", "8": "3"}
    window = replace(window, labels=tuple(swap.get(str(label), label) for label in window.labels))
    found = families(reference, window)
    assert alarms(found) == {"labels"}
    assert {column.name for column in found["labels"].alarmed} >= {"recall:3", "recall:8", "accuracy"}


def test_an_effect_below_its_floor_is_no_alarm_however_sure(rng: np.random.Generator) -> None:
    left, right = {"x": rng.normal(0, 1, 20_000)}, {"x": rng.normal(0.1, 1, 20_000)}
    p_values = {"x": float(ks_2samp(left["x"], right["x"]).pvalue)}
    found = detectors.shifted(left, right, p_values, alpha=0.005, floor=0.25)
    assert p_values["x"] < 1e-9
    assert not found.alarm
    assert detectors.shifted(left, right, p_values, alpha=0.005, floor=0.05).alarm


def test_a_constant_column_on_both_sides_is_named_and_not_tested(world: Any) -> None:
    found = families(world.scores(world.reference_rows), world.scores(world.traffic[:300]))
    (grey,) = (column for column in found["properties"].columns if column.name == "property:saturation")
    assert grey.problem == "constant, in the reference and in the window"
    assert not grey.alarm


def test_a_column_that_became_constant_alarms(rng: np.random.Generator) -> None:
    left, right = {"x": rng.normal(0, 1, 400)}, {"x": np.full(300, 3.0)}
    p_values = {"x": float(ks_2samp(left["x"], right["x"]).pvalue)}
    found = detectors.shifted(left, right, p_values, alpha=0.005, floor=0.25)
    assert found.alarm
    assert found.columns[0].shift > 2


def test_nan_is_left_out_and_a_column_of_nan_is_named(rng: np.random.Generator) -> None:
    left = {"x": rng.normal(0, 1, 400), "y": rng.normal(0, 1, 400)}
    right = {"x": np.full(300, np.nan), "y": rng.normal(0, 1, 300)}
    right["y"][::2] = np.nan
    found = detectors.shifted(left, right, {"y": 0.5}, alpha=0.005, floor=0.25)
    x, y = found.columns
    assert x.problem == "0 of 300 values in the window are numbers"
    assert y.problem is None
    assert np.isfinite(y.effect)


@pytest.mark.parametrize(
    ("left", "right", "low", "high"),
    [
        (["a"] * 400, ["a"] * 300, 1.0, 1.0),
        (["a", "b"] * 200, ["a"] * 300, 0.0, 1e-20),
        (["a", "b"] * 200, ["c"] * 300, 0.0, 1e-20),
        (["a", "b"] * 200, ["a", "b"] * 150, 0.9, 1.0),
        (["a"] * 400, [], 1.0, 1.0),
    ],
    ids=["one class", "one class left", "a class never seen", "the same mix", "empty"],
)
def test_the_two_sample_chi_square_gives_a_number(left: list[str], right: list[str], low: float, high: float) -> None:
    assert low <= two_sample_chi_square(np.array(left), np.array(right)) <= high


def test_the_two_sample_chi_square_holds_its_level(rng: np.random.Generator) -> None:
    p_values = [two_sample_chi_square(rng.integers(0, 10, 400), rng.integers(0, 10, 300)) for _ in range(1000)]
    assert 0.03 <= np.mean(np.array(p_values) < 0.05) <= 0.07


def test_the_domain_classifiers_p_value_is_uniform_on_clean_data(rng: np.random.Generator) -> None:
    p_values = []
    for seed in range(40):
        found = separate(rng.normal(size=(120, 8)), rng.normal(size=(100, 8)), seed=seed)
        assert found is not None
        p_values.append(found.p_value)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.15
    assert 0.3 < np.mean(p_values) < 0.7


def test_the_domain_classifier_sees_a_change_of_spread(rng: np.random.Generator) -> None:
    found = separate(rng.normal(size=(400, 8)), rng.normal(0, 1.6, size=(300, 8)))
    assert found is not None
    assert found.auc > 0.7
    assert found.p_value == pytest.approx(0.001)


@pytest.mark.parametrize("rows", [0, 1, 19])
def test_too_few_rows_give_no_separation(rng: np.random.Generator, rows: int) -> None:
    assert separate(rng.normal(size=(400, 8)), rng.normal(size=(rows, 8))) is None
    assert separate(np.zeros((400, 8)), np.zeros((300, 8))) is None


def test_one_lens_explains_a_darker_image_but_not_a_negative(world: Any) -> None:
    reference = world.scores(world.reference_rows).properties
    darker = world.scores(world.traffic[:300], lambda images: images * 0.5).properties
    negative = world.scores(world.traffic[:300], lambda images: 1 - images).properties
    assert misfit(reference, darker).one_lens
    assert not misfit(reference, negative).one_lens


def test_a_lens_that_went_dark_within_the_window_is_still_one_lens(world: Any) -> None:
    reference = world.scores(world.reference_rows).properties
    before = world.scores(world.traffic[:150]).properties
    after = world.scores(world.traffic[150:300], lambda images: images * 0.4).properties
    assert misfit(reference, np.concatenate([before, after])).one_lens


def test_wilsons_interval_is_the_known_one() -> None:
    found = counted(np.array([True] * 90 + [False] * 10))
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(0.8256, abs=1e-3), pytest.approx(0.9448, abs=1e-3))
    assert counted(np.empty(0, dtype=bool)) is None


def test_rows_that_a_network_learnt_from_do_not_make_unseen_ones_look_new(world: Any) -> None:
    """A fine-tuned network embeds the one unlike the other; only held-out rows say how an unseen image looks."""
    reference = world.reference()
    learnt = np.arange(len(reference.scores)) % 2 == 0
    embedding = reference.scores.embedding.copy()
    embedding[learnt] += 1.5
    reference = replace(reference, scores=replace(reference.scores, embedding=embedding), held_out=~learnt)
    scores = world.scores(world.traffic[:300], labelled=False)
    clean = replace(window_of([]), rows=len(scores), scores=scores)
    found = gather(reference, clean, SETTINGS).evidence
    assert found.embedding is not None
    assert not found.embedding.alarm
    few = replace(reference, held_out=~learnt & (np.arange(len(learnt)) < 100))  # 50 held out: too few by themselves
    seen = gather(few, clean, SETTINGS).evidence.embedding
    assert seen is not None
    assert seen.alarm
