"""What to label next, for the labelling tray: images of the latest window that have no label yet."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import sqlalchemy as sa

from perennial.comparable import draw
from perennial.ledger import predictions
from perennial.ledger.predictions import Unlabelled


def queue(engine: sa.Engine, version: str, window: int, count: int) -> list[dict[str, Any]]:
    """In turn one drawn at random, always the same ones, and one of which the model was least sure, each image once.

    Half at random, as of `perennial labels queue`: labels of doubtful images alone would favour any challenger at the
    gate. `perennial labels queue` also knows which ones drifted.

    Raises:
        LedgerUnavailable: the database does not answer.
    """
    found = predictions.unlabelled(engine, version, window)
    once = list({each.image_digest: each for each in found}.values())
    at_random = sorted(once, key=lambda each: draw(version, each.image_digest))
    unsure = sorted(once, key=lambda each: each.confidence)
    chosen: dict[str, tuple[Unlabelled, str]] = {}
    for pair in zip_longest(at_random, unsure):
        for each, how in zip(pair, ("random", "informative"), strict=True):
            if each is not None and len(chosen) < count:
                chosen.setdefault(each.image_digest, (each, how))
        if len(chosen) >= count:
            break
    return [
        {
            "prediction_id": each.id,
            "image": f"/v1/images/{each.id}",
            "predicted": each.label,
            "confidence": each.confidence,
            "at": each.at.isoformat(),
            "chosen": how,
        }
        for each, how in chosen.values()
    ]
