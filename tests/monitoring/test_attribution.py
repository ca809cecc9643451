"""The verdict as a table of cases."""

from __future__ import annotations

from typing import Any

import pytest

from monitoring.attribution import Evidence, attribute, describe
from monitoring.detectors import Column, Family
from monitoring.lens import Misfit


def family(alarm: bool, *columns: Column, p_value: float | None = None) -> Family:
    return Family(0.9 if alarm else 0.0, (1e-9 if alarm else 0.8) if p_value is None else p_value, alarm, 0.1, columns)


DARK = Column("property:brightness", 1.9, 1e-9, True, -1.9)
SOFT = Column("property:sharpness", 5.5, 1e-9, True, -5.5)
MIX = (Column("cat", 0.3, 1e-9, False, 0.3), Column("dog", 0.3, 1e-9, False, -0.3))
LOSS = Column("accuracy", 0.2, 1e-9, True, -0.2)
CALM: dict[str, Any] = {
    "properties": family(False),
    "output": family(False),
    "class_mix": family(False, *MIX),
    "embedding": family(False),
    "within_classes": family(False),
    "novelty": family(False),
    "labels": family(False),
}
ONE_LENS, OTHER_IMAGES = Misfit(0.06, 0.07), Misfit(0.45, 0.16)
P, O, M, E, W, N, L = (  # noqa: E741
    {"properties": family(True, DARK, SOFT), "misfit": ONE_LENS},
    {"output": family(True, Column("confidence", 1.0, 1e-9, True, -1.0))},
    {"class_mix": family(True, *MIX)},
    {"embedding": family(True)},
    {"within_classes": family(True)},
    {"novelty": family(True), "novel_properties": (SOFT,)},
    {"labels": family(True, LOSS)},
)

CASES: list[tuple[str, dict[str, Any], str, list[str]]] = [
    ("nothing fires", {}, "ok", []),
    ("too few rows", {"rows": 199, **L}, "insufficient_data", ["insufficient_data"]),
    (
        "nothing that is sent can be read",
        {"rows": 0, "distinct": 0, "faults": ("x",)},
        "collection_fault",
        ["collection_fault", "insufficient_data"],
    ),
    ("no rows", {"rows": 0, "distinct": 0}, "insufficient_data", ["insufficient_data"]),
    ("the same few images again and again", {"distinct": 40}, "insufficient_data", ["insufficient_data"]),
    ("a stuck camera", {"distinct": 1, "faults": ("stuck",)}, "collection_fault", ["collection_fault"]),
    ("a stuck camera, gone dark", {"faults": ("x",), **P}, "collection_fault", ["collection_fault", "sensor_shift"]),
    ("a dark lens", P, "sensor_shift", ["sensor_shift"]),
    ("a dark lens that moves the embedding too", {**P, **O, **E, **W}, "sensor_shift", ["sensor_shift"]),
    ("a dark lens that costs accuracy", {**P, **O, **M, **E, **W, **L}, "sensor_shift", ["sensor_shift"]),
    ("a lens no misfit could be measured for", {**P, "misfit": None}, "sensor_shift", ["sensor_shift"]),
    (
        "a dark lens while labels change their meaning",
        {**P, **L},
        "sensor_shift",
        ["sensor_shift", "concept_drift"],
    ),
    ("sketches", {**P, **O, **M, **E, **W, "misfit": OTHER_IMAGES}, "data_drift", ["data_drift"]),
    (
        "sketches with labels",
        {**P, **O, **M, **E, **W, **L, "misfit": OTHER_IMAGES},
        "data_drift",
        ["data_drift"],
    ),
    ("turned by 90 degrees", {**O, **M, **E, **W}, "data_drift", ["data_drift"]),
    ("turned, with labels", {**O, **M, **E, **W, **L}, "data_drift", ["data_drift"]),
    ("only the embedding", {**E, **W}, "data_drift", ["data_drift"]),
    ("only the embedding, not within classes", E, "data_drift", ["data_drift"]),
    ("only the outputs", O, "data_drift", ["data_drift"]),
    ("classes gone", {**M, **O}, "prior_shift", ["prior_shift"]),
    ("classes gone, seen by the embedding", {**M, **O, **E}, "prior_shift", ["prior_shift"]),
    (
        "a mix too little changed to be called so by itself",
        {**O, "class_mix": family(False, *MIX, p_value=0.004)},
        "prior_shift",
        ["prior_shift"],
    ),
    ("night classes only", {**M, **P, "mix_explains_properties": True}, "prior_shift", ["prior_shift"]),
    ("a new mix through a new lens", {**M, **P}, "sensor_shift", ["sensor_shift", "prior_shift"]),
    ("labels swapped", L, "concept_drift", ["concept_drift"]),
    ("labels swapped under a new mix", {**M, **L}, "prior_shift", ["prior_shift", "concept_drift"]),
    ("a few images of something new", N, "data_drift", ["data_drift"]),
    ("a few images of something new, under a new mix", {**M, **N}, "prior_shift", ["prior_shift"]),
    ("a few images of something new through a new lens", {**P, **N}, "sensor_shift", ["sensor_shift"]),
    ("the domain classifier within classes alone says nothing", W, "ok", []),
]


@pytest.mark.parametrize(("changes", "verdict", "causes"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_the_cause_is_named(changes: dict[str, Any], verdict: str, causes: list[str]) -> None:
    evidence = Evidence(**{"rows": 500, "distinct": 500, "min_rows": 200, **CALM, **changes})
    found, why = attribute(evidence)
    assert (found, [cause.cause for cause in why]) == (verdict, causes)
    assert all(cause.why for cause in why)


def test_a_sensor_shift_names_the_properties_and_their_direction() -> None:
    _, (cause,) = attribute(Evidence(rows=500, distinct=500, min_rows=200, **{**CALM, **P}))
    assert cause.columns == ("property:sharpness", "property:brightness")
    assert "softer (sharpness -5.5 sd)" in cause.why
    assert "darker (brightness -1.9 sd)" in cause.why


def test_novel_images_are_counted_and_told_by_what_they_differ() -> None:
    novelty = Family(0.062, 1e-9, True, 0.02, (Column("properties", 0.062, 1e-9, True, 0.062),))
    evidence = {**CALM, **N, "rows": 500, "distinct": 500, "min_rows": 200, "novelty": novelty}
    _, (cause,) = attribute(Evidence(**evidence))
    assert cause.columns == ("property:sharpness",)
    assert "6.2% more than should be" in cause.why
    assert "softer" in cause.why


def test_a_prior_shift_names_the_classes() -> None:
    _, (cause,) = attribute(Evidence(rows=500, distinct=500, min_rows=200, **{**CALM, **M}))
    assert set(cause.columns) == {"cat", "dog"}
    assert "cat +30%" in cause.why


def test_a_change_of_spread_is_not_called_a_shift() -> None:
    assert describe(Column("property:contrast", 0.8, 0.0, True, 0.1)) == "contrast spread differently (0.8 sd)"


def test_a_family_that_could_not_run_raises_no_alarm() -> None:
    assert attribute(Evidence(rows=500, distinct=500, min_rows=200))[0] == "ok"
