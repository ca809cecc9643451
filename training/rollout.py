"""Going live in stages: a challenger that passed the gate is shown to the traffic, and goes on or is stopped.

What stops it are tests that may be looked at as often as one likes (`training.sequential`); together they stop one that
is no worse in at most `rollout.alpha` of the rollouts, over all stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import sqlalchemy as sa

from perennial.errors import InvalidParameter, NothingToDo
from perennial.ledger import deployments, rollouts
from perennial.ledger.rollouts import Rollout
from perennial.settings import Settings
from perennial.settings_sections import RolloutSettings
from training.rollout_evidence import RolloutEvidence, Tally, read
from training.rule import Rule
from training.sequential import evidence

Action = Literal["advance", "stop", "wait"]
Outcome = Literal["advanced", "promoted", "stopped", "waiting"]

_EXIT_CODES: Final[dict[Outcome, int]] = {"advanced": 0, "promoted": 0, "stopped": 11, "waiting": 4}
#: Tests that may be wrong by chance, each with its part of `rollout.alpha`.
_TESTS: Final = 4


@dataclass(frozen=True, slots=True)
class RolloutDecision:
    """What is to be done and why, by which rules, on what evidence."""

    action: Action
    why: str
    rules: tuple[Rule, ...]
    evidence: RolloutEvidence

    def document(self) -> dict[str, Any]:
        """The decision with every number, as JSON."""
        return {
            "action": self.action,
            "why": self.why,
            "rules": [asdict(rule) for rule in self.rules],
            "evidence": self.evidence.document(),
        }


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """What was done. `rollout` is as it was before, `decision` what the evidence says; by hand it may be overruled."""

    outcome: Outcome
    why: str
    rollout: Rollout
    decision: RolloutDecision

    @property
    def exit_code(self) -> int:
        return _EXIT_CODES[self.outcome]

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {"outcome": self.outcome, "why": self.why, **_document(self.rollout, self.decision)}


def decide(found: RolloutEvidence, settings: RolloutSettings) -> RolloutDecision:
    """Go on, stop, or wait.

    Any broken rule stops it. It goes on once it has answered `rows` images in this stage and has as many labelled
    comparisons as are asked for (or is shown to be better before); if that takes longer than `patience`, it is stopped.
    """
    limit = _TESTS / settings.alpha
    rules = (
        _works(found),
        _no_worse(found, limit),
        _as_sure(found, limit),
        _agrees(found, limit),
        _quick(found, limit),
    )
    broken = [rule for rule in rules if not rule.passed]
    if broken:
        return RolloutDecision("stop", "; ".join(rule.why for rule in broken), rules, found)
    better = evidence(found.worse.no, found.worse.yes) >= limit
    missing = []
    if found.answers < settings.rows:
        missing.append(f"{found.answers} of {settings.rows} images answered")
    if found.labelled < settings.labels and not better:
        missing.append(f"{found.labelled} of {settings.labels} labelled comparisons")
    had = f"{found.answers} images answered, {found.labelled} labelled comparisons at this stage"
    if not missing:
        shown = "it is better beyond chance" if better else "nothing speaks against it"
        return RolloutDecision("advance", f"{had}, and {shown}", rules, found)
    lacks = " and ".join(missing)
    if found.seconds > settings.patience:
        why = f"too little evidence after {found.seconds:.0f} s (rollout.patience is {settings.patience:.0f}): {lacks}"
        return RolloutDecision("stop", why, rules, found)
    return RolloutDecision("wait", f"{lacks} at this stage so far", rules, found)


def look(engine: sa.Engine, settings: Settings) -> tuple[Rollout, RolloutDecision]:
    """The rollout that runs, and what its evidence calls for. Nothing is written.

    Raises:
        NothingToDo: none runs.
    """
    rollout = rollouts.running(engine, settings.name)
    if rollout is None:
        raise NothingToDo(f"no challenger of {settings.name} is being rolled out")
    return rollout, decide(read(engine, rollout, settings.retrain, now=datetime.now(UTC)), settings.rollout)


def step(engine: sa.Engine, settings: Settings, *, actor: str, force: bool = False, reason: str = "") -> RolloutResult:
    """Do what the evidence calls for: the next stage, all of the traffic, or the end of it.

    Args:
        force: go on whatever the evidence says; needs a reason.

    Raises:
        NothingToDo: none runs.
        InvalidParameter: `force` without a reason.
        Overtaken: it has moved on, or ended, meanwhile.
    """
    if force and not reason.strip():
        raise InvalidParameter("--force needs --reason: it is what the audit trail will say")
    rollout, decision = look(engine, settings)
    why = f"forced: {reason}" if force else decision.why
    said = {"decision": decision.document(), "forced": force}
    if decision.action == "wait" and not force:
        return RolloutResult("waiting", why, rollout, decision)
    if decision.action == "stop" and not force:
        rollouts.stop(engine, rollout, why=why, actor=actor, detail=said)
        return RolloutResult("stopped", why, rollout, decision)
    if not rollout.is_last:
        rollouts.advance(engine, rollout, why=why, actor=actor, detail=said)
        return RolloutResult("advanced", why, rollout, decision)
    deployments.deploy(
        engine,
        rollout.name,
        rollout.challenger,
        reason=why,
        actor=actor,
        detail={"rollout": rollout.started, **said},
        caused_by=rollout.event_id,
        replaces=rollout.champion,
    )
    return RolloutResult("promoted", why, rollout, decision)


def stop(engine: sa.Engine, settings: Settings, *, actor: str, reason: str) -> RolloutResult:
    """End it by hand: the champion answers everything again.

    Raises:
        NothingToDo: none runs.
        Overtaken: it has moved on, or ended, meanwhile.
    """
    rollout, decision = look(engine, settings)
    rollouts.stop(engine, rollout, why=reason, actor=actor, detail={"decision": decision.document()})
    return RolloutResult("stopped", reason, rollout, decision)


def status(engine: sa.Engine, settings: Settings) -> Mapping[str, Any]:
    """The rollout that runs and its evidence, as JSON.

    Raises:
        NothingToDo: none runs.
    """
    return _document(*look(engine, settings))


def _document(rollout: Rollout, decision: RolloutDecision) -> dict[str, Any]:
    return {
        "name": rollout.name,
        "version": rollout.challenger,
        "champion": rollout.champion,
        "stage": rollout.current,
        "stages": list(rollout.stages),
        "since": rollout.at.isoformat(),
        "started": rollout.started,
        "decision": decision.document(),
    }


def _works(found: RolloutEvidence) -> Rule:
    if found.faults:
        return Rule("works", False, f"it failed on {len(found.faults)} images: {found.faults[0].strip()[-200:]}")
    return Rule("works", True, "it failed on no image")


def _no_worse(found: RolloutEvidence, limit: float) -> Rule:
    worse = found.worse
    numbers = f"of the labelled comparisons the champion alone was right in {worse.yes}, it alone in {worse.no}"
    return _rule("no_worse", numbers, worse, limit, "the champion is better beyond chance")


def _as_sure(found: RolloutEvidence, limit: float) -> Rule:
    unsure, champion = found.unsure, found.champion_unsure
    numbers = (
        f"it is far less sure than three quarters of its reference rows on {_share(unsure)} of the images, the "
        f"champion on {_share(champion)}"
    )
    if champion.yes > champion.no:  # then it is the images
        return Rule("as_sure", True, numbers)
    return _rule("as_sure", numbers, unsure, limit, "more than half, beyond chance, as the champion is not")


def _agrees(found: RolloutEvidence, limit: float) -> Rule:
    if found.may_differ is None:
        return Rule("agrees", True, "there was nothing at the gate to compare its agreement with")
    numbers = f"it differs from the champion on {_share(found.differs)} of the images"
    more = f"more, beyond chance, than the {100 * found.may_differ:.0f} % that the gate's rows allow"
    return _rule("agrees", numbers, found.differs, limit, more, chance=found.may_differ)


def _quick(found: RolloutEvidence, limit: float) -> Rule:
    numbers = f"it took longer than retrain.slowdown and retrain.quick allow on {_share(found.slower)} of the images"
    return _rule("quick", numbers, found.slower, limit, "more than half, beyond chance")


def _rule(name: str, numbers: str, tally: Tally, limit: float, if_broken: str, *, chance: float = 0.5) -> Rule:
    if evidence(tally.yes, tally.no, chance) >= limit:
        return Rule(name, False, f"{numbers}: {if_broken}")
    return Rule(name, True, numbers)


def _share(tally: Tally) -> str:
    rows = tally.yes + tally.no
    return f"{tally.yes} of {rows}"
