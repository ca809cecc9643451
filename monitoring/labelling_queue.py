"""Which images to label first: those that drifted, that the model is unsure of, and that are not like one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from monitoring.diversity import apart
from monitoring.live import live_model
from monitoring.two_sample import unlike_reference
from monitoring.window import Reference, Window, read_reference, read_window
from perennial.errors import NothingToDo
from perennial.settings import Settings

Array = NDArray[np.float64]

#: Drift counts by this power: of rows that are like the reference half are above .5, and only what is clearly unlike it
#: is to outweigh doubt.
_CLEARLY: Final = 4


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image without a label. `drift` is how unlike the reference it is, `doubt` how unsure the model was (1 less the
    margin between its two likeliest classes), both in 0..1."""

    prediction_id: str
    image_url: str
    predicted: str
    confidence: float
    drift: float
    doubt: float


def queue_of_live(engine: sa.Engine, settings: Settings, count: int) -> tuple[str, list[Candidate]]:
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
    return live.version, most_informative(reference, window, count)


def most_informative(reference: Reference, window: Window, count: int, *, seed: int = 0) -> list[Candidate]:
    """At most `count` images of the window that are captured and have no label, the most informative first.

    An image is worth the mean of its drift, where that is clear, and its doubt; less, the nearer it lies to one that is
    asked for already (`monitoring.diversity`).
    """
    scores = window.scores
    if not len(scores):
        return []
    whole = np.asarray(np.isfinite(np.hstack([scores.embedding, scores.probabilities])).all(axis=1))
    drift = unlike_reference(reference.embedded, scores, seed=seed)
    asked = [
        at
        for at, (label, image) in enumerate(zip(scores.labels, window.images, strict=True))
        if label is None and image is not None and whole[at]
    ]
    if not asked:
        return []
    doubt = _doubt(scores.probabilities[asked].astype(np.float64))
    worth = (drift[asked] ** _CLEARLY + doubt) / 2
    chosen = apart(worth, scores.embedding[asked].astype(np.float64), count)
    found = []
    for place in chosen:
        at = asked[place]
        image = window.images[at]
        assert image is not None
        found.append(
            Candidate(
                window.ids[at], image, str(scores.predicted[at]), float(scores.confidence[at]), float(drift[at]),
                float(doubt[place]),
            )
        )  # fmt: skip
    return found


def _doubt(probabilities: Array) -> Array:
    """1 less the margin [N] of the likeliest class over the next one."""
    if probabilities.shape[1] < 2:
        return np.zeros(len(probabilities))
    two = np.sort(probabilities, axis=1)[:, -2:]
    return np.asarray(np.clip(1.0 - (two[:, 1] - two[:, 0]), 0.0, 1.0))
