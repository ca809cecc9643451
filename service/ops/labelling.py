"""What to label next, for the labelling tray: images of the latest window that have no label yet."""

from __future__ import annotations

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
    ways = {"random": iter(at_random), "informative": iter(unsure)}
    chosen: dict[str, tuple[Unlabelled, str]] = {}
    while len(chosen) < min(count, len(once)):
        for how, ordered in ways.items():
            following = next((each for each in ordered if each.image_digest not in chosen), None)
            if following is not None and len(chosen) < count:
                chosen[following.image_digest] = following, how
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
