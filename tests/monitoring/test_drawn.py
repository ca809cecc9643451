"""What Evidently is told: the columns that moved most, without what does not belong there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from monitoring.detectors import Column, Family
from monitoring.drawn import MOST_DRAWN, most_moved, sides


def family(*columns: Column) -> Family:
    return Family(0.0, 1.0, False, 0.1, columns)


def test_columns_that_alarmed_come_first_then_those_that_moved_most() -> None:
    families = {
        "properties": family(Column("a", 0.1), Column("b", 0.5), Column("broken", 9.0, problem="constant")),
        "output": family(Column("c", 0.2, alarm=True), Column("d", 0.3)),
        "embedding": family(Column("whole", 0.9, alarm=True)),  # not a column that could be drawn
    }
    assert most_moved(families) == ["c", "b", "d", "a"]
    assert most_moved(families, 2) == ["c", "b"]
    many = {"output": family(*(Column(str(at), at / 100) for at in range(50)))}
    assert most_moved(many) == [str(at) for at in range(49, 49 - MOST_DRAWN, -1)]
    assert most_moved({}) == []


def test_rows_that_were_not_held_out_and_values_that_are_no_numbers_are_left_out(world: Any) -> None:
    reference, window = world.reference(), world.scores(world.traffic[:50], labelled=False)
    held_out = np.arange(len(reference.scores)) % 2 == 0
    window.properties[3, 0] = np.inf
    known, now = sides(replace(reference, held_out=held_out), window, ["property:brightness", "confidence"])
    assert list(known.columns) == list(now.columns) == ["property:brightness", "confidence"]
    assert np.isfinite(known.columns["property:brightness"]).all(), "a property of an image needs no model"
    assert np.array_equal(np.isfinite(known.columns["confidence"]), held_out)
    assert [name is not None for name in known.predicted] == held_out.tolist()
    assert np.flatnonzero(np.isnan(now.columns["property:brightness"])).tolist() == [3]
    assert set(now.labels) == {None}
    assert now.predicted == tuple(window.predicted)
