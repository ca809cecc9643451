"""Labels that come back: which ones can be taken, and committing them.

A label that is no class of the model that answered is kept for when it becomes one (`perennial.ledger.new_classes`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa

from perennial.errors import InvalidParameter, PredictionPending, UnknownLabel, UnknownModel, UnknownPrediction
from perennial.ids import milliseconds_of
from perennial.ledger import labels, models, new_classes, predictions
from perennial.ledger.labels import Feedback
from service import metrics
from service.limits import source_of
from service.recorder import Recorder

MAX_ITEMS: Final = 10_000
_MAX_TEXT: Final = 200
_PATIENCE_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 0.02
#: So long it is taken as known which new labels are kept: who sends one name after the other must not have the ledger
#: asked each time.
_NAMES_SECONDS: Final = 5.0
_KEYS: Final = {"prediction_id", "label", "source"}


@dataclass(frozen=True, slots=True)
class Call:
    """A parsed feedback request. `single`: it was one object, not a list of them."""

    items: tuple[Feedback, ...]
    single: bool


def parse(body: Any) -> Call:
    """`{"prediction_id", "label"[, "source"]}`, or a list of them.

    Raises:
        InvalidParameter: says which item is wrong, and how.
    """
    single = isinstance(body, dict)
    entries = [body] if single else body
    if not isinstance(entries, list):
        raise InvalidParameter('send {"prediction_id": ..., "label": ...} or a list of such objects')
    if len(entries) > MAX_ITEMS:
        raise InvalidParameter(f"{len(entries):,} items; at most {MAX_ITEMS:,} are taken in one call")
    return Call(tuple(_item(entry, "" if single else f"item {index}: ") for index, entry in enumerate(entries)), single)


def _item(entry: Any, where: str) -> Feedback:
    if not isinstance(entry, dict):
        raise InvalidParameter(f"{where}is not an object")
    unknown = sorted(set(entry) - _KEYS)
    if unknown:
        raise InvalidParameter(f"{where}unknown key {unknown[0][:40]!r}; there are {', '.join(sorted(_KEYS))}")
    for key in ("prediction_id", "label"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise InvalidParameter(f"{where}{key!r} is missing or not a text")
    source = entry.get("source")
    if source is not None and not isinstance(source, str):
        raise InvalidParameter(f"{where}'source' is not a text")
    return Feedback(entry["prediction_id"], entry["label"], source_of(source))


class FeedbackDesk:
    """Takes labels for one model's predictions; with `keeps` also those that are no class of it."""

    def __init__(self, name: str, recorder: Recorder, *, keeps: bool) -> None:
        self._name = name
        self._recorder = recorder
        self._keeps = keeps
        self._classes: dict[str, tuple[str, ...] | None] = {}
        self._names: frozenset[str] = frozenset()
        self._looked = -math.inf

    def take(self, engine: sa.Engine, call: Call) -> dict[str, Any]:
        """Commit every label that can be taken; returns the answer.

        Raises:
            UnknownPrediction, UnknownLabel: for a single object; in a list the others are still committed.
            PredictionPending: an id is not known yet; nothing was committed.
            LedgerUnavailable.
        """
        versions = self._versions(engine, [item.prediction_id for item in call.items if _storable(item.prediction_id)])
        found: list[Feedback] = []
        unknown_predictions: list[str] = []
        for item in call.items:
            version = versions.get(item.prediction_id)
            classes = self._classes_of(engine, version) if version else None
            if classes is None:
                unknown_predictions.append(item.prediction_id)
            else:
                found.append(replace(item, known=item.label in classes))
        unknown_labels = list(dict.fromkeys(item.label for item in found if not item.known))
        keepable = self._keepable(engine, unknown_labels)
        taken = [item for item in found if item.known or item.label in keepable]
        if taken:
            labels.add(engine, taken)
        accepted = sum(item.known for item in taken)
        kept, refused = len(taken) - accepted, len(found) - len(taken)
        for outcome, count in (
            ("accepted", accepted),
            ("kept", kept),
            ("unknown_prediction", len(unknown_predictions)),
            ("unknown_label", refused),
        ):
            if count:
                metrics.feedback.labels(outcome).inc(count)
        if call.single and unknown_predictions:
            raise UnknownPrediction(f"there is no prediction {unknown_predictions[0][:_MAX_TEXT]!r}")
        if call.single and refused:
            raise UnknownLabel(self._why_refused(engine, unknown_labels[0], versions[found[0].prediction_id]))
        return {
            "accepted": accepted,
            "kept": kept,
            "unknown_predictions": list(dict.fromkeys(unknown_predictions)),
            "unknown_labels": unknown_labels,
        }

    def _keepable(self, engine: sa.Engine, wanted: Sequence[str]) -> set[str]:
        """Of these labels, that are no class, those that can be kept."""
        if not self._keeps:
            return set()
        if not self._names.issuperset(wanted) and time.monotonic() > self._looked + _NAMES_SECONDS:
            self._names = new_classes.names(engine, self._name)
            self._looked = time.monotonic()
        found = new_classes.admitted(wanted, self._names)
        self._names |= found
        return found

    def _why_refused(self, engine: sa.Engine, label: str, version: str) -> str:
        classes = self._classes_of(engine, version) or ()
        why = f"{label[:_MAX_TEXT]!r} is not a class of model {version}; its classes are: {', '.join(classes)}"
        if not self._keeps:
            return why
        if not new_classes.is_storable(label):
            return f"{why}. A new label is kept if it has at most {new_classes.MAX_LABEL} printable characters"
        return f"{why}. {new_classes.MOST_LABELS:,} other new labels are kept already; correct those that are none"

    def _versions(self, engine: sa.Engine, ids: Sequence[str]) -> dict[str, str]:
        """Of these ids, the known ones with their model version. A label may come right behind its prediction, so
        what still waits in a journal is waited for a little."""
        found: dict[str, str] = {}
        asked = time.monotonic()
        while True:
            caught_up = self._recorder.caught_up_at > asked
            missing = [each for each in ids if each not in found]
            found.update(predictions.known(engine, missing))
            missing = [each for each in missing if each not in found]
            # Our own journal says when it is empty; another worker's is given the time that a delivery takes.
            if not missing or (caught_up and not any(map(_is_young, missing))):
                return found
            if time.monotonic() > asked + _PATIENCE_SECONDS:
                if caught_up:
                    return found
                raise PredictionPending("not every prediction has reached the ledger yet; send the labels again soon")
            self._recorder.hurry()
            time.sleep(_LOOK_SECONDS)

    def _classes_of(self, engine: sa.Engine, version: str) -> tuple[str, ...] | None:
        # A version's classes never change. None: it belongs to a model of another name in the same ledger.
        if version not in self._classes:
            try:
                self._classes[version] = models.get(engine, self._name, version).manifest.classes
            except UnknownModel:
                self._classes[version] = None
        return self._classes[version]


def _is_young(identifier: str) -> bool:
    """Whether it is the id of a prediction made so short a time ago that it may not be in the ledger yet."""
    made = milliseconds_of(identifier)
    return made is not None and abs(time.time() * 1000 - made) < _PATIENCE_SECONDS * 1000


def _storable(identifier: str) -> bool:
    # PostgreSQL refuses a text with a zero byte, and half a surrogate pair is not UTF-8.
    return len(identifier) <= 36 and identifier.isascii() and identifier.isprintable()
