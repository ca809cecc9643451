"""How a rollout begins: a challenger that has passed the gate, and what it will be held to."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

import pyarrow.parquet as pq
import sqlalchemy as sa

from perennial.bundle import REFERENCE, Bundle
from perennial.event_wording import stage_title
from perennial.ledger import events, rollouts
from perennial.settings import Settings
from training.evaluate import accuracy_interval
from training.gate import GateDecision
from training.rollout_evidence import Yardstick

_QUARTER: Final = 0.25
#: How much more often than at the gate they may say different things.
_MORE_DIFFERENT: Final = 0.1
#: How much less sure than that quarter an answer must be: of a model that is always sure, a hair's breadth is nothing.
_LESS_SURE: Final = 0.1
_MOST_ALLOWED: Final = 0.95


def begin(
    engine: sa.Engine,
    settings: Settings,
    champion: Bundle,
    challenger: Bundle,
    gate: GateDecision,
    *,
    reason: str,
    actor: str,
    caused_by: int,
    guard: events.Guard | None = None,
) -> str:
    """Begin with the first of `rollout.stages`; returns what was begun, in words.

    Raises:
        Overtaken: another version went live meanwhile, or another challenger is being rolled out.
        LeaseLost: what `guard` says.
    """
    rollout = rollouts.start(
        engine,
        settings.name,
        champion=champion.manifest.version,
        challenger=challenger.manifest.version,
        stages=settings.rollout.stages,
        reason=reason,
        actor=actor,
        detail={
            "digest": challenger.digest,
            "champion_digest": champion.digest,
            "yardstick": asdict(yardstick(champion, challenger, gate)),
        },
        caused_by=caused_by,
        guard=guard,
    )
    return f"it goes live in stages: {', '.join(map(stage_title, rollout.stages))}, then all"


def yardstick(champion: Bundle, challenger: Bundle, gate: GateDecision) -> Yardstick:
    """What the two bundles and the gate's fresh rows say of how both should do on the traffic."""
    may_differ = None
    if gate.fresh is not None:
        most = accuracy_interval(gate.fresh.differ, gate.fresh.rows).high
        may_differ = min(_MOST_ALLOWED, most + _MORE_DIFFERENT)
    return Yardstick(_unsure_below(champion), _unsure_below(challenger), may_differ)


def _unsure_below(bundle: Bundle) -> float | None:
    if REFERENCE not in bundle.manifest.files:
        return None
    confidence = pq.read_table(bundle.reference, columns=["confidence"]).column(0).to_numpy()
    ranked = sorted(float(value) for value in confidence)
    return max(0.0, ranked[int(_QUARTER * len(ranked))] - _LESS_SURE) if ranked else None
