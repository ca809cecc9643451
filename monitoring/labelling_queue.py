"""Which images to label first: some drawn at random, and those that drifted, that the model is unsure of, and that are
not like one another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from monitoring.diversity import apart
from monitoring.live import live_model
from monitoring.two_sample import unlike_reference
from monitoring.window import Reference, Window, read_reference, read_window
from perennial.comparable import draw
from perennial.errors import NothingToDo
from perennial.label_files import Chosen
from perennial.settings import Settings

Array = NDArray[np.float64]

#: Drift counts by this power: of rows that are like the reference half are above .5, and only what is clearly unlike it
#: is to outweigh doubt.
_CLEARLY: Final = 4


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image without a label, and how it was chosen. `drift` is how unlike the reference it is, `doubt` how unsure
    the model was (1 less the margin between its two likeliest classes), both in 0..1; of what is not all numbers
    nothing is known: .5."""

    prediction_id: str
    image_url: str
    predicted: str
    confidence: float
    drift: float
    doubt: float
    chosen: Chosen


def queue_of_live(engine: sa.Engine, settings: Settings, count: int, at_random: float) -> tuple[str, list[Candidate]]:
    """The live version, and what to label first of its latest window.

    Raises:
        NothingToDo: the bundle has no reference rows for what is served, so there is nothing to compare with.
        Everything that `monitoring.live.live_model` raises.
    """
    live = live_model(engine, settings)
    # Who has called an image something the model does not know was asked, and is not asked again.
    window = read_window(engine, live.version, settings.monitor.window, settings.monitor.sample, new=None)
    reference = read_reference(live.bundle, window.precision)
    if reference is None:
        raise NothingToDo(
            f"version {live.version} has no reference rows in {window.precision} to compare images with; label any"
        )
    # By version: an image that is sent to each must not be the one that is drawn each time, for it was trained on.
    return live.version, to_label(reference, window, count, at_random=at_random, key=f"labels of {live.version}")


def to_label(reference: Reference, window: Window, count: int, *, at_random: float, key: str) -> list[Candidate]:
    """At most `count` images of the window that are captured and have no label: a share of them drawn uniformly from
    all of these, the others the most informative of the rest, in turn, so that whoever stops early has labelled both.

    Args:
        at_random: the share in 0..1, to the nearest image.
        key: with the digests it fixes the draw, so nothing changes until something is labelled or comes in.
    """
    scores = window.scores
    unlabelled = [
        at
        for at, (label, image) in enumerate(zip(scores.labels, window.images, strict=True))
        if label is None and image is not None
    ]
    count = min(count, len(unlabelled))
    if not count:
        return []
    turns = [_nearest(at * at_random) < _nearest((at + 1) * at_random) for at in range(count)]
    drawn = sorted(unlabelled, key=lambda at: draw(key, scores.digests[at]))[: sum(turns)]
    drift = unlike_reference(reference.embedded, scores)
    doubt = _doubt(scores.probabilities.astype(np.float64))
    whole = np.asarray(np.isfinite(np.hstack([scores.embedding, scores.probabilities])).all(axis=1))
    taken = set(drawn)
    rest = [at for at in unlabelled if whole[at] and at not in taken]
    informative = _most_informative(rest, drift, doubt, scores.embedding, count - len(drawn))
    left = {True: iter(drawn), False: iter(informative)}
    found = []
    for random in turns:
        at = next(left[random], None)
        if at is None:  # what is left is not all numbers
            continue
        image = window.images[at]
        assert image is not None
        found.append(
            Candidate(
                window.ids[at], image, str(scores.predicted[at]), float(scores.confidence[at]), float(drift[at]),
                float(doubt[at]), "random" if random else "informative",
            )
        )  # fmt: skip
    return found


def _nearest(number: float) -> int:
    """The nearest whole number, of two the lower one."""
    return math.ceil(number - 0.5)


def _most_informative(
    rows: list[int], drift: Array, doubt: Array, embedding: NDArray[np.float32], count: int
) -> list[int]:
    """Of these rows of the window at most `count`, the most informative first.

    An image is worth the mean of its drift, where that is clear, and its doubt; less, the nearer it lies to one that is
    taken already (`monitoring.diversity`).
    """
    if not rows or not count:
        return []
    worth = (drift[rows] ** _CLEARLY + doubt[rows]) / 2
    return [rows[place] for place in apart(worth, embedding[rows].astype(np.float64), count)]


def _doubt(probabilities: Array) -> Array:
    """1 less the margin [N] of the likeliest class over the next one; .5 where they are not all numbers."""
    if probabilities.shape[1] < 2:
        return np.zeros(len(probabilities))
    two = np.sort(probabilities, axis=1)[:, -2:]
    doubt = np.clip(1.0 - (two[:, 1] - two[:, 0]), 0.0, 1.0)
    return np.where(np.isfinite(probabilities).all(axis=1), doubt, 0.5)
