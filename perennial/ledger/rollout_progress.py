"""How far a challenger has come in the stage of a rollout that it is at: counted, not judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from perennial.ids import first_id
from perennial.ledger.connect import reading
from perennial.ledger.rollouts import SHADOW, Rollout
from perennial.ledger.schema import predictions, shadow_answers

#: Answers that are looked at, whatever a stage needs: each is read from a wide row.
_MOST: Final = 2_000


@dataclass(frozen=True, slots=True)
class Progress:
    """Different images that the challenger has answered in this stage; in the shadow, on how many of them it said what
    the champion said (else None); and how often it failed."""

    answered: int
    agreed: int | None
    faults: int


def read(engine: sa.Engine, rollout: Rollout, needed: int) -> Progress:
    """Among the first answers of the stage, twice as many as the images it needs: some images come again.

    Raises:
        LedgerUnavailable: the database does not answer.
    """
    first, most = first_id(rollout.at), min(_MOST, 2 * needed)
    shown = (
        sa.select(shadow_answers.c.prediction_id, shadow_answers.c.label, shadow_answers.c.fault)
        .where(shadow_answers.c.version == rollout.challenger, shadow_answers.c.prediction_id >= first)
        .order_by(shadow_answers.c.prediction_id)
        .limit(most)
        .subquery()
    )
    with reading(engine) as connection:
        faults = connection.execute(sa.select(sa.func.count(shown.c.fault))).scalar_one()
        if rollout.current == SHADOW:
            same = sa.case((shown.c.label == predictions.c.label, predictions.c.image_digest))
            query = (
                sa.select(sa.func.count(predictions.c.image_digest.distinct()), sa.func.count(same.distinct()))
                .join(shown, shown.c.prediction_id == predictions.c.id)
                .where(shown.c.fault.is_(None))
            )
            answered, agreed = connection.execute(query).one()
            return Progress(int(answered), int(agreed), int(faults))
        given = (
            sa.select(predictions.c.image_digest)
            .where(predictions.c.model_version == rollout.challenger, predictions.c.id >= first)
            .order_by(predictions.c.id)
            .limit(most)
            .subquery()
        )
        count = connection.execute(sa.select(sa.func.count(given.c.image_digest.distinct()))).scalar_one()
        return Progress(int(count), None, int(faults))
