"""Which fresh rows the gate may compare champion and challenger on: those that favour neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from perennial.bundle import Manifest
from perennial.comparable import comparable, draw
from perennial.ledger import labels
from training.captures import Capture
from training.datasets import Row

#: So many of the champion's answers say how likely a label is.
_MOST_ANSWERS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Labelling:
    """How sure a model was in its answers of some time [N], which of them have a label [N], and the labelled share of
    those that came in about then [N]."""

    answered: NDArray[np.float64]
    labelled: NDArray[np.bool_]
    rates: NDArray[np.float64]


def labelling_of(engine: sa.Engine, version: str, fresh: Sequence[Capture], window: int) -> Labelling:
    """What people have labelled of the live version's answers in the time that the fresh captures are from. They are
    shown a window of so many at a time, and of some more than of others."""
    ids = sorted(capture.prediction_id for capture in fresh if capture.version == version)
    if not ids:
        return in_windows(np.empty(0), np.empty(0, np.bool_), window)
    return in_windows(*labels.labelling(engine, version, ids[0], ids[-1], limit=_MOST_ANSWERS), window)


def in_windows(answered: NDArray[np.float64], labelled: NDArray[np.bool_], window: int) -> Labelling:
    """Of answers in the order of time, in windows of about so many."""
    windows = max(1, round(len(answered) / window))
    of_window = np.arange(len(answered)) * windows // max(1, len(answered))
    shares = np.bincount(of_window, labelled) / np.bincount(of_window)
    return Labelling(answered, labelled, np.asarray(shares[of_window]))


def fair_rows(
    champion: Manifest,
    rows: Sequence[Row],
    sure: tuple[Sequence[float], Sequence[float]],
    labelling: Labelling,
) -> NDArray[np.bool_]:
    """Which of the rows [N] count; `sure` is how sure champion and challenger are of each.

    Rows of a class that the champion does not know all count: however they were chosen, it could have had none right.
    """
    draws = [draw(champion.version, row.digest) for row in rows]
    answered, has_label = labelling.answered, labelling.labelled
    counts = comparable(answered, answered[has_label], *sure, draws, rates=labelling.rates)
    return counts | np.array([row.label not in champion.classes for row in rows], np.bool_)
