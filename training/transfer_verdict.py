"""Does what the network was pretrained on help here? Three indicators, and a verdict in words.

The indicators (Torrey and Shavlik, 2010): how good the transferred knowledge is alone, how fast an accuracy is reached
with and without it, and how good the end is with and without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from perennial.bundle import Arrival, CurvePoint, Estimate, Transfer
from training.evaluate import accuracy_interval
from training.paired import mcnemar
from training.rungs import Trial

#: Of the exact paired tests behind a verdict.
ALPHA: Final = 0.05
_NAMES: Final = {
    "linear_probe": "the linear probe", "partial": "partial fine-tuning", "full": "full fine-tuning",
    "scratch": "the same network from scratch", "simple": "the simple baseline",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tried:
    """What the verdict is given from. `best` is the best rung with transfer; `alone` the probe on frozen pretrained
    features and `alone_random` the same on random ones (on the rows that it was tried on); each may be missing."""

    best: Trial
    alone: Trial
    alone_random: Trial | None
    scratch: Trial | None
    simple: Trial


def judge(tried: Tried, labels: NDArray[np.int64]) -> Transfer:
    """The verdict. `labels` [N] are of all rows."""
    best = tried.best
    simple_lost = one_sided(tried.simple, best, labels)
    # "As good" needs more than a test that sees nothing: at most one error in a hundred images more.
    gap = float(np.mean(best.right(labels))) - float(np.mean(tried.simple.right(labels)))
    suffices = simple_lost >= ALPHA and gap <= 0.01
    says: list[str] = []
    worse, better = False, False
    if tried.alone_random is not None:
        p_hurts, p_helps = both_sides(tried.alone, tried.alone_random, labels)
        pretrained, random = _shared(tried.alone, tried.alone_random, labels)
        worse, better = worse or p_hurts < ALPHA, better or p_helps < ALPHA
        says.append(
            f"The transferred knowledge alone: a linear head on frozen pretrained features is right on "
            f"{pretrained.value:.1%}, on the features of the same network with random weights on {random.value:.1%}."
        )
    arrival = arrival_scratch = to = final_scratch = None
    if tried.scratch is not None:
        p_hurts, p_helps = both_sides(best, tried.scratch, labels)
        worse, better = worse or p_hurts < ALPHA, better or p_helps < ALPHA
        mine, final_scratch = _shared(best, tried.scratch, labels)
        to = float(min(mine.value, final_scratch.value))
        alone, _ = _shared(tried.alone, tried.scratch, labels)
        with_transfer = (first_reached(tried.alone, to, alone.value), first_reached(best, to, mine.value))
        arrival = min(with_transfer, key=lambda reached: math.inf if reached.seconds is None else reached.seconds)
        arrival_scratch = first_reached(tried.scratch, to, final_scratch.value)
        says.append(f"Time to {to:.1%}: with transfer {_when(arrival)}, from random weights {_when(arrival_scratch)}.")
        says.append(
            f"At the end: {_NAMES.get(best.name, best.name)} is right on {mine.value:.1%}, from scratch "
            f"({tried.scratch.seconds:.0f} s of training) {final_scratch.value:.1%}."
        )
    verdict = "not measured"
    if tried.alone_random is not None or tried.scratch is not None:
        verdict = "negative" if worse else "positive" if better else "none"
        says.append(
            {
                "negative": "Transfer is NEGATIVE here: the same network does measurably better without the pretrained "
                "weights. Train from scratch, take other weights, or use a simpler model.",
                "positive": "Transfer helps, beyond chance.",
                "none": "No measurable difference between pretrained and random weights on these images.",
            }[verdict]
        )
    if suffices:
        simple_share = float(np.mean(tried.simple.right(labels)))
        says.append(
            f"A simple model does as well: a linear model on colour histograms and tiny pixels is right on "
            f"{simple_share:.1%} of the same images. A network is more than this task needs."
        )
    return Transfer(
        verdict=verdict,
        simple_suffices=suffices,
        says=tuple(says),
        alone=share(tried.alone, labels),
        alone_random=share(tried.alone_random, labels) if tried.alone_random else None,
        to_accuracy=to,
        arrival=arrival,
        arrival_from_scratch=arrival_scratch,
        final=share(best, labels),
        final_from_scratch=final_scratch,
    )


def share(trial: Trial, labels: NDArray[np.int64]) -> Estimate:
    """How many of its rows it has right."""
    right = trial.right(labels)
    return accuracy_interval(int(right.sum()), len(right))


def shared_rows(one: Trial, other: Trial, labels: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Who was right on the rows that both answered."""
    _, first, second = np.intersect1d(one.rows, other.rows, return_indices=True)
    return one.right(labels)[first], other.right(labels)[second]


def both_sides(one: Trial, other: Trial, labels: NDArray[np.int64]) -> tuple[float, float]:
    """McNemar's exact one-sided p that `other` is no better than `one`, and that `one` is no better than `other`."""
    mine, theirs = shared_rows(one, other, labels)
    only_one, only_other = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
    return mcnemar(only_one, only_other), mcnemar(only_other, only_one)


def one_sided(worse: Trial, better: Trial, labels: NDArray[np.int64]) -> float:
    """McNemar's exact one-sided p that `better` is no better than `worse`."""
    return both_sides(worse, better, labels)[0]


def first_reached(trial: Trial, accuracy: float, final: float) -> Arrival:
    """When a rung first had that share right. One without epochs gets there with its fit, or never."""
    for point in trial.curve:
        if point.accuracy >= accuracy - 1e-9:
            return Arrival(epochs=point.epoch, seconds=point.seconds)
    if not trial.curve and final >= accuracy - 1e-9:
        return Arrival(epochs=0, seconds=trial.seconds)
    return Arrival(epochs=None, seconds=None)


def _shared(one: Trial, other: Trial, labels: NDArray[np.int64]) -> tuple[Estimate, Estimate]:
    mine, theirs = shared_rows(one, other, labels)
    return accuracy_interval(int(mine.sum()), len(mine)), accuracy_interval(int(theirs.sum()), len(theirs))


def _when(arrival: Arrival) -> str:
    if arrival.seconds is None:
        return "not reached"
    return f"{arrival.seconds:.1f} s" + (f" ({arrival.epochs} epochs)" if arrival.epochs else "")


def later(points: Sequence[CurvePoint], before: float) -> tuple[CurvePoint, ...]:
    """A curve whose seconds count what was done `before` it, too."""
    return tuple(point.model_copy(update={"seconds": round(point.seconds + before, 3)}) for point in points)
