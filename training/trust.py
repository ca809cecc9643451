"""Everything that is looked at before an accuracy is believed, in one call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from perennial.bundle import Estimate, Finding
from training import embedding_duplicates, leaks
from training.datasets import LabelledImages, Row
from training.embedding_duplicates import Neighbours
from training.label_shuffle import label_shuffle_control, shuffle_findings, suspiciously_good


def findings(
    images: LabelledImages,
    rows: Sequence[Row],
    features: NDArray[np.float32],
    *,
    seed: int,
    accuracy: Estimate | None = None,
    baseline: Estimate | None = None,
) -> tuple[Finding, ...]:
    """What a person should look at before trusting the metrics, of the data and of the result.

    In order: what reading the data found (near-duplicates), metadata that tell the class, held-out images that the
    backbone takes for training images, shuffled labels that can be predicted, an accuracy that is too good.

    Args:
        images: as loaded.
        rows, features: the embedded rows and their features [N, D].
        accuracy: on the test rows, with its interval; None before it is known.
        baseline: the simple model's, on the same rows.
    """
    original = [row for row in images.rows if row.digest in images.metadata]
    neighbours = embedding_duplicates.embedding_duplicates(features, rows, groups=images.groups)
    held_out = [row.split != "train" for row in rows]
    index = {label: at for at, label in enumerate(images.classes)}
    control = label_shuffle_control(
        features,
        [index[row.label] for row in rows],
        held_out,
        groups=_look_alikes(images, rows, neighbours),
        seed=seed,
    )
    tests = sum(row.split == "test" for row in rows)
    return (
        *images.findings,
        *leaks.findings([images.metadata[row.digest] for row in original], [row.label for row in original], seed),
        *embedding_duplicates.findings(neighbours, sum(held_out)),
        *shuffle_findings(control),
        *(suspiciously_good(accuracy, tests, baseline) if accuracy is not None else ()),
    )


def _look_alikes(images: LabelledImages, rows: Sequence[Row], neighbours: Sequence[Neighbours]) -> list[int]:
    """Near-duplicates by hash or by embedding, as one group number a row."""
    place = {row.digest: at for at, row in enumerate(rows)}
    links = [(place[pair.held_out.digest], place[pair.trained.digest]) for pair in neighbours]
    links += [(place[one], place[other]) for one, other in images.groups.items() if one in place and other in place]
    ends = np.array(links, dtype=np.intp).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(len(rows), len(rows)))
    numbers: list[int] = connected_components(graph, directed=False)[1].tolist()
    return numbers
