"""How far off were past estimates of accuracy? Asked again whenever labels arrive, for they come late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import sqlalchemy as sa

from perennial import ledger
from perennial.ledger.checks import Estimate

#: Past windows that are looked at, and checks among which they are looked for.
MOST_WINDOWS: Final = 20
_CHECKS: Final = 300


@dataclass(frozen=True, slots=True)
class Backtest:
    """Over `windows` without rows in common: the mean distance between estimate and labels, and the largest."""

    windows: int
    error: float
    worst: float


def backtest(engine: sa.Engine, name: str, version: str, least_labels: int) -> Backtest | None:
    """Estimates that earlier checks of a version made, against the labels that their windows have by now; None where no
    window has `least_labels`."""
    distances = []
    for window, estimate in _apart(ledger.checks.estimates(engine, name, version, _CHECKS)):
        answers = ledger.predictions.labelled_answers_between(engine, version, window["first"], window["last"])
        if len(answers) >= least_labels:
            truth = np.mean([answer.answered == answer.true_label for answer in answers])
            distances.append(abs(estimate - float(truth)))
        if len(distances) == MOST_WINDOWS:
            break
    if not distances:
        return None
    return Backtest(len(distances), float(np.mean(distances)), float(np.max(distances)))


def _apart(latest_first: Sequence[Estimate]) -> list[Estimate]:
    """Those of windows that share no rows."""
    found: list[Estimate] = []
    for window, estimate in latest_first:
        if None in (window.get("first"), window.get("last")):
            continue
        if not found or window["last"] < found[-1][0]["first"]:
            found.append((window, estimate))
    return found
