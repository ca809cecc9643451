"""What a check compares: the latest predictions of the live version, and that version's own reference rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
import sqlalchemy as sa
from numpy.typing import NDArray
from pyarrow.lib import ArrowException

from monitoring.composition import HEADER, Collection, collection_of, reference_collection
from perennial.bundle import Bundle
from perennial.chance import ChanceEffects
from perennial.effects import chance_effects
from perennial.errors import InvalidBundle
from perennial.graph import FLOAT32
from perennial.ledger import predictions
from perennial.ledger.predictions import LabelledPrediction

Floats = NDArray[np.float32]

_ENOUGH_UNSEEN: Final = 100  # held-out rows; fewer see too little

_COLUMNS: Final = (
    "image_digest", "label", "predicted", "confidence", "probabilities", "embedding", "properties", "held_out",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers whose truth is known: `predicted` [N] and `labels` [N]."""

    predicted: NDArray[Any]
    labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """[N]"""
        return np.asarray(self.predicted == self.labels, dtype=bool)

    def of(self, label: str) -> NDArray[np.bool_]:
        """Of those whose truth is this label: was it the answer?"""
        return self.correct[np.flatnonzero(self.labels == label)]


@dataclass(frozen=True, slots=True)
class Scores:
    """What the graph said about some images, row by row.

    `probabilities` [N, K], `embedding` [N, E], `properties` [N, P]; `predicted` and `confidence` [N]; `labels` holds
    the true label or None; `digests` the sha256 of each image.
    """

    probabilities: Floats
    embedding: Floats
    properties: Floats
    predicted: NDArray[Any]
    confidence: Floats
    labels: tuple[str | None, ...]
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.confidence)

    def take(self, rows: NDArray[Any]) -> Scores:
        """Some rows, by index or by a mask."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Scores(
            self.probabilities[index],
            self.embedding[index],
            self.properties[index],
            self.predicted[index],
            self.confidence[index],
            tuple(self.labels[i] for i in index),
            tuple(self.digests[i] for i in index),
        )

    @property
    def answers(self) -> Answers:
        """Those of the rows that have a label."""
        known = np.array([label is not None for label in self.labels], dtype=bool)
        return Answers(self.predicted[known], np.array(self.labels, dtype=object)[known])


@dataclass(frozen=True, slots=True)
class Window:
    """The latest predictions, all in one `precision`: another arithmetic moves the outputs, and is no drift. `scores`
    holds each image once: a picture sent again tells nothing new, and tests that take rows for independent would alarm
    on it. Of a large window it is a random sample. `rows` counts what was received, `answers` are all that have a
    label."""

    rows: int
    start: datetime | None
    end: datetime | None
    scores: Scores
    answers: Answers
    collection: Collection
    precision: str = FLOAT32
    #: Of each row of `scores`: the id of its prediction, and where its image is (None if it was not captured).
    ids: tuple[str, ...] = ()
    images: tuple[str | None, ...] = ()
    #: Of each row of `scores`: who sent it, "" where that was not said.
    sources: tuple[str, ...] = ()
    #: The ids of the first and the last prediction that was received; they sort by time.
    first: str | None = None
    last: str | None = None
    #: Labels that are no class of the model and count all the same, as errors (`perennial.ledger.new_classes`).
    new_classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """What healthy looks like: the bundle's reference rows. `held_out` [N] is False for rows that also took part in
    training; outputs and accuracy are compared with held-out rows only. `collection` is how its images came in, None
    where the bundle does not say; `side` the pixels that an image's short side is brought to (0: not known);
    `chance` how far apart its own halves are, None where it is too small to say."""

    classes: tuple[str, ...]
    properties: tuple[str, ...]
    scores: Scores
    held_out: NDArray[np.bool_]
    collection: Collection | None = None
    side: int = 0
    chance: ChanceEffects | None = None

    @property
    def unseen(self) -> Scores:
        return self.scores.take(self.held_out)

    @property
    def embedded(self) -> Scores:
        """The rows that embeddings are compared with: held-out ones, where there are enough. A network that was
        fine-tuned embeds what it learnt from unlike what it did not."""
        return self.unseen if int(self.held_out.sum()) >= _ENOUGH_UNSEEN else self.scores


def read_window(
    engine: sa.Engine, model_version: str, limit: int, sample: int, *, new: Iterable[str] | None = ()
) -> Window:
    """The latest `limit` predictions of a version in the precision of the newest one, each with its last label; the
    scores of `sample` of them at most, drawn at random, so that a check of millions costs as much as one of
    thousands.

    Args:
        new: labels that are no class of the model and count all the same; None: every label counts.
    """
    counted = None if new is None else tuple(new)
    return replace(_read(engine, model_version, limit, sample, counted), new_classes=counted or ())


def _read(engine: sa.Engine, model_version: str, limit: int, sample: int, new: tuple[str, ...] | None) -> Window:
    newest = predictions.latest(engine, model_version, 1)
    if not newest:
        return window_of([])
    precision = newest[0].prediction.precision
    found = predictions.span(engine, model_version, limit, precision=precision)
    if found.rows <= sample:
        return window_of(predictions.latest(engine, model_version, limit, precision=precision, new=new))
    drawn = window_of(predictions.latest(engine, model_version, limit, precision=precision, sample=sample, new=new))
    labelled = predictions.labelled_answers(engine, model_version, limit, precision=precision, new=new)
    last = {row.image_digest: row for row in labelled}
    answers = Answers(
        np.array([row.answered for row in last.values()], dtype=object),
        np.array([row.true_label for row in last.values()], dtype=object),
    )
    return replace(
        drawn, rows=found.rows, start=found.start, end=found.end, first=found.first, last=found.last, answers=answers
    )


def window_of(rows: Sequence[LabelledPrediction]) -> Window:
    """A window from ledger rows of one precision, oldest first."""
    distinct: dict[str, LabelledPrediction] = {}
    for row in rows:
        # The last time it came counts, unless only an earlier time was labelled.
        before = distinct.pop(row.prediction.image_digest, None)
        unlabelled = row.true_label is None and before is not None and before.true_label is not None
        distinct[row.prediction.image_digest] = before if unlabelled and before is not None else row
    kept = list(distinct.values())
    made = [row.prediction for row in kept]
    scores = _scores_of(kept)
    moments = [row.prediction.at for row in rows]
    received = [row.prediction for row in rows]
    return Window(
        rows=len(rows),
        # Not the first and the last row: a clock that jumps back must not turn the window around.
        start=min(moments, default=None),
        end=max(moments, default=None),
        scores=scores,
        answers=scores.answers,
        collection=collection_of(received),
        precision=received[-1].precision if received else FLOAT32,
        ids=tuple(row.id for row in made),
        images=tuple(row.image_url for row in made),
        sources=tuple(row.source or "" for row in made),
        first=min((row.id for row in received), default=None),
        last=max((row.id for row in received), default=None),
    )


def _scores_of(rows: Sequence[LabelledPrediction]) -> Scores:
    made = [row.prediction for row in rows]
    return Scores(
        _matrix([row.probabilities for row in made]),
        _matrix([row.embedding for row in made]),
        _matrix([row.properties for row in made]),
        np.array([row.label for row in made], dtype=object),
        np.array([row.confidence for row in made], dtype=np.float32),
        tuple(row.true_label for row in rows),
        tuple(row.image_digest for row in made),
    )


def read_reference(bundle: Bundle, precision: str = FLOAT32) -> Reference | None:
    """The reference rows of a verified bundle that were scored in this precision; None where it has none: it was not
    certified for it, or the model was imported as it is, without images to compare with.

    Raises:
        InvalidBundle: there is no such file, or its columns are missing or of another shape than the manifest says.
    """
    path = bundle.reference if precision == FLOAT32 else bundle.reference_in(precision)
    if path is None or _is_empty(path):
        return None
    found = reference_of(path, bundle.manifest.classes, bundle.manifest.properties)
    return replace(found, chance=bundle.manifest.chance or chance_of(found), side=bundle.manifest.input.resize)


def chance_of(reference: Reference) -> ChanceEffects | None:
    """How far apart the halves of a reference are, for a bundle that does not say so."""
    unseen = reference.unseen
    return chance_effects(reference.scores.properties, unseen.probabilities, unseen.predicted)


def _is_empty(path: Path) -> bool:
    try:
        return bool(pq.read_metadata(path).num_rows == 0)
    except (OSError, ArrowException):
        return False  # whoever reads it will say so


def reference_of(path: Path, classes: tuple[str, ...], properties: tuple[str, ...]) -> Reference:
    """The same from a `reference.parquet` on its own."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read([*_COLUMNS, *HEADER])
        columns = {name: table.column(name).to_pylist() for name in _COLUMNS}
    except (OSError, ArrowException, KeyError) as error:
        raise InvalidBundle(f"{path} cannot be read as reference rows: {error}; train the model anew") from error
    reference = Reference(
        classes,
        properties,
        Scores(
            _matrix(columns["probabilities"]),
            _matrix(columns["embedding"]),
            _matrix(columns["properties"]),
            np.array(columns["predicted"], dtype=object),
            np.array(columns["confidence"], dtype=np.float32),
            tuple(columns["label"]),
            tuple(columns["image_digest"]),
        ),
        np.array(columns["held_out"], dtype=bool),
        reference_collection(table),
    )
    shapes = (reference.scores.probabilities.shape[1], reference.scores.properties.shape[1])
    if len(reference.scores) == 0 or shapes != (len(classes), len(properties)):
        raise InvalidBundle(
            f"{path} holds {len(reference.scores)} rows of {shapes[0]} probabilities and {shapes[1]} properties; "
            f"the manifest says {len(classes)} and {len(properties)}"
        )
    return reference


def _matrix(rows: Sequence[Any]) -> Floats:
    if not rows:
        return np.empty((0, 0), dtype=np.float32)
    width = max(len(row) for row in rows)
    # A row of another length (which no graph writes) becomes one of NaN: it is reported, and kills nothing.
    return np.array(
        [row if len(row) == width else np.full(width, np.nan) for row in rows],
        dtype=np.float32,
    )
