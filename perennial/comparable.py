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
    answered: Numbers, labelled: Numbers, live: Numbers, other: Numbers, draws: Sequence[float]
) -> NDArray[np.bool_]:
    """The images [N] on which the live model and another one can be compared fairly.

    Where people label what the live model is unsure of (`perennial labels queue`, `serve.capture = uncertain`), it has
    few of these right, and any other model looks better on them, be it no better at all. How likely an image is to
    have a label, given how sure the live model is, shows in its answers. An image counts with the ratio of that at the
    other model's confidence to that at its own (at most 1), so that those which count are chosen by both alike. Where
    the labelled share is the same at every confidence, but for what chance makes of it (Pearson's test of homogeneity
    over at most ten bins, at 0.05), every image counts.

    Args:
        answered: how sure the live model was in answers of that time, with a label or without.
        labelled: how sure it was in those of them that have a label.
        live: how sure it is of the images [N] to compare on.
        other: how sure the other model is of them [N].
        draws: for each of them a number drawn uniformly from 0 to 1, always the same one (`draw`).
    """
    everything = np.ones(len(live), np.bool_)
    if not len(answered) or not len(labelled) or not len(live):
        return everything
    bins = max(1, min(_BINS, len(answered) // _FEWEST_IN_A_BIN))
    edges = np.unique(np.quantile(answered, np.linspace(0, 1, bins + 1)[1:-1]))
    in_all, in_labelled = (
        np.bincount(np.searchsorted(edges, each), minlength=len(edges) + 1) for each in (answered, labelled)
    )
    if _alike(in_all, in_labelled):
        return everything
    # One label more in each bin, at the overall share: few labels say little of where they came from.
    share = (in_labelled + 1) / (in_all + len(answered) / len(labelled))
    own, others = (share[np.searchsorted(edges, each)] for each in (live, other))
    return np.asarray(np.asarray(draws) < others / own)


def draw(key: str, digest: str) -> float:
    """A number from 0 to 1 for an image's digest, under one key always the same one."""
    return int.from_bytes(hashlib.sha256(f"{key}:{digest}".encode()).digest()[:8]) / 2**64


def _alike(answered: NDArray[np.int_], labelled: NDArray[np.int_]) -> bool:
    """Could the same share of the answers be labelled in each bin?"""
    answered, labelled = answered[answered > 0], labelled[answered > 0]
    share = labelled.sum() / answered.sum()
    if share >= 1 or len(answered) < 2:
        return True
    expected = answered * share
    statistic = ((labelled - expected) ** 2 / (expected * (1 - share))).sum()
    return bool(statistic <= _CRITICAL[len(answered) - 2])
