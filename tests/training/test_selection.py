from __future__ import annotations

import numpy as np

from training.datasets import Row, Split
from training.neighbours import neighbour_logits
from training.probe import split_into_folds
from training.selection import FEW, SOME, select


def rows(count: int, split: Split, classes: int = 3) -> list[Row]:
    return [Row(f"{split}{at}", str(at % classes), f"{split}{at}", split) for at in range(count)]


def labels(of: list[Row]) -> list[int]:
    return [int(row.label) for row in of]


def test_few_rows_are_cross_validated_and_none_is_kept_back() -> None:
    some = rows(40, "train") + rows(10, "validation") + rows(10, "test")
    found = select(some, labels(some), {}, seed=0)
    assert found.says == "5-fold cross-validation over 50 images"
    assert {some[at].split for at in found.learnt} == {"train", "validation"}
    judged = np.concatenate([part for _, part in found.parts()])
    assert sorted(judged) == list(range(50))
    for fitted, part in found.parts():
        assert not set(fitted) & set(part)
        assert {some[at].label for at in fitted} == {"0", "1", "2"}
    assert len(list(found.parts(most=2))) == 2


def test_many_rows_are_judged_by_the_validation_ones() -> None:
    some = rows(FEW, "train") + rows(100, "validation") + rows(10, "test")
    found = select(some, labels(some), {}, seed=0)
    assert found.folds is None
    ((fitted, judged),) = found.parts()
    assert {some[at].split for at in fitted} == {"train"}
    assert {some[at].split for at in judged} == {"validation"}
    assert {some[at].split for at in found.final} == {"train", "validation"}
    assert len(found.final) == FEW + 100


def test_of_very_many_rows_the_validation_ones_are_not_needed() -> None:
    some = rows(SOME, "train") + rows(100, "validation") + rows(10, "test")
    found = select(some, labels(some), {}, seed=0)
    assert {some[at].split for at in found.final} == {"train"}


def test_one_image_a_class_cannot_be_cross_validated() -> None:
    some = rows(3, "train") + rows(3, "test")
    some[3:] = [Row(row.location, row.label, row.digest, "validation") for row in some[3:]]
    groups = {row.digest: row.label for row in some}
    found = select(some, labels(some), groups, seed=0)
    assert found.folds is None
    assert len(found.judged) == 3


def test_look_alikes_stay_in_one_fold_and_a_class_is_never_held_out_whole() -> None:
    of = [0] * 20 + [1] * 6 + [2]
    groups = [str(at // 2) for at in range(26)] + ["alone"]
    folds = split_into_folds(of, groups)
    assert all(len({folds[at] for at in range(27) if groups[at] == group}) == 1 for group in groups)
    assert folds[26] == -1  # the only one of its class is always learnt from
    assert set(folds[:20]) == set(range(5))
    for fold in range(5):
        assert {of[at] for at in range(27) if folds[at] != fold} == {0, 1, 2}


def test_neighbours_vote_and_the_nearer_count_more() -> None:
    train = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [0.2, 0.8]], np.float32)
    found = neighbour_logits(train, [0, 0, 1, 1, 1], np.array([[1, 0.02], [0.02, 1]], np.float32), 2)
    assert found.argmax(axis=1).tolist() == [0, 1]  # of five votes three are for class 1, in both
    shares = np.exp(found)
    assert np.allclose(shares.sum(axis=1), 1.0)
    assert (shares > 0).all()
