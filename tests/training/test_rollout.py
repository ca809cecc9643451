"""Going live in stages: what stops a challenger, what moves it on, and what the ledger says of it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.random import Generator

from perennial.errors import InvalidParameter, NothingToDo, Overtaken
from perennial.ids import first_id, new_id
from perennial.ledger import EventKind, events, labels, predictions, rollouts, shadow_answers
from perennial.ledger.labels import Feedback
from perennial.ledger.predictions import Prediction
from perennial.ledger.rollouts import Rollout, Stage
from perennial.ledger.shadow_answers import ShadowAnswer
from perennial.settings import load_settings
from perennial.settings_sections import RetrainSettings, RolloutSettings
from tests.training.retrain_world import World, truth
from training import captures as labelled_captures
from training import rollout as rolling
from training.promote import promote
from training.retrain import retrain
from training.rollout import decide
from training.rollout_evidence import RolloutEvidence, Tally, paired, read

SETTINGS = RolloutSettings(stages=["shadow", 0.1], rows=100)
ENOUGH = RolloutEvidence(answers=100, worse=Tally(3, 4), differs=Tally(10, 90), may_differ=0.3, unsure=Tally(20, 80))


# --- the decision ----------------------------------------------------------------------------------------


def test_a_stage_ends_well_with_its_rows_and_nothing_against_it() -> None:
    assert decide(ENOUGH, SETTINGS).action == "advance"
    assert decide(replace(ENOUGH, answers=99), SETTINGS).action == "wait"
    assert "99 of 100 images" in decide(replace(ENOUGH, answers=99), SETTINGS).why
    for_labels = SETTINGS.model_copy(update={"labels": 50})
    assert decide(replace(ENOUGH, labelled=49), for_labels).action == "wait"
    assert decide(replace(ENOUGH, labelled=50), for_labels).action == "advance"
    shown_better = decide(replace(ENOUGH, labelled=30, worse=Tally(0, 30)), for_labels)
    assert (shown_better.action, "better beyond chance" in shown_better.why) == ("advance", True)
    too_long = decide(replace(ENOUGH, answers=99, seconds=604_801), SETTINGS)
    assert (too_long.action, "too little evidence" in too_long.why) == ("stop", True)


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("works", replace(ENOUGH, faults=("Traceback: it broke",))),
        ("no_worse", replace(ENOUGH, worse=Tally(20, 2))),
        ("as_sure", replace(ENOUGH, unsure=Tally(80, 20), champion_unsure=Tally(20, 80))),
        ("agrees", replace(ENOUGH, differs=Tally(60, 40))),
        ("quick", replace(ENOUGH, slower=Tally(95, 5))),
    ],
)
def test_each_rule_stops_it_and_says_why(rule: str, found: RolloutEvidence) -> None:
    decision = decide(found, SETTINGS)
    assert decision.action == "stop"
    assert [each.name for each in decision.rules if not each.passed] == [rule]
    assert decision.why == next(each.why for each in decision.rules if each.name == rule)
    json.dumps(decision.document())


def test_images_that_make_both_unsure_do_not_stop_it() -> None:
    found = replace(ENOUGH, unsure=Tally(80, 20), champion_unsure=Tally(80, 20))
    assert decide(found, SETTINGS).action == "advance"


def test_an_equal_challenger_is_stopped_no_more_often_than_it_says_and_a_worse_one_is_stopped() -> None:
    random = np.random.default_rng(0)
    settings = SETTINGS.model_copy(update={"alpha": 0.1, "rows": 10_000})

    def stopped(champion: float, challenger: float, differ: float, unsure: float) -> float:
        """How often it is ever stopped, looked at again after every 5 images of 250."""
        return float(
            np.mean([_is_ever_stopped(random, settings, champion, challenger, differ, unsure) for _ in range(150)])
        )

    # At the very edge of every rule at once: as accurate, as often different and as often unsure as it just may be.
    assert stopped(0.8, 0.8, 0.3, 0.5) <= 0.1 + 2 * np.sqrt(0.1 * 0.9 / 150)
    assert stopped(0.85, 0.6, 0.1, 0.3) > 0.9
    assert stopped(0.8, 0.8, 0.6, 0.3) > 0.9
    assert stopped(0.8, 0.8, 0.1, 0.8) > 0.9


def _is_ever_stopped(
    random: Generator, settings: RolloutSettings, champion: float, challenger: float, differ: float, unsure: float
) -> bool:
    rows = 250
    right, other = random.random(rows) < champion, random.random(rows) < challenger
    lost, won = (right & ~other).cumsum(), (~right & other).cumsum()
    different, doubtful = (random.random(rows) < differ).cumsum(), (random.random(rows) < unsure).cumsum()
    return any(
        decide(
            RolloutEvidence(
                answers=at + 1,
                worse=Tally(int(lost[at]), int(won[at])),
                differs=Tally(int(different[at]), at + 1 - int(different[at])),
                unsure=Tally(int(doubtful[at]), at + 1 - int(doubtful[at])),
                may_differ=0.3,
            ),
            settings,
        ).action
        == "stop"
        for at in range(4, rows, 5)
    )


def test_pairs_are_of_neighbours_and_more_rows_only_add_to_them() -> None:
    random = np.random.default_rng(1)
    rows = [(bool(random.random() < 0.2), number) for number in range(400)]
    before: list[tuple[int, int]] = []
    for count in range(0, 401, 50):
        pairs = list(paired(rows[:count]))
        assert pairs[: len(before)] == before
        before = pairs
    assert len(before) == sum(is_challenger for is_challenger, _ in rows)
    assert len({one for pair in before for one in pair}) == 2 * len(before)
    assert np.mean([abs(one - other) for one, other in before]) < 5


# --- the ledger ------------------------------------------------------------------------------------------

NUMBERS = itertools.count()
OLD, NEW = "20260101-000000-00000", "20260102-000000-00000"


def start(engine: sa.Engine, *stages: Stage, may_differ: float | None = 0.3) -> Rollout:
    """A rollout of two versions whose bundles nobody needs here."""
    stick = {"champion_unsure_below": 0.5, "challenger_unsure_below": 0.9, "may_differ": may_differ}
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO deployments (at, name, version, reason, actor, event_id) "
                f"VALUES ('2026-01-01 00:00:00', 'default', '{OLD}', 'first', 'test', 0)"
            )
        )
    return rollouts.start(
        engine,
        "default",
        champion=OLD,
        challenger=NEW,
        stages=stages,
        reason="a test",
        actor="test",
        detail={"yardstick": stick},
    )


def answer(version: str, digest: int, label: str, *, confidence: float = 0.95, latency_ms: float = 3.0) -> Prediction:
    vector = np.array([0.5, 0.5], dtype=np.float32)
    return Prediction(
        id=new_id(time.time_ns() // 1_000_000 + next(NUMBERS)),  # in this order, however many in a millisecond
        at=datetime.now(UTC),
        model_version=version,
        precision="float32",
        label=label,
        confidence=confidence,
        probabilities=vector,
        embedding=vector,
        properties=vector,
        width=4,
        height=4,
        format="PNG",
        mode="RGB",
        bytes=100,
        image_digest=f"{digest:064x}",
        image_url=None,
        source=None,
        latency_ms=latency_ms,
    )


def evidence_on(engine: sa.Engine, rollout: Rollout) -> RolloutEvidence:
    return read(engine, rollout, RetrainSettings(), now=datetime.now(UTC))


def test_a_shadow_is_compared_image_by_image(engine: sa.Engine) -> None:
    rollout = start(engine, "shadow", 0.5)
    rows = [answer(OLD, number % 30, "disc", confidence=0.4) for number in range(40)]  # ten images came twice
    predictions.record(engine, rows)
    shadow_answers.record(
        engine,
        [
            ShadowAnswer(
                row.id, NEW, row.at, ("disc", "square")[number % 2], 0.95 if number % 3 else 0.8, 50.0, 10.0 + number
            )
            for number, row in enumerate(rows)
        ],
    )
    labels.add(engine, [Feedback(row.id, "disc") for row in rows[:8]] + [Feedback(rows[8].id, "square")])
    found = evidence_on(engine, rollout)
    assert (found.answers, found.labelled) == (30, 9)
    assert found.worse == Tally(4, 0)  # of the ninth, both are wrong
    assert found.differs == Tally(15, 15)
    assert found.unsure == Tally(10, 20)
    assert found.champion_unsure == Tally(30, 0)
    assert found.slower == Tally(24, 6)  # 50 ms against 1.5 times 10 + number
    assert found.faults == ()
    shadow_answers.record(engine, [ShadowAnswer(answer(OLD, 99, "disc").id, NEW, datetime.now(UTC), fault="lost")])
    assert evidence_on(engine, rollout).faults == ()  # its prediction has not arrived


def test_a_canary_is_compared_with_what_the_champion_answered_meanwhile(engine: sa.Engine) -> None:
    rollout = start(engine, "shadow", 0.5)
    early = new_id(time.time_ns() // 1_000_000 - 5)
    predictions.record(engine, [replace(answer(NEW, 5000, "disc"), id=early)])
    rollout = rollouts.advance(engine, rollout, why="fine", actor="test", detail={})
    rows = [answer((OLD, NEW)[number % 2], number, "disc", latency_ms=(10.0, 90.0)[number % 2]) for number in range(60)]
    rows.append(replace(rows[1], id=answer(NEW, 0, "").id))  # an image that came again
    predictions.record(engine, rows)
    for number in range(0, 40):  # of the challenger's every second answer is wrong
        wrong = number % 4 == 1
        labels.add(engine, [Feedback(rows[number].id, "square" if wrong else "disc")])
    found = evidence_on(engine, rollout)
    assert (found.answers, found.labelled) == (30, 20)
    assert found.worse == Tally(10, 0)
    assert found.slower == Tally(30, 0)
    assert decide(found, SETTINGS).action == "stop"
    before = predictions.answers_between(engine, NEW, first_id(rollout.at), None, limit=100)
    assert len(before) == 31  # what came before the stage is not in it


# --- going live ------------------------------------------------------------------------------------------


@pytest.fixture
def staged(world: World) -> World:
    chosen = world.settings.model_dump() | {"rollout": {"stages": ["shadow", 0.25], "rows": 20}}
    world.settings = type(world.settings).model_validate(chosen)
    return world


def test_a_challenger_goes_through_its_stages_is_stopped_and_goes_live_the_second_time(staged: World) -> None:
    world = staged
    world.serve(120, inverted=True, relabel=truth)
    requested = world.request()
    result = world.retrain()
    assert (result.outcome, result.exit_code) == ("rolling_out", 0), result.why
    assert "25 % of the traffic, then all" in result.why
    assert world.live == world.champion.manifest.version
    assert result.version is not None

    # No other retrain meanwhile, by hand neither; and nothing else is promoted in stages.
    again = retrain(world.engine, world.settings, if_due=False)
    assert (again.outcome, "is being rolled out" in again.why) == ("nothing_to_do", True)
    with pytest.raises(Overtaken, match="rollout stop"):
        promote(world.engine, world.settings, result.version, actor="test")
    with pytest.raises(InvalidParameter):
        rolling.step(world.engine, world.settings, actor="test", force=True)

    assert rolling.step(world.engine, world.settings, actor="test").outcome == "waiting"
    show(world, result.version)
    moved = rolling.step(world.engine, world.settings, actor="test")
    assert (moved.outcome, moved.exit_code) == ("advanced", 0), moved.why

    # A quarter of the traffic is its own, and people say that its answers there are wrong.
    rows, canary = world.serve(40), canary_of(world, result.version, 40)
    wrong = {"red": "green", "green": "blue", "blue": "red"}
    labels.add(world.engine, [Feedback(row.id, row.label) for row in rows])
    labels.add(world.engine, [Feedback(row.id, wrong[row.label]) for row in canary])
    done = rolling.step(world.engine, world.settings, actor="test")
    assert (done.outcome, done.exit_code) == ("stopped", 11)
    assert "the champion is better beyond chance" in done.why
    assert done.decision.evidence.worse == Tally(40, 0)
    assert world.live == world.champion.manifest.version
    assert retrain(world.engine, world.settings, if_due=True).outcome == "nothing_to_do"  # the request is answered
    kinds = ["retrain_started", "gate_passed", "rollout_started", "rollout_advanced", "rollout_stopped"]
    trail = events.after(world.engine, "default", requested)
    assert [event.kind for event in trail] == kinds
    assert [event.caused_by for event in trail] == [requested, *(event.id for event in trail[:-1])]
    yardstick = trail[2].detail["yardstick"]
    assert 0 < yardstick["challenger_unsure_below"] < 1
    assert trail[1].detail["gate"]["fresh"]["differ"] > 0
    assert yardstick["may_differ"] > 0.1

    # By hand it begins anew, and what was said of the first time does not count.
    by_hand = promote(world.engine, world.settings, result.version, reason="they were mistaken", actor="test")
    assert (by_hand.outcome, by_hand.exit_code) == ("rolling_out", 0), by_hand.why
    assert rolling.look(world.engine, world.settings)[1].evidence.worse == Tally(0, 0)
    show(world, result.version)
    assert rolling.step(world.engine, world.settings, actor="test").outcome == "advanced"
    rows = canary_of(world, result.version, 25)
    done = rolling.step(world.engine, world.settings, actor="test")
    assert done.outcome == "promoted", done.why
    assert world.live == result.version
    with pytest.raises(NothingToDo):
        rolling.look(world.engine, world.settings)
    deployed = events.last(world.engine, "default", [EventKind.DEPLOYED])
    assert deployed is not None
    assert deployed.detail["replaces"] == world.champion.manifest.version

    # What it answered before it was live can be learnt from, as captures of the version that is live now.
    labels.add(world.engine, [Feedback(row.id, "red") for row in rows])
    found = labelled_captures.find(
        world.engine, "default", result.version, window=25, classes=world.champion.manifest.classes
    )
    assert {capture.version for capture in found.fresh} == {result.version}
    assert {row.image_digest for row in rows} == {capture.digest for capture in found.fresh}


def show(world: World, version: str) -> None:
    """It answers 25 images in the shadow, as the champion does."""
    rows = world.serve(25, inverted=True)
    shadow_answers.record(
        world.engine, [ShadowAnswer(row.id, version, row.at, row.label, 0.99, 1.0, 1.0) for row in rows]
    )


def canary_of(world: World, version: str, count: int) -> list[Prediction]:
    """It answers so many images, as the champion would."""
    rows = [replace(row, id=new_id(), model_version=version, confidence=0.99) for row in world.serve(count)]
    predictions.record(world.engine, rows)
    return rows


def test_to_look_at_a_rollout_takes_no_network() -> None:
    program = "import sys, training.rollout; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout == "False\n"


def test_without_stages_nothing_changes() -> None:
    assert load_settings().rollout.stages == []
