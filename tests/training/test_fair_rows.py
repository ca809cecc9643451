"""The gate compares on rows that favour neither model, however its fresh rows came to be labelled."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from perennial.bundle import Bundle
from perennial.comparable import comparable
from perennial.ledger import EventKind, events
from tests.training.retrain_world import World, truth
from training.datasets import Row
from training.fair_rows import fair_rows, in_windows
from training.gate import Evidence, judge
from training.gate_rules import UNFAIR, GateLimits, better_on_fresh
from training.paired import PairedAnswers, compare
from training.situation import read_situation

WINDOWS, WINDOW, LABELS, JUDGED = 20, 1000, 50, 300
#: Of models that have 80 % right and disagree about 14 % of the images: how unlike their doubts are, how far the images
#: are from what they cannot tell, and what makes the second right on more of them.
UNLIKE, EASY, BETTER = 0.4922, 0.938, {-0.02: -0.0774, 0.0: 0.0, 0.05: 0.2172}


def passed(how: str, *, fair: bool, difference: float = 0.0, runs: int = 60) -> float:
    """How often the second model is called better on 300 of the 1,000 images labelled in twenty windows, where people
    label at random, what the first is least sure of, or half of each."""
    random, found = np.random.default_rng(11), 0
    for _ in range(runs):
        right, sure = two_models(random, BETTER[difference])
        rows = random.permutation(labelled(how, sure[0], random))
        judged = rows[:JUDGED]
        counts = comparable(sure[0], sure[0][rows], sure[0][judged], sure[1][judged], random.random(JUDGED))
        kept = right[:, judged[counts] if fair else judged]
        champion, challenger = (tuple(np.where(one, "a", "b").tolist()) for one in kept)
        slice_ = PairedAnswers(("a",) * kept.shape[1], champion, challenger)
        found += better_on_fresh(compare(slice_), 0.05).passed
    return found / runs


def two_models(random: np.random.Generator, better: float) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Of every image which model has it right [2, N], and how sure each is [2, N]."""
    images = EASY - random.normal(0, 1, WINDOWS * WINDOW)
    margins = images + np.array([[0.0], [better]]) + random.normal(0, UNLIKE, (2, WINDOWS * WINDOW))
    return margins > 0, 1 / (1 + np.exp(-1.2 * np.abs(margins)))


def labelled(how: str, sure: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int64]:
    asked = {"random": 0, "both": LABELS // 2, "queue": LABELS}[how]
    least = np.argsort(sure.reshape(WINDOWS, WINDOW), axis=1)
    others = random.permuted(least[:, asked:], axis=1)[:, : LABELS - asked]
    chosen = np.hstack([least[:, :asked], others]) + WINDOW * np.arange(WINDOWS)[:, None]
    return np.asarray(chosen.ravel())


@pytest.mark.parametrize("how", ["queue", "both", "random"])
def test_an_equal_challenger_hardly_passes_however_labels_are_given(how: str) -> None:
    assert passed(how, fair=True) <= 0.1
    if how != "random":
        assert passed(how, fair=False) > 0.3, "what this is for"


def test_a_worse_challenger_does_not_pass_on_what_the_champion_was_unsure_of() -> None:
    assert passed("queue", fair=True, difference=-0.02) <= 0.05
    assert passed("queue", fair=False, difference=-0.02) > 0.2, "what this is for"


def test_labels_given_at_random_show_as_much_as_ever() -> None:
    assert passed("random", fair=True, difference=0.05) >= passed("random", fair=False, difference=0.05) - 0.02


def test_a_class_that_the_champion_does_not_know_counts_however_it_was_labelled(champion: Bundle) -> None:
    rows = [Row(f"{number}", "yellow" if number < 5 else "red", f"{number:064x}", "test") for number in range(50)]
    answered = np.linspace(0.4, 1.0, 1000)
    unsure, certain = [0.41] * 50, [0.99] * 50
    asked_for = in_windows(answered, np.arange(1000) < 60, 1000)
    counts = fair_rows(champion.manifest, rows, (unsure, certain), asked_for)
    assert counts[:5].all()
    assert counts[5:].sum() <= 5
    at_random = in_windows(answered, np.arange(1000) % 20 == 0, 1000)
    assert fair_rows(champion.manifest, rows, (unsure, certain), at_random).all()


def test_labels_given_more_often_since_the_drift_are_not_taken_for_asked_for(champion: Bundle) -> None:
    random = np.random.default_rng(1)
    rows = [Row(f"{number}", "red", f"{number:064x}", "test") for number in range(50)]
    unsure, certain = [0.45] * 50, [0.95] * 50
    # Three quiet windows of which one label in fifty was given, and one of drift of which every third was.
    answered = np.r_[random.uniform(0.8, 1.0, 3000), random.uniform(0.4, 0.9, 1000)]
    labelled = random.random(4000) < np.r_[np.full(3000, 0.02), np.full(1000, 0.33)]
    assert fair_rows(champion.manifest, rows, (unsure, certain), in_windows(answered, labelled, 1000)).all()
    assert fair_rows(champion.manifest, rows, (unsure, certain), in_windows(answered, labelled, 4000)).sum() < 25
    doubted = labelled & (answered < 0.6)
    assert fair_rows(champion.manifest, rows, (unsure, certain), in_windows(answered, doubted, 1000)).sum() < 15


def judged(both: int, champion: int, challenger: int, unfair: int) -> Evidence:
    right = [(True, True)] * both + [(True, False)] * champion + [(False, True)] * challenger
    labels = tuple("ab"[number % 2] for number in range(len(right)))
    one, other = (
        tuple(label if each[side] else "c" for label, each in zip(labels, right, strict=True)) for side in (0, 1)
    )
    same = ("a",) * 100
    return Evidence(PairedAnswers(labels, one, other), PairedAnswers(same, same, same), unfair=unfair)


def test_the_decision_says_how_many_rows_do_not_count_and_reckons_with_them() -> None:
    limits = GateLimits(0.05, 0.02, share=0.5)
    without, decision = judge(judged(60, 4, 9, 0), limits), judge(judged(60, 4, 9, 219), limits)
    assert (without.outcome, decision.outcome) == ("wait", "wait")
    assert decision.document()["left_out"] == {UNFAIR: 219}
    assert f"without 219 that do not count, as they were {UNFAIR}" in decision.why
    assert without.left_out == {}
    assert "do not count" not in without.why
    # Of such labels a quarter counts; chosen at random, all would.
    assert without.more_labels == without.more_random_labels == decision.more_random_labels
    assert decision.more_labels == 4 * (without.more_labels or 0)
    told = f"about {decision.more_labels} more labels would settle it if they are chosen as these were, or about "
    assert f"{told}{decision.more_random_labels} chosen at random" in decision.why
    json.dumps(decision.document())


def test_where_no_row_counts_the_gate_waits_and_says_why() -> None:
    decision = judge(judged(0, 0, 0, 30), GateLimits(0.05, 0.02, share=0.5))
    assert decision.outcome == "wait"
    assert decision.why.startswith(
        f"there are no fresh labelled rows to judge on: 30 do not count, as they were {UNFAIR}"
    )
    assert (decision.more_random_labels, decision.more_labels) == (10, 300)


def test_a_retrain_leaves_out_what_was_labelled_for_doubt(world: World) -> None:
    served = sorted(world.serve(240, inverted=True), key=lambda row: row.confidence)
    world.label(served[:80], truth)
    world.request()
    result = world.retrain()
    assert result.gate is not None
    [left_out] = result.gate.left_out.values()
    assert left_out > 10
    assert result.gate.fresh is not None
    assert 30 <= result.gate.fresh.rows + left_out <= 32
    written = events.last(world.engine, "default", (EventKind.GATE_PASSED, EventKind.GATE_REFUSED))
    assert written is not None
    assert written.detail["gate"]["left_out"] == {UNFAIR: left_out}
    if result.outcome == "waiting":  # what it takes at random is waited for, no matter how they are chosen
        assert read_situation(world.engine, world.settings).awaited_labels == result.gate.more_random_labels
