"""Whether a bundle's graph does what its manifest and its reference rows say. That its bytes are the right ones is
verified by whoever opens it; these could be the right bytes of a wrong graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from perennial.bundle import Bundle
from perennial.errors import InvalidBundle
from perennial.graph import FLOAT32, OPENVINO, OUTPUTS, Graph, GraphOutput, available_precisions
from training.datasets import Row

_SUM_TOLERANCE: Final = 1e-3
#: Most that a probability may differ from the reference's. Processors round differently, in the fourth place.
_PROBABILITY_TOLERANCE: Final = 0.05


def opened(bundle: Bundle, *, threads: int) -> Graph:
    """The float32 graph. It and those of the other certified precisions that this processor has take pixels of the
    manifest's size, and give as many numbers as there are classes, numbers in a reference embedding, and properties.

    Raises:
        InvalidBundle: one cannot be loaded, or takes or gives something else.
    """
    able = available_precisions(OPENVINO)
    for precision in bundle.manifest.precisions:
        if precision in able and precision != FLOAT32:
            _check_shapes(bundle, Graph(bundle.graph_in(precision), threads=1, precision=precision))
    graph = Graph(bundle.graph, threads=threads)
    _check_shapes(bundle, graph)
    return graph


def faults_of(bundle: Bundle, rows: Sequence[Row], output: GraphOutput | None) -> tuple[str, ...]:
    """What is wrong with a graph's numbers and with the reference rows, in words.

    Args:
        output: what the float32 graph said of `rows` [N]; None if there are none.
    """
    faults = []
    table = pq.read_table(bundle.reference, columns=["image_digest", "confidence", *OUTPUTS])
    if output is not None:
        for name in OUTPUTS:
            if not np.isfinite(getattr(output, name)).all():
                faults.append(f"the graph's {name} are not finite on every row")
        worst = float(np.abs(output.probabilities.sum(axis=1) - 1.0).max())
        if worst > _SUM_TOLERANCE:
            faults.append(f"the graph's probabilities sum to 1 only within {worst:.3g}")
        faults += _unlike_reference(table, rows, output)
    if table.num_rows == 0:
        faults.append("the bundle has no reference rows")
    for name in ("confidence", *OUTPUTS):
        column = table.column(name).combine_chunks()
        values = column.flatten() if name != "confidence" else column
        if values.null_count or not np.isfinite(values.to_numpy(zero_copy_only=False)).all():
            faults.append(f"the reference rows' {name} are not all finite")
    return tuple(faults)


def _unlike_reference(table: pa.Table, rows: Sequence[Row], output: GraphOutput) -> list[str]:
    said = dict(zip(table["image_digest"].to_pylist(), table["probabilities"].to_pylist(), strict=True))
    both = [at for at, row in enumerate(rows) if row.digest in said]
    # Written so that a number that is none counts as far apart.
    unlike = [
        at
        for at in both
        if not np.abs(output.probabilities[at] - np.array(said[rows[at].digest])).max() <= _PROBABILITY_TOLERANCE
    ]
    if not unlike:
        return []
    return [
        f"the graph's probabilities are not those of the bundle's own reference on {len(unlike)} of the {len(both)} "
        f"rows that are in it, such as {rows[unlike[0]].location}"
    ]


def _check_shapes(bundle: Bundle, graph: Graph) -> None:
    manifest = bundle.manifest
    crop = manifest.input.crop
    reference = pq.read_table(bundle.reference, columns=["embedding"]).slice(0, 1)["embedding"].to_pylist()
    expected = {"probabilities": len(manifest.classes), "properties": len(manifest.properties)}
    if reference:
        expected["embedding"] = len(reference[0])
    try:
        output = graph.run(np.zeros((1, crop, crop, 3), np.uint8))
    except (RuntimeError, ValueError) as error:
        raise InvalidBundle(
            f"the {graph.precision} graph of {manifest.version} does not run on {crop} x {crop} pixels, as its "
            f"manifest says: {error}"
        ) from error
    for name, count in expected.items():
        given = getattr(output, name).shape
        if given != (1, count):
            raise InvalidBundle(
                f"the {graph.precision} graph of {manifest.version} gives {given[-1]} {name} an image; by its manifest "
                f"and reference there are {count}"
            )
