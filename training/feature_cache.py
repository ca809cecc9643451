"""Vectors by image digest, kept on disk: computed once, read in place.

Two files: the vectors, one after the other as plain float32, and a SQLite index of the row at which each digest's
vector stands. Vectors are read through a memory map, so a hundred thousand of them need no memory of their own.

Nothing in it can run code. Several processes may use it at once: who appends holds the index's write lock. A vector is
on disk before the index knows of it: what a crash leaves half written is never read, and the next one writes over it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]

_INDEX: Final = "index.sqlite"
_VECTORS: Final = "vectors.f32"
_BUSY_SECONDS: Final = 30.0
_ASKED_AT_ONCE: Final = 500  # SQLite bounds the parameters of a query
_RESIDENT: Final = 64 * 2**20  # bytes; more than that is gathered in a file instead of in memory


class Stored(NamedTuple):
    """Where a vector is: its row in the file, and the CRC-32 of its bytes."""

    row: int
    crc: int


class DamagedCache(Exception):
    """What the files hold is not what was written. The cache opens anew, empty."""


class FeatureCache:
    """One folder of vectors of one width, for one way to compute them.

    Args:
        folder: made if it is not there. Files in it that are damaged are deleted, with a warning.
        width: D, how many numbers a vector has.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self.width: Final = width
        self._folder = folder
        self._bytes: Final = 4 * width
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except (DamagedCache, sqlite3.DatabaseError) as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, or a full disk
                raise
            self._make_anew(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """What `gather` returned stays readable."""
        self._index.close()
        os.close(self._vectors)

    def find(self, digests: Sequence[str]) -> dict[str, Stored]:
        """Where the vector of each of these is; those that are not known are left out."""
        found: dict[str, Stored] = {}
        for start in range(0, len(digests), _ASKED_AT_ONCE):
            some = {bytes.fromhex(digest): digest for digest in digests[start : start + _ASKED_AT_ONCE]}
            query = f"SELECT digest, row, crc FROM vectors WHERE digest IN ({','.join('?' * len(some))})"  # noqa: S608
            for key, row, crc in self._index.execute(query, list(some)):
                found[some[key]] = Stored(row, crc)
        return found

    def append(self, digests: Sequence[str], vectors: Floats) -> dict[str, Stored]:
        """Keep `vectors` [N, D], one a digest, and say where. One that another process brought first stays as it is."""
        if vectors.shape != (len(digests), self.width) or vectors.dtype != np.float32:
            raise ValueError(f"not float32 [{len(digests)}, {self.width}]: {vectors.dtype} {list(vectors.shape)}")
        self._index.execute("BEGIN IMMEDIATE")
        try:
            known = self.find(digests)
            new = {digest: vector.tobytes() for digest, vector in zip(digests, vectors, strict=True)}
            new = {digest: data for digest, data in new.items() if digest not in known}
            (first,) = self._index.execute("SELECT COALESCE(MAX(row) + 1, 0) FROM vectors").fetchone()
            _write(self._vectors, b"".join(new.values()), first * self._bytes)
            for row, (digest, data) in enumerate(new.items(), start=first):
                known[digest] = Stored(row, zlib.crc32(data))
                self._index.execute(
                    "INSERT INTO vectors (row, digest, crc) VALUES (?, ?, ?)",
                    (row, bytes.fromhex(digest), known[digest].crc),
                )
        except BaseException:
            if self._index.in_transaction:  # SQLite ends it itself when the disk is full
                self._index.execute("ROLLBACK")
            raise
        self._index.execute("COMMIT")
        return known

    def gather(self, stored: Sequence[Stored]) -> Floats:
        """These vectors [N, D], in this order and read-only, each checked against what was written.

        Where they follow each other on disk they are mapped as they lie there. Others are copied: into memory if that
        is little, else into a temporary file, which is mapped.

        Raises:
            DamagedCache: a vector is not the one that was written. The cache is empty now.
        """
        if not stored:
            return np.empty((0, self.width), np.float32)
        shape = (len(stored), self.width)
        first = stored[0].row
        if all(one.row == first + at for at, one in enumerate(stored)):
            for _ in self._read(stored):
                pass
            with os.fdopen(os.dup(self._vectors), "rb") as file:  # not by its name, which may be another file's by now
                return np.memmap(file, np.float32, "r", first * self._bytes, shape)
        if len(stored) * self._bytes > _RESIDENT:
            with tempfile.TemporaryFile(dir=self._folder) as file:  # without a name: its room goes with the array
                for chunk in self._read(stored):
                    file.write(chunk)
                file.flush()
                return np.memmap(file, np.float32, "r", 0, shape)
        copy = np.frombuffer(b"".join(self._read(stored)), np.float32)
        return copy.reshape(shape)

    def _read(self, stored: Sequence[Stored]) -> Iterator[bytes]:
        """Not through a map: what is looked at there is counted as this process's memory."""
        for one in stored:
            data = os.pread(self._vectors, self._bytes, one.row * self._bytes)
            if len(data) != self._bytes or zlib.crc32(data) != one.crc:
                damage = DamagedCache(f"row {one.row} is not what was written")
                self.close()
                self._make_anew(damage)
                raise damage
            yield data

    def _open(self) -> None:
        self._index = sqlite3.connect(self._folder / _INDEX, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            self._index.execute("PRAGMA journal_mode=WAL")
            self._index.execute("PRAGMA synchronous=NORMAL")
            self._index.execute(
                "CREATE TABLE IF NOT EXISTS vectors (row INTEGER PRIMARY KEY, digest BLOB UNIQUE, crc INTEGER NOT NULL)"
            )
            (rows,) = self._index.execute("SELECT COALESCE(MAX(row) + 1, 0) FROM vectors").fetchone()
            self._vectors = os.open(self._folder / _VECTORS, os.O_RDWR | os.O_CREAT, 0o666)
        except BaseException:
            self._index.close()
            raise
        size = os.fstat(self._vectors).st_size
        if size < rows * self._bytes:
            self.close()
            raise DamagedCache(f"{_VECTORS} ends after {size // self._bytes} of {rows} rows")

    def _make_anew(self, error: Exception) -> None:
        logger.warning("the embedding cache %s is damaged (%s) and is made anew", self._folder, error)
        for path in (self._folder / _VECTORS, *self._folder.glob(f"{_INDEX}*")):
            # Not cut to nothing: another process may have it mapped.
            path.unlink(missing_ok=True)
        self._open()


def _write(file: int, data: bytes, offset: int) -> None:
    """All of it, on the disk itself."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, offset)
        rest, offset = rest[written:], offset + written
    os.fsync(file)
