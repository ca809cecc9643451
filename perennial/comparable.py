"""Which labelled images two models may be compared on, where labels were asked for by how unsure one of them was."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Numbers = Sequence[float] | NDArray[np.floating]

_BINS: Final = 10
_FEWEST_IN_A_BIN: Final = 20  # answers
#: What chi-squared exceeds with probability 0.05, for 1 to 9 degrees of freedom: so seldom are labels that were given
#: at random taken for asked for, and some do not count that might.
_CRITICAL: Final = (3.841, 5.991, 7.815, 9.488, 11.070, 12.592, 14.067, 15.507, 16.919)


def comparable(
    answered: Numbers,
    labelled: Numbers,
    live: Numbers,
    other: Numbers,
    draws: Sequence[float],
    *,
    rates: Numbers | None = None,
) -> NDArray[np.bool_]:
    """The images [N] on which the live model and another one can be compared fairly.

    Where people label what the live model is unsure of (half of what `perennial labels queue` names, all that
    `serve.capture = uncertain` keeps), it has few of these right, and any other model looks better on them, be it no
    better at all. How likely an image is to have a label, given how sure the live model is, shows in its answers. An
    image counts with the ratio of that at the other model's confidence to that at its own (at most 1), so that those
    which count are chosen by both alike. Where the labelled share is the same at every confidence, but for what chance
    makes of it (Pearson's test of homogeneity over at most ten bins, at 0.05), every image counts.

    Args:
        answered: how sure the live model was in answers of that time, with a label or without.
        labelled: how sure it was in those of them that have a label.
        live: how sure it is of the images [N] to compare on.
        other: how sure the other model is of them [N].
        draws: for each of them a number drawn uniformly from 0 to 1, always the same one (`draw`).
        rates: for each of the answers the labelled share of those that came in about then, where labels are given more
            often at some times than at others, however sure the model is; else of all it is the same.
    """
    everything = np.ones(len(live), np.bool_)
    if not len(answered) or not len(labelled) or not len(live):
        return everything
    sure, chances = np.asarray(answered, np.float64), np.full(len(answered), min(1.0, len(labelled) / len(answered)))
    if rates is not None:
        chances = np.asarray(rates, np.float64)
    edges = _edges(sure, chances)
    expected, variance = (
        np.bincount(np.searchsorted(edges, sure), each, len(edges) + 1).astype(np.float64)
        for each in (chances, chances * (1 - chances))
    )
    found = np.bincount(np.searchsorted(edges, labelled), minlength=len(edges) + 1)
    if _chance(found, expected, variance):
        return everything
    # One label more in each bin: few labels say little of where they came from.
    share = (found + 1) / (expected + 1)
    own, others = (share[np.searchsorted(edges, each)] for each in (live, other))
    return np.asarray(np.asarray(draws) < others / own)


def draw(key: str, digest: str) -> float:
    """A number from 0 to 1 for an image's digest, under one key always the same one."""
    return int.from_bytes(hashlib.sha256(f"{key}:{digest}".encode()).digest()[:8]) / 2**64


def _edges(sure: NDArray[np.float64], chances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Between bins in each of which as many labels are expected."""
    order = np.argsort(sure)
    expected = np.cumsum(chances[order])
    bins = max(1, min(_BINS, len(sure) // _FEWEST_IN_A_BIN))
    wanted = expected[-1] * np.linspace(0, 1, bins + 1)[1:-1]
    return np.unique(sure[order][np.searchsorted(expected, wanted).clip(max=len(sure) - 1)])


def _chance(found: NDArray[np.int_], expected: NDArray[np.float64], variance: NDArray[np.float64]) -> bool:
    """Could so many labels in each bin be chance, where so many are expected?"""
    open_ = variance > 0  # in the others all or nothing is labelled
    if open_.sum() < 2:
        return True
    statistic = ((found - expected)[open_] ** 2 / variance[open_]).sum()
    return bool(statistic <= _CRITICAL[open_.sum() - 2])
