"""What a retrain works with, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import sqlalchemy as sa

from perennial.bundle import Bundle
from perennial.images import ImageLimits
from perennial.ledger.events import Event
from perennial.ledger.leases import Lease
from perennial.progress import Progress
from perennial.settings import Settings
from perennial.storage import Storage

if TYPE_CHECKING:
    from training.candidates import Choice
    from training.datasets import Skipped
    from training.gate import GateDecision

Outcome = Literal["promoted", "rolling_out", "refused", "waiting", "nothing_to_do"]

_EXIT_CODES: Final[dict[Outcome, int]] = {
    "promoted": 0,
    "rolling_out": 0,
    "refused": 11,
    "waiting": 4,
    "nothing_to_do": 4,
}


@dataclass(frozen=True, slots=True)
class RetrainResult:
    """How a retrain ended. `version` is the challenger's (None if none was trained), `champion` the live model's
    before it; `labels` counts the fresh labelled captures; `new_classes` those that the champion does not know, each
    with its labelled captures; `seconds` is wall time."""

    outcome: Outcome
    name: str
    champion: str
    version: str | None
    why: str
    labels: int = 0
    new_classes: Mapping[str, int] | None = None
    gate: GateDecision | None = None
    candidates: Choice | None = None
    left_out: Mapping[str, int] | None = None
    skipped: tuple[Skipped, ...] = ()
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        return _EXIT_CODES[self.outcome]

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "outcome": self.outcome,
            "name": self.name,
            "champion": self.champion,
            "version": self.version,
            "why": self.why,
            "labels": self.labels,
            "new_classes": dict(self.new_classes or {}),
            "gate": self.gate.document() if self.gate else None,
            "candidates": self.candidates.document() if self.candidates else None,
            "left_out": dict(self.left_out or {}),
            "skipped": [asdict(skip) for skip in self.skipped],
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True, slots=True)
class Run:
    """What one retrain works with. `request` is None where a person asks: it is written once the retrain starts."""

    engine: sa.Engine
    settings: Settings
    storage: Storage
    limits: ImageLimits
    champion: Bundle
    lease: Lease
    request: Event | None
    by_hand: bool
    why: str
    actor: str
    progress: Progress
