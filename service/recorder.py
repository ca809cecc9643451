"""Records predictions so that one answered with 200 survives the process being killed the next instant.

Each is appended to a journal on local disk before its answer leaves, and goes from there into the ledger in batches,
exactly once by its id. The database may be away for as long as the disk lasts.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import sqlalchemy as sa

from perennial.errors import LedgerUnavailable
from perennial.ledger import predictions
from perennial.ledger.predictions import Prediction
from service import metrics
from service.delivery import Delivery
from service.journal import Journal
from service.problems import logger

REFUSED: Final = "refused.jsonl"

_SEGMENT_BYTES: Final = 16 * 2**20
_BATCH_BYTES: Final = 256 * 1024  # a few hundred rows in a transaction
_GATHER_SECONDS: Final = 0.1
_LENGTHS: Final = struct.Struct("<4I")  # of the text and the three vectors, in bytes
_VECTORS: Final = ("probabilities", "embedding", "properties")
_SCALARS: Final[tuple[str, ...]] = tuple(
    name for name in Prediction.__dataclass_fields__ if name not in (*_VECTORS, "at")
)
_scalars_of: Final = attrgetter(*_SCALARS)


class Recorder:
    """Keeps predictions, first in a journal under `folder`, then in the ledger.

    Args:
        engine: gives the ledger; raises LedgerUnavailable while it is away.
        folder: for the journal; several workers may share it.
        min_free_bytes: room to leave on the disk of `folder`.

    Raises:
        InvalidSettings: the folder cannot be written.
    """

    def __init__(self, engine: Callable[[], sa.Engine], folder: Path, *, min_free_bytes: int) -> None:
        self._engine = engine
        self._folder = folder
        self._began = time.monotonic()
        self._journal = Journal(folder, segment_bytes=_SEGMENT_BYTES, min_free_bytes=min_free_bytes)
        self._delivery = Delivery(
            "predictions",
            self._journal,
            self._deliver,
            batch_bytes=_BATCH_BYTES,
            seconds=_GATHER_SECONDS,
            waiting=metrics.pending_rows,
        )

    def record(self, row: Prediction) -> None:
        """Returns when the row would survive the end of this process. May be called from any thread.

        Raises:
            JournalFull: it is not recorded, so must not be answered with 200.
        """
        self._journal.append(encode(row))

    def hurry(self) -> None:
        """Bring what waits into the ledger now."""
        self._delivery.hurry()

    @property
    def behind_seconds(self) -> float:
        """How long ago everything recorded before was in the ledger, at most since this process began."""
        return time.monotonic() - max(self._began, self._delivery.caught_up_at)

    @property
    def caught_up_at(self) -> float:
        """The last moment (`time.monotonic`) at which everything recorded before was in the ledger."""
        return self._delivery.caught_up_at

    def close(self, seconds: float) -> None:
        """Bring what waits into the ledger for at most so long; the rest is for the next start."""
        self._delivery.close(seconds)

    def _deliver(self, records: Sequence[bytes]) -> None:
        rows = [decode(record) for record in records]
        engine = self._engine()
        try:
            predictions.record(engine, rows)
        except LedgerUnavailable:
            raise
        except Exception:  # noqa: BLE001 - one of them cannot be written; which one, and the others must not wait for it
            for row in rows:
                self._deliver_alone(engine, row)

    def _deliver_alone(self, engine: sa.Engine, row: Prediction) -> None:
        try:
            predictions.record(engine, [row])
        except LedgerUnavailable:
            raise
        except Exception:  # noqa: BLE001 - as above; it is kept where a person can look at it
            logger.exception("prediction %s cannot be written; it is kept in %s", row.id, self._folder / REFUSED)
            metrics.refused_rows.inc()
            with (self._folder / REFUSED).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row), default=_readable) + "\n")


def encode(row: Prediction) -> bytes:
    """A row as bytes: its scalars as JSON, its vectors as little-endian float32."""
    at = int(row.at.timestamp() * 1_000_000)
    text = orjson.dumps([at, *_scalars_of(row)])
    vectors = [np.asarray(getattr(row, name), dtype="<f4").tobytes() for name in _VECTORS]
    return b"".join([_LENGTHS.pack(len(text), *map(len, vectors)), text, *vectors])


def decode(record: bytes) -> Prediction:
    """The row that `encode` made these bytes of."""
    lengths = _LENGTHS.unpack_from(record)
    parts: list[bytes] = []
    start = _LENGTHS.size
    for length in lengths:
        parts.append(record[start : start + length])
        start += length
    at, *scalars = orjson.loads(parts[0])
    fields: dict[str, Any] = dict(zip(_SCALARS, scalars, strict=True))
    for name, part in zip(_VECTORS, parts[1:], strict=True):
        fields[name] = np.frombuffer(part, dtype="<f4")
    return Prediction(at=datetime.fromtimestamp(at / 1_000_000, UTC), **fields)


def _readable(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else str(value)
