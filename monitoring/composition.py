"""What images a window, or a reference, is made of: formats, colour modes, sizes, sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from perennial.ledger.predictions import Prediction

#: Columns of `reference.parquet` that say how an image came in. Bundles that were made before do not have them.
HEADER: Final = ("format", "mode", "width", "height")


@dataclass(frozen=True, slots=True)
class Collection:
    """How the images came in: shares of the window (or of a reference, which has no sources) by format, colour mode,
    size ("640x480") and source ("" where none was said), largest first."""

    formats: dict[str, float]
    modes: dict[str, float]
    sizes: dict[str, float]
    sources: dict[str, float]
    #: The share of the window that is one and the same image, byte for byte.
    most_repeated: float
    #: Of its newest third.
    newest_sources: dict[str, float] = field(default_factory=dict)


def collection_of(received: Sequence[Prediction]) -> Collection:
    """How the images of these rows came in, oldest first."""
    newest = received[2 * len(received) // 3 :]
    return Collection(
        _shares([row.format for row in received]),
        _shares([row.mode for row in received]),
        _shares([f"{row.width}x{row.height}" for row in received]),
        _shares([row.source or "" for row in received]),
        max(_shares([row.image_digest for row in received]).values(), default=0.0),
        _shares([row.source or "" for row in newest]),
    )


def reference_collection(table: pa.Table) -> Collection | None:
    """How those reference images came in that have all of a header; None where none has, or the columns are not
    there."""
    there = set(HEADER) <= set(table.column_names)
    rows = table.select(list(HEADER)).drop_null().to_pylist() if there else []
    if not rows:
        return None
    sizes = _shares([f"{row['width']}x{row['height']}" for row in rows])
    formats, modes = (_shares([row[name] for row in rows]) for name in ("format", "mode"))
    return Collection(formats, modes, sizes, sources={}, most_repeated=1 / len(rows))


def _shares(values: Sequence[str]) -> dict[str, float]:
    return {value: count / len(values) for value, count in Counter(values).most_common()}
