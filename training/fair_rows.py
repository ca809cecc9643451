"""Which fresh rows the gate may compare champion and challenger on: those that favour neither."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from perennial.bundle import Manifest
from perennial.comparable import comparable, draw
from perennial.ledger import labels
from perennial.ledger.labels import Labelling
from training.captures import Capture
from training.datasets import Row

#: So many of the champion's answers say how likely a label is.
_MOST_ANSWERS: Final = 100_000


def labelling_of(engine: sa.Engine, version: str, fresh: Sequence[Capture]) -> Labelling:
    """How sure the live version was in its answers of the time that the fresh captures are from, and in those that were
    labelled."""
    ids = sorted(capture.prediction_id for capture in fresh if capture.version == version)
    if not ids:
        return Labelling(np.empty(0), np.empty(0))
    return labels.labelling(engine, version, ids[0], ids[-1], limit=_MOST_ANSWERS)


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
    counts = comparable(labelling.answered, labelling.labelled, *sure, draws)
    return counts | np.array([row.label not in champion.classes for row in rows], np.bool_)
