"""Labels that are no class of the model that answered: kept, and classes once enough different images have them.

Until then such a label counts nowhere: a typo, or a client that sends numbers for names, must not look like lost
accuracy. From then on the live model has these images wrong, and a retrain learns them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from perennial.ledger.connect import reading
from perennial.ledger.schema import labels, models, predictions

#: Characters of a label that is kept.
MAX_LABEL: Final = 200
#: Different labels that are kept for one model, so that a client gone wrong cannot fill the ledger with names.
MOST_LABELS: Final = 1_000
#: The newest of such labels in the ledger; those before them are not looked at.
_MOST_READ: Final = 20_000


@dataclass(frozen=True, slots=True)
class NewLabels:
    """Labels that are no class of a model, each with how many different captured images have it as their last label;
    with `at_least` so many it is to be a class (0: none ever is)."""

    images: Mapping[str, int]
    at_least: int

    @property
    def classes(self) -> dict[str, int]:
        """Those that have enough images."""
        return {label: count for label, count in self.images.items() if 0 < self.at_least <= count}

    @property
    def too_few(self) -> dict[str, int]:
        """All others."""
        return {label: count for label, count in self.images.items() if not 0 < self.at_least <= count}

    def missing(self, label: str) -> str:
        """Why a label is no class yet, and what to do."""
        if label not in self.too_few or not self.at_least:
            return f"its label {label!r} is not a class of the live model"
        have = self.images[label]
        return (
            f"its label {label!r} is no class yet: {have} of {self.at_least} labels (retrain.new_class_labels); label "
            f"{self.at_least - have} more images so, or correct it if it is a mistake"
        )


#: Nothing but what the model knows.
NONE: Final = NewLabels({}, 0)


def find(engine: sa.Engine, name: str, classes: Collection[str], at_least: int) -> NewLabels:
    """The labels of a model's predictions that are none of these classes, of whichever of its versions."""
    kept = _kept()
    versions = sa.select(models.c.version).where(models.c.name == name)
    later, other = labels.alias("later"), predictions.alias("other")
    # An image may have been sent twice; the last label of any of its predictions counts.
    relabelled = (
        sa.exists()
        .where(
            other.c.image_digest == predictions.c.image_digest,
            other.c.image_url.is_not(None),
            other.c.model_version.in_(versions),
            later.c.prediction_id == other.c.id,
            later.c.id > kept.c.id,
        )
        .correlate(predictions, kept)
    )
    counts = sa.and_(predictions.c.image_url.is_not(None), ~relabelled)
    rows = (
        sa.select(kept.c.label, sa.case((counts, predictions.c.image_digest)).label("digest"))
        .join(predictions, predictions.c.id == kept.c.prediction_id)
        # As an expression, or SQLite goes through all predictions of the versions instead of the few labels.
        .where(predictions.c.model_version.concat("").in_(versions), kept.c.label.not_in(classes), _is_last(kept))
        .subquery()
    )
    query = sa.select(rows.c.label, sa.func.count(rows.c.digest.distinct())).group_by(rows.c.label)
    with reading(engine) as connection:
        found = {label: int(count) for label, count in connection.execute(query)}
    return NewLabels(dict(sorted(found.items())), at_least)


def admitted(wanted: Iterable[str], names: Collection[str]) -> set[str]:
    """Which of these labels, that are no class, can be kept beside those that are: such as can be stored, and no more
    than `MOST_LABELS` different ones."""
    storable = [label for label in dict.fromkeys(wanted) if is_storable(label)]
    new = [label for label in storable if label not in names]
    return set(storable) - set(new[max(0, MOST_LABELS - len(names)) :])


def names(engine: sa.Engine, name: str) -> frozenset[str]:
    """The labels that are no class of the version of this model that answered, and are the last one of a prediction."""
    kept = _kept()
    query = (
        sa.select(kept.c.label)
        .join(predictions, predictions.c.id == kept.c.prediction_id)
        .join(models, models.c.version == predictions.c.model_version)
        .where(models.c.name == name, _is_last(kept))
        .distinct()
    )
    with reading(engine) as connection:
        return frozenset(connection.execute(query).scalars())


def is_storable(label: str) -> bool:
    """A text that people can read and every database takes."""
    # PostgreSQL refuses a zero byte, and half a surrogate pair is not UTF-8; neither is printable.
    return 0 < len(label) <= MAX_LABEL and label.isprintable() and label == label.strip()


def _kept() -> sa.Subquery:
    newest = sa.select(labels.c.id, labels.c.prediction_id, labels.c.label).where(~labels.c.known)
    return newest.order_by(labels.c.id.desc()).limit(_MOST_READ).subquery("kept")


def _is_last(kept: sa.Subquery) -> sa.ColumnElement[bool]:
    newer = labels.alias("newer")
    return ~sa.exists().where(newer.c.prediction_id == kept.c.prediction_id, newer.c.id > kept.c.id)
