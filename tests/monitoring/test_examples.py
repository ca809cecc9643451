"""The images that are shown are those that drifted, each once; what is said of properties and classes is what is so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from monitoring import two_sample
from monitoring.breakdown import Recall, class_changes, property_changes
from monitoring.detectors import shifted
from monitoring.diversity import apart
from monitoring.embedding import domain_scores, unlikeness
from monitoring.examples import MOST, NEIGHBOURS, Why, examples_of
from monitoring.verdict import Verdict
from monitoring.window import Answers, Reference, Scores, Window, window_of
from perennial.graph import PROPERTIES

COMPONENTS = 8


def scores_of(embedding: Any, prefix: str, labels: Any = None, predicted: Any = None) -> Scores:
    rows = len(embedding)
    random = np.random.default_rng(rows)
    return Scores(
        np.full((rows, 2), 0.5, dtype=np.float32),
        np.asarray(embedding, dtype=np.float32),
        random.normal(size=(rows, len(PROPERTIES))).astype(np.float32),
        np.array(predicted if predicted is not None else ["a"] * rows, dtype=object),
        random.uniform(0.5, 1.0, rows).astype(np.float32),
        tuple(labels or [None] * rows),
        tuple(f"{prefix}{at}" for at in range(rows)),
    )


def window_with(scores: Scores, images: Any = None) -> Window:
    ids = tuple(f"p{at}" for at in range(len(scores)))
    kept = images if images is not None else tuple(f"i{at}" for at in range(len(scores)))
    return replace(window_of([]), rows=len(scores), scores=scores, answers=scores.answers, ids=ids, images=kept)


@pytest.fixture
def reference(rng: np.random.Generator) -> Reference:
    # The components have other scales: what is near is to be told in standard deviations.
    scores = scores_of(rng.normal(size=(400, COMPONENTS)) * np.geomspace(0.1, 10, COMPONENTS), "r")
    return Reference(("a", "b"), PROPERTIES, scores, np.ones(400, dtype=bool))


@pytest.fixture
def planted(rng: np.random.Generator) -> Window:
    """300 images like the reference's but for the last 14, which are of another kind: four that differ among
    themselves, and ten near-copies of a fifth."""
    scale = np.geomspace(0.1, 10, COMPONENTS)
    plain = rng.normal(size=(286, COMPONENTS))
    other = 6 * np.eye(COMPONENTS)[0]
    different = other + 3 * np.eye(COMPONENTS)[1:5]
    copies = np.tile(other + 3 * np.eye(COMPONENTS)[5], (10, 1)) + rng.normal(size=(10, COMPONENTS)) * 0.02
    return window_with(scores_of(np.concatenate([plain, different, copies]) * scale, "w"))


def test_planted_outliers_come_first_and_near_copies_once(reference: Reference, planted: Window) -> None:
    found = examples_of(Verdict.DATA_DRIFT, reference, planted, frozenset(reference.scores.digests))
    places = [int(each.prediction_id[1:]) for each in found]
    assert min(places[:4]) >= 286
    assert len({286, 287, 288, 289} & set(places)) >= 3
    assert [place >= 290 for place in places].count(True) == 1
    assert len(set(places)) == len(places) <= MOST
    assert all(each.drift > 0.99 for each in found[:4])
    assert all(each.why is Why.DRIFTED and each.image_url == f"i{each.prediction_id[1:]}" for each in found)


def test_where_only_a_few_are_novel_these_are_shown_and_no_others(reference: Reference, planted: Window) -> None:
    novel = np.zeros(300, dtype=bool)
    novel[[7, 80, 200, 287]] = True
    found = examples_of(Verdict.DATA_DRIFT, reference, planted, (), novel=novel)
    assert {each.prediction_id for each in found} == {"p7", "p80", "p200", "p287"}
    assert found[0].prediction_id == "p287", "the furthest first"


def test_beside_each_are_the_nearest_reference_images_that_have_a_thumbnail(
    reference: Reference, planted: Window
) -> None:
    pictured = frozenset(reference.scores.digests[::3])
    (first, *_) = examples_of(Verdict.DATA_DRIFT, reference, planted, pictured)
    known = reference.scores.embedding.astype(np.float64)
    mean, spread = known.mean(axis=0), known.std(axis=0)
    point = (planted.scores.embedding[int(first.prediction_id[1:])] - mean) / spread
    distance = np.linalg.norm((known - mean) / spread - point, axis=1)
    nearest = [place for place in np.argsort(distance) if f"r{place}" in pictured][:NEIGHBOURS]
    assert [each.digest for each in first.nearest] == [f"r{place}" for place in nearest]
    assert [each.distance for each in first.nearest] == pytest.approx(distance[nearest])
    assert examples_of(Verdict.DATA_DRIFT, reference, planted, frozenset())[0].nearest == ()


def test_nothing_is_shown_of_a_clean_window_nor_what_was_not_kept_or_is_damaged(
    reference: Reference, planted: Window
) -> None:
    for verdict in (Verdict.OK, Verdict.INSUFFICIENT_DATA):
        assert examples_of(verdict, reference, planted, ()) == ()
    assert examples_of(Verdict.DATA_DRIFT, reference, replace(planted, images=(None,) * 300), ()) == ()
    embedding = planted.scores.embedding.copy()
    embedding[286] = np.nan
    kept = tuple(None if at == 287 else image for at, image in enumerate(planted.images))
    confidence = planted.scores.confidence.copy()
    confidence[290:] = np.nan
    window = replace(planted, images=kept, scores=replace(planted.scores, embedding=embedding, confidence=confidence))
    found = [each.prediction_id for each in examples_of(Verdict.DATA_DRIFT, reference, window, ())]
    assert {"p288", "p289"} <= set(found[:4])
    assert not {"p286", "p287", *(f"p{at}" for at in range(290, 300))} & set(found)


def test_of_concept_drift_those_are_shown_whose_label_contradicts_the_model(
    reference: Reference, rng: np.random.Generator
) -> None:
    labels = ["b" if at % 10 == 0 else "a" if at % 2 else None for at in range(100)]
    window = window_with(scores_of(rng.normal(size=(100, COMPONENTS)), "w", labels))
    found = examples_of(Verdict.CONCEPT_DRIFT, reference, window, ())
    assert {int(each.prediction_id[1:]) % 10 for each in found} == {0}
    assert all((each.why, each.label, each.predicted) == (Why.CONTRADICTED, "b", "a") for each in found)
    sure = window.scores.confidence[::10]
    assert found[0].confidence == sure.max()
    told = found[0].document()
    assert (told["why"], told["label"], told["predicted"], told["nearest"]) == ("contradicted", "b", "a", [])
    assert "image_url" not in told  # where images lie is nobody else's business
    assert examples_of(Verdict.CONCEPT_DRIFT, reference, window_with(scores_of(np.zeros((5, 8)), "w")), ()) == ()


def test_a_frozen_cameras_one_image_is_shown(reference: Reference) -> None:
    (found,) = examples_of(Verdict.COLLECTION_FAULT, reference, window_with(scores_of(np.ones((1, 8)), "w")), ())
    assert (found.prediction_id, found.drift) == ("p0", 0.5)


def test_where_all_drifted_the_furthest_out_come_first(reference: Reference, rng: np.random.Generator) -> None:
    far = np.linspace(3, 9, 60)[:, None] * np.ones(COMPONENTS) + rng.normal(size=(60, COMPONENTS))
    window = window_with(scores_of(far * np.geomspace(0.1, 10, COMPONENTS), "w"))
    drift = unlikeness(reference.scores.embedding, window.scores.embedding)
    assert np.median(drift) == 1.0
    found = domain_scores(reference.scores.embedding, window.scores.embedding)
    assert found is not None
    order = np.argsort(-found[1])
    shown = [int(each.prediction_id[1:]) for each in examples_of(Verdict.DATA_DRIFT, reference, window, ())]
    assert shown[0] == order[0]
    assert np.mean([list(order).index(place) for place in shown]) < 30


def test_the_most_worthy_come_first_and_the_count_is_held(rng: np.random.Generator) -> None:
    points = rng.normal(size=(50, 3))
    worth = rng.uniform(0.5, 1.0, 50)
    taken = apart(worth, points, 10)
    assert taken[0] == worth.argmax()
    assert len(set(taken)) == 10
    same = np.concatenate([points, points])
    assert sorted(place % 50 for place in apart(np.tile(worth, 2), same, 100, least=1e-9)) == list(range(50))
    assert apart(np.array([0.3]), np.zeros((1, 3)), 5) == [0]


def test_properties_are_told_from_what_to_what(world: Any) -> None:
    reference, window = world.reference(), world.scores(world.traffic[:300], lambda images: images * 0.6)
    measured = two_sample.measure(reference, window)
    columns = (two_sample.property_columns(reference, scores) for scores in (reference.scores, window))
    found = property_changes(reference, window, shifted(*columns, measured.p_values, alpha=0.001, floor=0.25))
    assert found[0].says
    by_name = {each.name: each for each in found}
    assert "saturation" not in by_name  # constant: it could not be tested
    dark = by_name["brightness"]
    assert "darker" in dark.says
    assert dark.before[1] == pytest.approx(np.median(reference.scores.properties[:, 0]))
    assert dark.now == pytest.approx(np.quantile(window.properties[:, 0], (0.05, 0.5, 0.95)))
    assert [bool(each.says) for each in found] == sorted([bool(each.says) for each in found], reverse=True)


def test_classes_are_told_from_what_to_what() -> None:
    reference = scores_of(np.zeros((40, 2)), "r", ["a"] * 20 + ["b"] * 20, ["a"] * 30 + ["b"] * 10)
    held_out = np.arange(40) % 2 == 0  # of ten labelled a all are answered right, of ten labelled b five
    scores = scores_of(np.zeros((10, 2)), "w", ["c"] * 2 + [None] * 8, ["a"] + ["b"] * 9)
    window = replace(window_with(scores), answers=Answers(np.array(["a", "a"]), np.array(["a", "b"])))
    found = class_changes(Reference(("a", "b", "c"), PROPERTIES, reference, held_out), window)
    assert {each.name for each in found} == {"a", "b"}
    a, b = sorted(found, key=lambda each: each.name)
    assert (a.share_before, a.share_now) == (0.75, 0.1)
    assert (b.recall_before, b.recall_now) == (Recall(5, 10), Recall(0, 1))
    assert (a.recall_before, a.recall_now) == (Recall(10, 10), Recall(1, 1))
    assert a.confidence_now == pytest.approx(float(scores.confidence[0]))
    assert a.confidence_before == pytest.approx(reference.confidence[held_out][:15].mean())
    alone = class_changes(Reference(("a", "b"), PROPERTIES, reference, held_out), window_with(scores_of([], "w")))
    assert all(each.confidence_now is None and each.share_now == 0 for each in alone)
