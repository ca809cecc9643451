"""Which labelled images two models may be compared on, where labels were asked for by how unsure one of them was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

_BINS: Final = 10
_FEWEST_IN_A_BIN: Final = 20  # answers


def comparable(
    answered: Sequence[float], live: Sequence[float], before: Sequence[float], draws: Sequence[float]
) -> NDArray[np.bool_]:
    """The images [N] on which the live model and the one before can be compared fairly.

    Where people label what the live model is unsure of (`perennial labels queue`, `serve.capture = uncertain`), it has
    few of these right, and any other model looks better on them, be it no better at all. How likely an image is to
    have a label, given how sure the live model is, shows in its answers. An image counts with the ratio of that at the
    other model's confidence to that at its own (at most 1), so that those which count are chosen by both alike. Labels
    given at random all count, but for what chance makes of few.

    Args:
        answered: how sure the live model was in answers of that time, with a label or without.
        live: how sure it was of the labelled images [N].
        before: how sure the other model is of them [N].
        draws: for each of them a number drawn uniformly from 0 to 1, always the same one.
    """
    if not len(answered) or not len(live):
        return np.ones(len(live), np.bool_)
    bins = max(1, min(_BINS, len(answered) // _FEWEST_IN_A_BIN))
    edges = np.unique(np.quantile(answered, np.linspace(0, 1, bins + 1)[1:-1]))
    of_live, of_before = np.searchsorted(edges, live), np.searchsorted(edges, before)
    all_answers = np.bincount(np.searchsorted(edges, answered), minlength=len(edges) + 1)
    labelled = np.bincount(of_live, minlength=len(edges) + 1)
    # One label more in each bin, at the overall share: few labels say little of where they came from.
    share = (labelled + 1) / (all_answers + len(answered) / len(live))
    return np.asarray(np.asarray(draws) < share[of_before] / share[of_live])
