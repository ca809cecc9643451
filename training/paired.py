"""Two models on the same rows: who was right where the other was not, and could that be chance?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from perennial.bundle import Estimate
from training.evaluate import accuracy_interval

_Z95: Final = 1.959964


@dataclass(frozen=True, slots=True)
class PairedAnswers:
    """The true labels of one slice, and what both models said, row by row, as class names; how sure each was, where
    that is known."""

    labels: tuple[str, ...]
    champion: tuple[str, ...]
    challenger: tuple[str, ...]
    champion_confidence: tuple[float, ...] = ()
    challenger_confidence: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, rows: Iterable[int]) -> PairedAnswers:
        """The same of these rows alone."""
        kept = list(rows)
        labels, champion, challenger = (
            tuple(each[row] for row in kept) for each in (self.labels, self.champion, self.challenger)
        )
        one, other = (
            tuple(each[row] for row in kept) if each else ()
            for each in (self.champion_confidence, self.challenger_confidence)
        )
        return PairedAnswers(labels, champion, challenger, one, other)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both accuracies on one slice with Wilson intervals, their paired difference (challenger - champion) with an
    adjusted Wald interval (Bonett and Price, 2012), and the exact one-sided McNemar p of the challenger being no
    better. `only_*`: rows that only that model answers correctly; `differ`: those on which the two differ."""

    rows: int
    champion: Estimate
    challenger: Estimate
    difference: Estimate
    only_champion: int
    only_challenger: int
    differ: int
    p_value: float

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "rows": self.rows,
            "champion": self.champion.model_dump(),
            "challenger": self.challenger.model_dump(),
            "difference": self.difference.model_dump(),
            "only_champion": self.only_champion,
            "only_challenger": self.only_challenger,
            "differ": self.differ,
            "p_value": self.p_value,
        }


def compare(answers: PairedAnswers) -> Comparison:
    """Both models on one slice of at least one row."""
    truth = np.array(answers.labels)
    champion = np.array(answers.champion) == truth
    challenger = np.array(answers.challenger) == truth
    rows = len(truth)
    lost, won = int((champion & ~challenger).sum()), int((~champion & challenger).sum())
    low, high = _difference_interval(lost, won, rows)
    return Comparison(
        rows=rows,
        champion=accuracy_interval(int(champion.sum()), rows),
        challenger=accuracy_interval(int(challenger.sum()), rows),
        difference=Estimate(value=(won - lost) / rows, low=low, high=high),
        only_champion=lost,
        only_challenger=won,
        differ=int((np.array(answers.champion) != np.array(answers.challenger)).sum()),
        p_value=mcnemar(lost, won),
    )


def difference(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Estimate:
    """How much more of the same rows [N] `other` has right than `one`, with the adjusted Wald interval."""
    rows = len(one)
    lost, won = int((one & ~other).sum()), int((~one & other).sum())
    low, high = _difference_interval(lost, won, rows)
    value = (won - lost) / rows
    return Estimate(value=value, low=min(value, low), high=max(value, high))


def smallest_p(rows: int) -> float:
    """The smallest p that McNemar's exact one-sided test can reach on so many rows."""
    return 0.5**rows


def fewest_rows(alpha: float) -> int:
    """How many rows it takes for that p to be as small as `alpha`."""
    return math.ceil(math.log(alpha) / math.log(0.5) - 1e-9)


def mcnemar(only_champion: int, only_challenger: int) -> float:
    """Exact one-sided p of the challenger being no better: P(Binomial(discordant, 1/2) >= only_challenger)."""
    return float(stats.binom.sf(only_challenger - 1, only_champion + only_challenger, 0.5))


def _difference_interval(lost: int, won: int, rows: int) -> tuple[float, float]:
    p_won, p_lost = (won + 1) / (rows + 2), (lost + 1) / (rows + 2)
    half = _Z95 * math.sqrt(max(0.0, p_won + p_lost - (p_won - p_lost) ** 2) / (rows + 2))
    return max(-1.0, p_won - p_lost - half), min(1.0, p_won - p_lost + half)
