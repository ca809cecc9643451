"""From the verdicts of one window after another to an alarm that one can believe: opened late, closed late.

One window may alarm by chance. Of windows that share no rows, `open_after` of the latest `open_of` have to alarm before
drift is said to be there, and `close_after` in a row have to be clean before it is said to be over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

import numpy as np

from monitoring.verdict import CALM, Verdict


class State(StrEnum):
    """Of a model, as its windows have it."""

    HEALTHY = "healthy"
    SUSPECTED = "suspected"
    DRIFTING = "drifting"


@dataclass(frozen=True, slots=True)
class FalseAlarms:
    """What chance alone does on clean traffic: a window alarms with at most `rate`, and drift is opened once in
    `windows` windows or more, in `seconds` at the pace of the latest one."""

    rate: float
    windows: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Looked:
    """A window that was checked: its verdict, and the ids of its first and last prediction (they sort by time)."""

    verdict: Verdict
    first: str | None
    last: str | None


@dataclass(frozen=True, slots=True)
class Persistence:
    """`open_after` of `open_of` windows open, `close_after` clean ones close."""

    open_after: int = 2
    open_of: int = 3
    close_after: int = 3

    @property
    def looks_at(self) -> int:
        """So many windows say all."""
        return max(self.open_of, self.close_after)

    def opens(self, verdicts: Sequence[Verdict]) -> bool:
        """`verdicts` are of windows without rows in common, the latest first. A window that is clean opens nothing."""
        latest = [verdict not in CALM for verdict in verdicts[: self.open_of]]
        return latest[:1] == [True] and sum(latest) >= self.open_after

    def closes(self, verdicts: Sequence[Verdict]) -> bool:
        latest = verdicts[: self.close_after]
        return len(latest) == self.close_after and all(verdict is Verdict.OK for verdict in latest)

    def state(self, verdicts: Sequence[Verdict], *, is_open: bool) -> State:
        if is_open or self.opens(verdicts):
            return State.DRIFTING
        suspicious = any(verdict not in CALM for verdict in verdicts[: self.open_of])
        return State.SUSPECTED if suspicious else State.HEALTHY

    def windows_between_false_alarms(self, rate: float) -> float:
        """How many clean windows without rows in common pass, in the mean, until they open an alarm, if each alarms by
        chance with this rate. The states of the chain are the last `open_of` - 1 outcomes; infinite where the rate
        is 0."""
        if rate <= 0:
            return float("inf")
        states = list(product((0, 1), repeat=self.open_of - 1))
        place = {state: at for at, state in enumerate(states)}
        stays = np.zeros((len(states), len(states)))
        for state in states:
            for outcome, chance in ((0, 1 - rate), (1, rate)):
                if sum(state) + outcome < self.open_after:
                    stays[place[state], place[(*state, outcome)[1:]]] += chance
        expected = np.linalg.solve(np.eye(len(states)) - stays, np.ones(len(states)))
        return float(expected[place[(0,) * (self.open_of - 1)]])


def without_rows_in_common(latest_first: Sequence[Looked]) -> list[Verdict]:
    """The verdicts of windows that share no row, the latest first. Windows in which there was too little to test say
    nothing, and are passed over."""
    found: list[Verdict] = []
    before: str | None = None
    for window in latest_first:
        if window.verdict is Verdict.INSUFFICIENT_DATA or window.first is None or window.last is None:
            continue
        if before is None or window.last < before:
            found.append(window.verdict)
            before = window.first
    return found
