"""What the model gets wrong on the test images, and how: the answers that cost the most, the pairs it confuses, how
far its confidence can be trusted, and where the mistakes lie among the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from perennial.bundle import Estimate
from training.datasets import Row
from training.evaluate import accuracy_interval, confusion
from training.reliability import Reliability, before_temperature, reliability

MOST_ANSWERS: Final = 24
MOST_PAIRS: Final = 12
#: Rows on the map, and up to how many t-SNE lays out: 150 take it .2 s, 1,000 take 1.4 s.
MOST_POINTS: Final = 1500
MOST_TSNE: Final = 1000
_TSNE_STEPS: Final = 500
_FEWEST_POINTS: Final = 8
_UNSURE: Final = 0.75  # a right answer with less is worth a look


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said of one row: `probability` of its answer, `of_label` of the given label, and the loss in nats
    (minus the logarithm of `of_label`)."""

    row: Row
    answered: str
    probability: float
    of_label: float
    loss: float

    @property
    def right(self) -> bool:
        return self.answered == self.row.label


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """`count` images of class `label` were answered `answered`; `share` of all images of that class."""

    label: str
    answered: str
    count: int
    share: Estimate


@dataclass(frozen=True, slots=True)
class Point:
    """One row on the map; `x` and `y` in 0..1, `label` a class's index."""

    x: float
    y: float
    label: int
    right: bool


@dataclass(frozen=True, slots=True)
class EmbeddingMap:
    """A plane on which rows with like embeddings lie close, by `method`; the points are a sample of `rows` rows."""

    method: str
    points: tuple[Point, ...]
    rows: int


@dataclass(frozen=True, slots=True)
class ErrorAnalysis:
    """`worst` has the highest loss first: wrong answers, and right ones that the model was unsure of. `confused` has
    the most frequent pairs first, of `pairs` in all. `before` and `after` are without and with temperature scaling."""

    classes: tuple[str, ...]
    counts: NDArray[np.int64]
    mistakes: int
    worst: tuple[Answer, ...]
    pairs: int
    confused: tuple[ConfusedPair, ...]
    before: Reliability
    after: Reliability
    map: EmbeddingMap | None


def analyse(
    rows: Sequence[Row],
    probabilities: NDArray[np.float32],
    embedding: NDArray[np.float32],
    classes: Sequence[str],
    temperature: float,
    seed: int = 0,
) -> ErrorAnalysis:
    """Everything the report shows about these rows, of which there is at least one.

    Args:
        rows: N test rows.
        probabilities: [N, K], as the graph gives them, after temperature scaling.
        embedding: [N, E].
        classes: the K names, in the order of the columns.
        temperature: by which the logits were divided.
    """
    index = {name: at for at, name in enumerate(classes)}
    labels = np.array([index[row.label] for row in rows])
    answered = probabilities.argmax(axis=1)
    counts = confusion([row.label for row in rows], [classes[at] for at in answered], classes)
    pairs, confused = _confused(counts, classes)
    return ErrorAnalysis(
        classes=tuple(classes),
        counts=counts,
        mistakes=int((answered != labels).sum()),
        worst=_worst(rows, probabilities, labels, classes),
        pairs=pairs,
        confused=confused,
        before=reliability(before_temperature(probabilities, temperature), labels.tolist(), seed),
        after=reliability(probabilities, labels.tolist(), seed),
        map=embedding_map(embedding, labels, answered == labels, seed),
    )


def _worst(
    rows: Sequence[Row], probabilities: NDArray[np.float32], labels: NDArray[np.int64], classes: Sequence[str]
) -> tuple[Answer, ...]:
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    answered = probabilities.argmax(axis=1)
    worth = (answered != labels) | (of_label < _UNSURE)
    return tuple(
        Answer(
            row=rows[at],
            answered=classes[answered[at]],
            probability=float(probabilities[at, answered[at]]),
            of_label=float(of_label[at]),
            loss=float(-np.log(max(of_label[at], 1e-12))),
        )
        for at in np.argsort(of_label, kind="stable")
        if worth[at]
    )[:MOST_ANSWERS]


def _confused(counts: NDArray[np.int64], classes: Sequence[str]) -> tuple[int, tuple[ConfusedPair, ...]]:
    wrong = counts - np.diag(counts.diagonal())
    support = counts.sum(axis=1)
    order = [np.unravel_index(at, counts.shape) for at in np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]]
    return int((wrong > 0).sum()), tuple(
        ConfusedPair(
            label=classes[label],
            answered=classes[answer],
            count=int(wrong[label, answer]),
            share=accuracy_interval(int(wrong[label, answer]), int(support[label])),
        )
        for label, answer in order
        if wrong[label, answer]
    )


def embedding_map(
    embedding: NDArray[np.float32], labels: NDArray[np.int64], right: NDArray[np.bool_], seed: int = 0
) -> EmbeddingMap | None:
    """A random sample of at most 1,500 rows on a plane: by t-SNE (van der Maaten and Hinton, 2008) up to 1,000 rows, by
    their first two principal components beyond. None where there are too few rows to make a map of."""
    rows = len(embedding)
    chosen = np.sort(np.random.default_rng(seed).permutation(rows)[:MOST_POINTS])
    vectors = embedding[chosen].astype(np.float64)
    if len(vectors) < _FEWEST_POINTS or not vectors.shape[1] or np.allclose(vectors, vectors[0]):
        return None
    centred = vectors - vectors.mean(axis=0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:2]
    plane = np.zeros((len(centred), 2))
    plane[:, : len(directions)] = centred @ directions.T
    method = "principal components"
    if len(centred) <= MOST_TSNE:
        method, plane = "t-SNE", _tsne(centred, plane, seed)
    low, high = plane.min(axis=0), plane.max(axis=0)
    unit = (plane - low) / np.where(high > low, high - low, 1.0)
    points = tuple(
        Point(float(x), float(y), int(labels[at]), bool(right[at])) for (x, y), at in zip(unit, chosen, strict=True)
    )
    return EmbeddingMap(method, points, rows)


def _tsne(vectors: NDArray[np.float64], start: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    from sklearn.manifold import TSNE

    layout = TSNE(
        perplexity=min(30.0, (len(vectors) - 1) / 3),
        # From the principal components, the map keeps the large distances too (Kobak and Linderman, 2021).
        init=(1e-4 * start / start[:, 0].std()).astype(np.float32),
        max_iter=_TSNE_STEPS,
        random_state=seed,
        n_jobs=1,
    )
    with threadpool_limits(1):  # on several threads the last bits, and with them the map, would differ
        return np.asarray(layout.fit_transform(vectors), np.float64)
