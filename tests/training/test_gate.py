"""The gate's decision, from its evidence alone."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from perennial.bundle import ClassMetrics, Estimate
from perennial.ledger import EventKind
from perennial.ledger.checks import CheckRow
from perennial.ledger.events import Event
from training.evaluate import accuracy_interval
from training.gate import Evidence, GateDecision, judge
from training.gate_rules import Costs, GateLimits
from training.meaning import ChangedClass, changed_classes, inputs_unchanged
from training.paired import PairedAnswers, fewest_rows, mcnemar, smallest_p

ALPHA = 0.05
LIMITS = GateLimits(ALPHA, 0.02, share=0.3)


def answers(both: int, only_champion: int, only_challenger: int, neither: int) -> PairedAnswers:
    """A slice of two classes with so many rows of each kind."""
    rows = [(True, True)] * both + [(True, False)] * only_champion + [(False, True)] * only_challenger
    rows += [(False, False)] * neither
    labels = tuple("ab"[index % 2] for index in range(len(rows)))
    other = {"a": "b", "b": "a"}
    champion, challenger = (
        tuple(label if right[side] else other[label] for label, right in zip(labels, rows, strict=True))
        for side in (0, 1)
    )
    return PairedAnswers(labels, champion, challenger)


NOTHING = answers(0, 0, 0, 0)
SAME = answers(95, 0, 0, 5)
BETTER = answers(50, 2, 30, 8)

MEANING = ChangedClass("a", "b", 20, 0, 20, 0.9, 0.0, 0.95, 1e-9)


def decide(fresh: PairedAnswers, old: PairedAnswers, **evidence: object) -> GateDecision:
    return judge(Evidence(fresh, old, **evidence), LIMITS)  # type: ignore[arg-type]


def test_without_old_rows_only_classes_that_changed_earlier_let_a_better_model_pass() -> None:
    assert decide(BETTER, NOTHING).outcome == "refuse"
    decision = decide(BETTER, NOTHING, changed_before=("a", "b"))
    assert decision.outcome == "pass"
    assert "without a, b, whose meaning changed" in decision.why
    assert "informed" in {rule.name for rule in decision.rules}


@pytest.mark.parametrize(
    ("fresh", "old", "outcome", "broken"),
    [
        pytest.param(BETTER, SAME, "pass", [], id="better on fresh and the same on old"),
        pytest.param(BETTER, answers(93, 2, 0, 5), "pass", [], id="loses exactly the margin on old"),
        pytest.param(BETTER, answers(92, 3, 0, 5), "refuse", ["kept_on_old"], id="loses more than the margin on old"),
        pytest.param(SAME, SAME, "refuse", ["better_on_fresh"], id="no different"),
        pytest.param(
            answers(50, 30, 2, 8), SAME, "refuse", ["better_on_fresh", "kept_each_class"], id="worse on fresh"
        ),
        pytest.param(answers(60, 10, 17, 13), SAME, "wait", ["better_on_fresh"], id="looks better, too few to tell"),
        pytest.param(answers(60, 14, 15, 11), SAME, "refuse", ["better_on_fresh"], id="too little to wait for"),
        pytest.param(
            answers(50, 30, 2, 8),
            answers(80, 15, 0, 5),
            "refuse",
            ["better_on_fresh", "kept_on_old", "kept_each_class"],
            id="both",
        ),
        pytest.param(answers(0, 0, 4, 0), SAME, "wait", ["better_on_fresh"], id="four rows cannot show anything"),
        pytest.param(NOTHING, SAME, "wait", ["better_on_fresh"], id="no fresh rows at all"),
        pytest.param(BETTER, NOTHING, "refuse", ["kept_on_old"], id="no old rows and no reason for it"),
    ],
)
def test_the_gate_decides_by_stated_rules(
    fresh: PairedAnswers, old: PairedAnswers, outcome: str, broken: list[str]
) -> None:
    decision = decide(fresh, old)
    assert decision.outcome == outcome
    assert [rule.name for rule in decision.rules if not rule.passed] == broken


def test_a_refusal_states_every_number() -> None:
    decision = decide(answers(60, 14, 15, 11), answers(80, 15, 0, 5))
    assert "on 100 fresh rows the challenger has 75.0% [65.7%, 82.5%], the champion 74.0%" in decision.why
    assert "difference +1.0 points" in decision.why
    assert "on 100 old held-out rows the challenger has 80.0%" in decision.why
    assert "more than the 2 points it may lose" in decision.why
    document = json.loads(json.dumps(decision.document()))
    assert document["fresh"]["rows"] == 100
    assert document["fresh"]["champion"] == accuracy_interval(74, 100).model_dump()
    assert document["fresh"]["only_challenger"] == 15
    assert document["old"]["difference"]["value"] == pytest.approx(-0.15)


def test_too_few_rows_are_said_to_be_too_few() -> None:
    decision = decide(answers(0, 0, 4, 0), SAME)
    assert "4 rows cannot reach p <= 0.05, the smallest possible is 0.0625" in decision.why
    assert decision.more_labels is not None
    assert decision.more_labels >= 1


def test_more_labels_are_reckoned_for_the_share_that_reaches_the_gate() -> None:
    evidence = Evidence(answers(60, 10, 17, 13), SAME)
    everything = judge(evidence, replace(LIMITS, share=1.0)).more_labels
    third = judge(evidence, replace(LIMITS, share=1 / 3)).more_labels
    assert everything is not None
    # Connor's formula by hand: (1.645 * sqrt(.27) + .842 * sqrt(.27 - .07^2))^2 / .07^2 = 337 rows, 237 more.
    assert everything == pytest.approx(238, abs=3)
    assert third == pytest.approx(3 * everything, abs=3)


def test_numbers_that_are_not_sound_are_refused_however_good_they_look() -> None:
    decision = decide(BETTER, SAME, faults=("the graph's embedding are not finite on every row",))
    assert decision.outcome == "refuse"
    assert "not finite" in decision.why


def test_mcnemar_is_the_exact_binomial_tail() -> None:
    assert mcnemar(0, 5) == pytest.approx(1 / 32)
    assert mcnemar(1, 4) == pytest.approx(6 / 32)
    assert mcnemar(0, 0) == 1.0
    assert fewest_rows(0.05) == 5
    assert smallest_p(5) <= 0.05 < smallest_p(4)
    assert fewest_rows(0.25) == 2


def test_classes_are_compared_by_name_not_by_position() -> None:
    fresh = PairedAnswers(("cat",) * 12, ("dog",) * 12, ("cat",) * 12)
    assert decide(fresh, SAME).outcome == "pass"


def test_with_changed_classes_an_empty_old_slice_is_no_obstacle_but_guessing_is() -> None:
    labels = ("a",) * 30 + ("b",) * 30
    swapped = PairedAnswers(labels, ("b",) * 30 + ("a",) * 30, labels)
    assert decide(swapped, NOTHING, changed=(MEANING,)).outcome == "pass"

    # The champion's meanings are void; a challenger that always says the commonest label is no better than guessing.
    skewed = ("a",) * 50 + ("b",) * 10
    champion = ("b",) * 40 + ("a",) * 20
    guessing = PairedAnswers(skewed, champion, ("a",) * 60)
    decision = decide(guessing, NOTHING, changed=(MEANING,))
    assert decision.outcome == "refuse"
    assert [rule.name for rule in decision.rules if not rule.passed] == ["informed"]
    assert "with the labels shuffled" in decision.why


def of_class(label: str, rows: int, champion: int, challenger: int) -> PairedAnswers:
    """`rows` images of one class, of which each model knows the first so many."""
    said = [tuple(label if at < right else "other" for at in range(rows)) for right in (champion, challenger)]
    return PairedAnswers((label,) * rows, *said)


def joined(*slices: PairedAnswers) -> PairedAnswers:
    return PairedAnswers(
        *(tuple(each for one in slices for each in getattr(one, name)) for name in ("labels", "champion", "challenger"))
    )


@pytest.mark.parametrize(
    ("lost", "broken"),
    [
        pytest.param(of_class("rare", 40, 38, 20), True, id="a class of 40 loses half"),
        pytest.param(of_class("rare", 8, 8, 0), True, id="a class of 8 is forgotten"),
        pytest.param(of_class("rare", 4, 4, 0), False, id="of 4 rows even all could be chance"),
        pytest.param(of_class("rare", 40, 38, 35), False, id="less than the margin"),
        pytest.param(of_class("rare", 40, 20, 38), False, id="a class gains"),
    ],
)
@pytest.mark.parametrize("slice_name", ["fresh", "old"])
def test_no_class_may_be_forgotten_for_the_sake_of_the_others(
    lost: PairedAnswers, broken: bool, slice_name: str
) -> None:
    # So many others that neither the fresh difference nor the old margin would tell.
    fresh, old = answers(200, 5, 90, 20), answers(1900, 0, 0, 100)
    decision = decide(joined(fresh, lost), old) if slice_name == "fresh" else decide(fresh, joined(old, lost))
    assert decision.outcome == ("refuse" if broken else "pass")
    assert [rule.name for rule in decision.rules if not rule.passed] == (["kept_each_class"] if broken else [])
    document = decision.document()["classes"]["rare"]
    right = sum(label == said for label, said in zip(lost.labels, lost.champion, strict=True))
    assert (document["rows"], document["champion"]) == (len(lost), right)
    if broken:
        assert f"of {len(lost)} images of rare the champion knows {right}" in decision.why


def sure(slice_: PairedAnswers, champion: float, challenger: float) -> PairedAnswers:
    rows = len(slice_)
    return replace(slice_, champion_confidence=(champion,) * rows, challenger_confidence=(challenger,) * rows)


def test_a_challenger_that_is_far_too_sure_of_itself_is_refused() -> None:
    better = answers(60, 5, 25, 10)  # 65 % and 85 % right
    assert decide(sure(better, 0.65, 0.85), SAME).outcome == "pass"
    assert decide(sure(better, 0.65, 0.89), SAME).outcome == "pass", "four points are within the margin"
    decision = decide(sure(better, 0.65, 0.99), SAME)
    assert [rule.name for rule in decision.rules if not rule.passed] == ["calibrated"]
    assert decision.calibration is not None
    assert decision.calibration.challenger == pytest.approx(0.14)
    assert decision.calibration.champion == pytest.approx(0.0, abs=1e-9)
    document = json.loads(json.dumps(decision.document()))["calibration"]
    assert document["difference"]["value"] == pytest.approx(0.14)
    assert document["difference"]["low"] > 0
    assert decide(sure(better, 0.99, 0.99), SAME).outcome == "pass", "the champion was worse still"


@pytest.mark.parametrize(
    ("costs", "broken"),
    [
        pytest.param(Costs(10.0, 14.0, 4_000_000, 4_000_000), [], id="a little slower"),
        pytest.param(Costs(1.0, 10.0, 4_000_000, 4_000_000), [], id="ten times as slow, and still quick"),
        pytest.param(Costs(20.0, 31.0, 4_000_000, 4_000_000), ["quick_enough"], id="too slow"),
        pytest.param(Costs(10.0, 10.0, 1_000, 40_000_000), [], id="larger, and still small"),
        pytest.param(Costs(10.0, 10.0, 40_000_000, 90_000_000), ["small_enough"], id="too large"),
    ],
)
def test_a_challenger_has_to_be_affordable(costs: Costs, broken: list[str]) -> None:
    decision = decide(BETTER, SAME, costs=costs)
    assert [rule.name for rule in decision.rules if not rule.passed] == broken
    assert decision.document()["costs"]["challenger_bytes"] == costs.challenger_bytes


CLASSES = tuple("abcdefg")


def simulated(
    generator: np.random.Generator,
    rows: int,
    accuracy: float,
    difference: float,
    disagreement: float = 0.1,
    *,
    calibrated: bool = False,
) -> PairedAnswers:
    """Two models of known true accuracy that disagree about so many rows, as a model and its retrain do about one of
    ten; seven classes."""
    won, lost = (disagreement + difference) / 2, (disagreement - difference) / 2
    kinds = generator.choice(4, size=rows, p=[accuracy - lost, lost, won, 1 - accuracy - won])
    labels = generator.integers(len(CLASSES), size=rows)
    wrong = (labels + generator.integers(1, len(CLASSES), size=rows)) % len(CLASSES)
    sides = []
    for right in (np.isin(kinds, (0, 1)), np.isin(kinds, (0, 2))):
        sides.append(tuple(CLASSES[index] for index in np.where(right, labels, wrong)))
    truth = accuracy, accuracy + difference
    confidences = (tuple(generator.beta(20 * each, 20 * (1 - each), rows).tolist()) for each in truth if calibrated)
    return PairedAnswers(tuple(CLASSES[index] for index in labels), sides[0], sides[1], *confidences)


@pytest.mark.parametrize("disagreement", [0.06, 0.1])
@pytest.mark.parametrize(("difference", "least", "most"), [(-0.02, 0.0, 0.01), (0.0, 0.0, 0.06), (0.05, 0.8, 1.0)])
def test_over_simulated_challengers_worse_ones_hardly_pass_and_better_ones_mostly_do(
    difference: float, least: float, most: float, disagreement: float
) -> None:
    generator = np.random.default_rng(7)
    # 300 labels judged on, and as many old rows, of which both know as many: they differ by chance there.
    outcomes = [
        decide(
            simulated(generator, 300, 0.8, difference, disagreement), simulated(generator, 300, 0.95, 0.0, 0.02)
        ).outcome
        for _ in range(400)
    ]
    assert least <= outcomes.count("pass") / len(outcomes) <= most


def test_a_better_challenger_that_is_as_well_calibrated_is_hardly_ever_refused_for_that() -> None:
    generator = np.random.default_rng(7)
    decisions = [decide(simulated(generator, 300, 0.8, 0.05, calibrated=True), SAME) for _ in range(100)]
    assert all(decision.calibration is not None for decision in decisions)
    refused = [
        rule for decision in decisions for rule in decision.rules if rule.name == "calibrated" and not rule.passed
    ]
    assert len(refused) <= 3


# --- which classes changed their meaning -----------------------------------------------------------------


def perfect(*classes: str, rows: int = 40) -> dict[str, ClassMetrics]:
    estimate = accuracy_interval(rows - 1, rows)
    return {name: ClassMetrics(precision=estimate, recall=estimate, support=rows) for name in classes}


def test_two_swapped_classes_are_found_and_the_third_is_left_alone() -> None:
    fresh = [("3", "8")] * 12 + [("8", "3")] * 12 + [("5", "5")] * 12
    found = changed_classes(fresh, perfect("3", "5", "8"), alpha=ALPHA)
    assert [(change.label, change.now, change.rows, change.kept) for change in found] == [
        ("3", "8", 12, 0),
        ("8", "3", 12, 0),
    ]
    assert all(change.p_value < 1e-9 and change.recall == 0.0 for change in found)


def test_a_class_that_another_one_joined_still_means_what_it_did() -> None:
    fresh = [("3", "8")] * 12 + [("8", "8")] * 12 + [("5", "5")] * 12
    assert [change.label for change in changed_classes(fresh, perfect("3", "5", "8"), alpha=ALPHA)] == ["3"]


def test_labels_at_random_are_no_new_meaning() -> None:
    generator = np.random.default_rng(1)
    names = [str(digit) for digit in range(10)]
    for _ in range(20):
        fresh = [(str(generator.choice(names)), str(generator.choice(names))) for _ in range(200)]
        assert changed_classes(fresh, perfect(*names), alpha=ALPHA) == ()


def test_a_few_wrong_labels_are_no_new_meaning() -> None:
    fresh = [("3", "3")] * 9 + [("3", "8")] * 3 + [("8", "8")] * 12
    assert changed_classes(fresh, perfect("3", "8"), alpha=ALPHA) == ()
    assert changed_classes([("3", "8")], perfect("3", "8", rows=5), alpha=ALPHA) == ()


def test_a_champion_that_never_knew_a_class_cannot_tell_that_it_changed() -> None:
    poor = {
        "3": ClassMetrics(precision=Estimate(value=0.2, low=0.1, high=0.3), recall=accuracy_interval(1, 5), support=5)
    }
    assert changed_classes([("3", "8")] * 20, poor, alpha=ALPHA) == ()


def check(verdict: str) -> CheckRow:
    return CheckRow(1, datetime.now(UTC), "default", "v", {}, verdict, {}, None)


def asked(verdict: str) -> Event:
    return Event(1, datetime.now(UTC), "default", EventKind.RETRAIN_REQUESTED, {"verdict": verdict}, None)


@pytest.mark.parametrize(
    ("request_event", "latest", "unchanged"),
    [
        pytest.param(asked("concept_drift"), None, True, id="the request says so"),
        pytest.param(None, check("concept_drift"), True, id="the check says so"),
        pytest.param(None, check("ok"), True, id="nothing differs"),
        pytest.param(None, check("data_drift"), False, id="the inputs differ"),
        pytest.param(asked("data_drift"), check("sensor_shift"), False, id="the camera differs"),
        pytest.param(None, check("insufficient_data"), False, id="nothing was tested"),
        pytest.param(None, None, False, id="nobody looked"),
    ],
)
def test_a_class_can_only_have_changed_where_the_inputs_have_not(
    request_event: Event | None, latest: CheckRow | None, unchanged: bool
) -> None:
    assert inputs_unchanged(request_event, latest) is unchanged
