"""The tables of a bundle: its reference rows, and the images it was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from perennial.chance import ChanceEffects
from perennial.effects import chance_effects
from perennial.graph import GraphOutput
from training.datasets import Row


def reference_table(
    rows: Sequence[Row], classes: Sequence[str], output: GraphOutput, *, learnt: frozenset[str] = frozenset()
) -> pa.Table:
    """`reference.parquet`: those of the rows [N] that are reference rows, as the graph scored them. A row without a
    label has none there either, nor one whose header is not known a format, mode and size. `learnt` are the digests of
    the rows that took part in training."""
    at = [index for index, row in enumerate(rows) if row.reference]
    chosen = [rows[index] for index in at]
    headers = [row.header for row in chosen]
    best = output.probabilities[at].argmax(axis=1)

    def vectors(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> pa.Array:
        return pa.array(list(values[at]), pa.list_(pa.float32()))

    return pa.table(
        {
            "id": pa.array([row.digest for row in chosen], pa.string()),
            "image_digest": pa.array([row.digest for row in chosen], pa.string()),
            "label": pa.array([row.label or None for row in chosen], pa.string()),
            "predicted": pa.array([classes[index] for index in best], pa.string()),
            "confidence": pa.array(output.probabilities[at].max(axis=1), pa.float32()),
            "probabilities": vectors(output.probabilities),
            "embedding": vectors(output.embedding),
            "properties": vectors(output.properties),
            "held_out": pa.array([row.digest not in learnt for row in chosen], pa.bool_()),
            "format": pa.array([header and header.format for header in headers], pa.string()),
            "mode": pa.array([header and header.mode for header in headers], pa.string()),
            "width": pa.array([header and header.width for header in headers], pa.int32()),
            "height": pa.array([header and header.height for header in headers], pa.int32()),
        }
    )


def reference_chance(
    rows: Sequence[Row], classes: Sequence[str], output: GraphOutput, *, learnt: frozenset[str] = frozenset()
) -> ChanceEffects | None:
    """How far apart halves of the same reference rows are by chance: of the properties of all, of the outputs of those
    that the model has not learnt from."""
    at = [index for index, row in enumerate(rows) if row.reference]
    unseen = [index for index in at if rows[index].digest not in learnt]
    predicted = np.array(classes)[output.probabilities[unseen].argmax(axis=1)] if unseen else np.empty(0, dtype=str)
    return chance_effects(output.properties[at], output.probabilities[unseen], predicted)


def dataset_table(rows: Sequence[Row]) -> pa.Table:
    """`dataset.parquet`: every image that was trained on, validated on or tested on, and in which split."""
    return pa.table(
        {
            "location": pa.array([row.location for row in rows], pa.string()),
            "image_digest": pa.array([row.digest for row in rows], pa.string()),
            "label": pa.array([row.label for row in rows], pa.string()),
            "split": pa.array([row.split for row in rows], pa.string()),
            "weight": pa.array([row.weight for row in rows], pa.float32()),
            "origin": pa.array([row.origin for row in rows], pa.string()),
        }
    )
