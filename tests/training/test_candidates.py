"""Which way to weigh rows is taken, on features of a known shape: as people would, and never without a reason."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from training.candidates import ALL, IMPORTANCE, NAMES, RECENT_ONLY, RECENT_WEIGHTED, Choice, choose, importance
from training.datasets import LabelledImages, Row, Split

CLASSES = ("a", "b", "c")
Features = NDArray[np.float32]
EVERY = tuple(NAMES)


class World:
    """Images of three classes as points: class centres in the plane, and what is added to make captures of them."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.rows: list[Row] = []
        self.features: list[Features] = []

    def add(
        self,
        count: int,
        origin: str,
        split: Split,
        *,
        moved: Sequence[float] = (0.0,) * 4,
        spread: float = 1.0,
        names: Sequence[str] = CLASSES,
        weight: float = 1.0,
    ) -> None:
        centres = np.eye(4)[:3] * 4
        for number in range(count):
            at = number % 3
            digest = f"{len(self.rows):064x}"
            point = centres[at] + np.asarray(moved) + self.random.normal(0, spread, 4)
            self.features.append(point.astype(np.float32))
            self.rows.append(
                Row(f"/{digest}", names[at], digest, split, weight, origin, origin == "capture")  # type: ignore[arg-type]
            )

    def choose(self, names: Sequence[str] = EVERY, margin: float = 0.02) -> tuple[LabelledImages, Choice]:
        rows = tuple(self.rows)
        images = LabelledImages("/data", CLASSES, rows, ())
        return choose(images, rows, np.stack(self.features), names, margin=margin)


def usual(fresh: int = 60) -> World:
    world = World()
    world.add(300, "original", "train")
    world.add(60, "original", "validation")
    world.add(fresh, "capture", "train", weight=5.0)
    return world


def test_where_nothing_differs_the_rows_stay_as_they_are() -> None:
    world = usual()
    images, choice = world.choose()
    assert choice.name == RECENT_WEIGHTED
    assert images.rows == tuple(world.rows)
    assert {one.name for one in choice.tried} == set(NAMES)
    assert "differs by no more than chance" in choice.why or "more than any other" in choice.why
    document = json.loads(json.dumps(choice.document()))
    assert [one["name"] for one in document["tried"]] == list(NAMES)
    assert all(0.5 < one["fresh"]["value"] <= 1 and 0.5 < one["old"]["value"] <= 1 for one in document["tried"])


def test_where_the_old_rows_teach_what_is_wrong_now_captures_alone_are_best_unless_the_old_still_counts() -> None:
    world = World()
    world.add(600, "original", "train")
    world.add(60, "original", "validation")
    world.add(150, "capture", "train", names=("b", "c", "a"), weight=1.0)
    images, choice = world.choose(margin=1.0)
    assert choice.name == RECENT_ONLY
    assert {row.origin for row in images.rows if row.split == "train"} == {"capture"}
    assert {row.origin for row in images.rows if row.split == "validation"} == {"original"}
    # What would lose all of the old knowledge is not proposed: the gate would refuse it.
    _, careful = world.choose(margin=0.02)
    assert careful.name != RECENT_ONLY


def test_original_rows_that_look_like_the_captures_weigh_more() -> None:
    world = World()
    world.add(150, "original", "train")
    world.add(150, "original", "train", moved=(0, 0, 0, 6.0))
    world.add(60, "original", "validation")
    world.add(90, "capture", "train", moved=(0, 0, 0, 6.0), weight=2.0)
    original = np.array([row.origin == "original" and row.split == "train" for row in world.rows])
    fresh = np.array([row.origin == "capture" for row in world.rows])
    weights = importance(np.stack(world.features), original, fresh)
    far, near = weights[:150], weights[150:300]
    assert near.mean() > 3 * far.mean()
    assert weights.max() <= 10
    assert weights[original].mean() == pytest.approx(1.0, abs=0.3)
    assert set(weights[~original]) == {1.0}
    assert {one.name for one in world.choose([IMPORTANCE])[1].tried} == {RECENT_WEIGHTED, IMPORTANCE}


def test_with_too_little_to_compare_by_nothing_is_compared_and_it_says_so() -> None:
    _, few = usual(fresh=20).choose()
    assert (few.name, few.tried) == (RECENT_WEIGHTED, ())
    assert "20 fresh captures to train on are too few" in few.why
    _, alone = usual().choose([RECENT_WEIGHTED])
    assert alone.why == "no other was asked for"
    world = World()
    world.add(300, "original", "train")
    world.add(60, "capture", "train")
    assert world.choose()[1].why == "there are no validation rows"


def test_a_way_that_leaves_a_class_without_rows_is_not_tried() -> None:
    world = World()
    world.add(300, "original", "train")
    world.add(60, "original", "validation")
    world.add(60, "capture", "train", names=("a", "b", "a"))
    _, choice = world.choose()
    assert RECENT_ONLY not in {one.name for one in choice.tried}
    assert {RECENT_WEIGHTED, ALL, IMPORTANCE} <= {one.name for one in choice.tried}


def test_near_duplicates_are_held_out_together() -> None:
    # Every capture is there ten times, with labels at random: who sees a copy knows the answer, and nobody else does.
    world = World()
    world.add(300, "original", "train")
    world.add(60, "original", "validation")
    scene: dict[str, str] = {}
    for _ in range(12):
        point = world.random.normal(0, 8, 4).astype(np.float32)
        label = str(world.random.choice(CLASSES))
        first = f"{len(world.rows):064x}"
        for _ in range(10):
            digest = f"{len(world.rows):064x}"
            scene[digest] = first
            world.features.append(point + world.random.normal(0, 0.01, 4).astype(np.float32))
            world.rows.append(Row(f"/{digest}", label, digest, "train", 2.0, "capture", True))
    rows = tuple(world.rows)
    images = LabelledImages("/data", CLASSES, rows, ())
    _, apart = choose(images, rows, np.stack(world.features), EVERY, margin=1.0)
    _, together = choose(
        images, rows, np.stack(world.features), EVERY, margin=1.0, group=lambda digest: scene.get(digest, digest)
    )
    best = {one.name: one.fresh.value for one in apart.tried}, {one.name: one.fresh.value for one in together.tried}
    assert best[0][RECENT_ONLY] > best[1][RECENT_ONLY] + 0.15
