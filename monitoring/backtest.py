"""How far off were past estimates of accuracy? Asked again whenever labels arrive, for they come late."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from monitoring.estimate import MOST_UNLIKE
from perennial import ledger

Json = dict[str, Any]

#: Past windows that are looked at, and checks among which they are looked for.
MOST_WINDOWS: Final = 20
_CHECKS: Final = 300
#: An estimate that is off by no more was good.
_GOOD: Final = 0.04
_CHANCE: Final = 0.02  # two windows alike are told from the reference about equally well


@dataclass(frozen=True, slots=True)
class Past:
    """What was estimated for a window and what its labels say by now; `unlike` is the share of it that was told from
    the reference (None in checks of before it was kept), `withheld` that the estimate was not shown."""

    estimated: float
    counted: float
    unlike: float | None
    withheld: bool

    @property
    def error(self) -> float:
        return abs(self.estimated - self.counted)


@dataclass(frozen=True, slots=True)
class Backtest:
    """Over `windows` without rows in common: the mean distance between estimate and labels, and the largest."""

    windows: int
    error: float
    worst: float


def labelled_since(
    engine: sa.Engine, name: str, version: str, least_labels: int, *, new: Collection[str] = ()
) -> list[Past]:
    """Windows of earlier checks of a version that have `least_labels` by now, latest first; labels that are among
    `new` count though they are no class of it."""
    found: list[Past] = []
    for window, accuracy in _apart(ledger.checks.accuracies(engine, name, version, _CHECKS)):
        first, last = window["first"], window["last"]
        answers = ledger.predictions.labelled_answers_between(engine, version, first, last, new=new)
        if len(answers) >= least_labels:
            found.append(
                Past(
                    float(_made(accuracy)["value"]),
                    float(np.mean([answer.answered == answer.true_label for answer in answers])),
                    accuracy.get("unlike"),
                    bool(accuracy.get("withheld")),
                )
            )
        if len(found) == MOST_WINDOWS:
            break
    return found


def backtest(past: Sequence[Past]) -> Backtest | None:
    """Of the estimates that were shown; None where there was none."""
    errors = [each.error for each in past if not each.withheld]
    return Backtest(len(errors), float(np.mean(errors)), float(np.max(errors))) if errors else None


def proven(past: Sequence[Past]) -> float:
    """The share of a window that may be unlike the reference, by what labels have shown: more than `MOST_UNLIKE` where
    the labelled windows beyond it were all estimated well, withheld or not."""
    far = [each for each in past if each.unlike is not None and each.unlike > MOST_UNLIKE]
    if not far or any(each.error > _GOOD for each in far):
        return MOST_UNLIKE
    return min(1.0, max(each.unlike or 0.0 for each in far) + _CHANCE)


def _made(accuracy: Json) -> Json:
    return accuracy.get("estimated") or accuracy.get("unproven") or {}


def _apart(latest_first: Sequence[tuple[Json, Json]]) -> list[tuple[Json, Json]]:
    """Those that estimated, of windows that share no rows."""
    found: list[tuple[Json, Json]] = []
    for window, accuracy in latest_first:
        if None in (window.get("first"), window.get("last")) or not _made(accuracy):
            continue
        if not found or window["last"] < found[-1][0]["first"]:
            found.append((window, accuracy))
    return found
