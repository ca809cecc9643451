"""A queue of records on local disk that outlives the process: what was appended is there after a SIGKILL.

Each process appends to a segment of its own and holds a lock on it; the lock of a process that died is free, and the
next one that looks takes its segments over. A record is whole or absent: its length and checksum come first, so a
torn one at the end of a dead process's segment is seen for what it is.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perennial.errors import InvalidSettings, JournalFull
from service.problems import logger

_HEADER: Final = struct.Struct("<II")  # length of the record, CRC-32 of its bytes
_SUFFIX: Final = ".journal"
_LOOK_AT_DISK_SECONDS: Final = 0.5


@dataclass(slots=True)
class _Segment:
    """One file. `read`: bytes that were acknowledged; `written`: bytes appended; `records`: how many lie between."""

    path: Path
    descriptor: int
    written: int = 0
    read: int = 0
    records: int = 0

    def close(self) -> None:
        os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class Batch:
    """Records in the order they were appended, and where the next ones begin. Acknowledge it when they are safe
    elsewhere; until then the same records are read again."""

    records: Sequence[bytes]
    segment: _Segment
    end: int


class Journal:
    """Appended to from any thread, read by one.

    Args:
        folder: holds the segments of every process that shares it.
        segment_bytes: a segment that is longer than this is closed, and deleted once it is acknowledged.
        min_free_bytes: appending is refused when the disk has less room than this left.
        max_pending_bytes: appending is refused while more than this waits; None bounds it by the disk alone.

    Raises:
        InvalidSettings: the folder cannot be made or written.
    """

    def __init__(
        self, folder: Path, *, segment_bytes: int, min_free_bytes: int, max_pending_bytes: int | None = None
    ) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._min_free_bytes = min_free_bytes
        self._max_pending_bytes = max_pending_bytes
        self._lock = threading.Lock()
        self._look_at_disk_at = 0.0
        self._full: str | None = None
        self._left_behind: list[_Segment] = []  # of processes that died, oldest first
        self._closed: list[_Segment] = []  # our own full ones, oldest first
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._active = self._begin_segment()
        except OSError as error:
            raise InvalidSettings(f"{folder} cannot be written ({error.strerror}); see the setting home") from error
        self.take_over()

    def append(self, record: bytes) -> None:
        """Returns when the record would survive the end of this process.

        Raises:
            JournalFull: the disk has too little room left, or does not take it; nothing was written.
        """
        data = _HEADER.pack(len(record), zlib.crc32(record)) + record
        with self._lock:
            try:
                self._refuse_overflow()
                if self._active.written >= self._segment_bytes:
                    self._rotate()
                written = os.write(self._active.descriptor, data)
                if written < len(data):
                    raise OSError(f"only {written} of {len(data)} bytes were taken")
            except OSError as error:
                os.ftruncate(self._active.descriptor, self._active.written)
                raise JournalFull(f"{self._folder} takes no more ({error}); free some disk space") from error
            self._active.written += len(data)
            self._active.records += 1

    def read(self, most_bytes: int) -> Batch | None:
        """The oldest records that were not acknowledged, about `most_bytes` of them; None if there are none."""
        for segment in self._segments():
            if segment.read >= segment.written:
                continue
            batch = _read(segment, most_bytes)
            if batch is not None:
                return batch
            self._put_damaged_aside(segment)
        return None

    def acknowledge(self, batch: Batch) -> None:
        """The records of a batch are safe elsewhere. A segment with nothing else in it is given back to the disk."""
        segment = batch.segment
        with self._lock:
            segment.read = batch.end
            segment.records -= len(batch.records)
            if segment.read < segment.written:
                return
            if segment is self._active:
                os.ftruncate(segment.descriptor, 0)
                segment.read = segment.written = 0
            else:
                self._delete(segment)

    def take_over(self) -> None:
        """Look for segments of processes that died, and make them ours."""
        held = {segment.path for segment in self._segments()}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            if path not in held and (segment := _taken_over(path)) is not None:
                if segment.written == 0:
                    self._delete(segment)
                else:
                    logger.info("taking over %d bytes of %s, left by a process that died", segment.written, path.name)
                    self._left_behind.append(segment)

    @property
    def pending(self) -> int:
        """Records of this process's segments that were not acknowledged."""
        return sum(segment.records for segment in self._segments())

    @property
    def pending_bytes(self) -> int:
        """Bytes of this process's segments that were not acknowledged."""
        return sum(segment.written - segment.read for segment in self._segments())

    def close(self) -> None:
        """Let go of the segments; what was not acknowledged stays for the next process."""
        with self._lock:
            for segment in self._segments():
                if segment.read >= segment.written:
                    segment.path.unlink(missing_ok=True)
                segment.close()
            self._left_behind, self._closed = [], []

    def _segments(self) -> list[_Segment]:
        return [*self._left_behind, *self._closed, self._active]

    def _begin_segment(self) -> _Segment:
        # Names sort by time. A hidden name until the lock is held, so that nobody takes over what has just begun.
        name = f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(3)}{_SUFFIX}"
        hidden, path = self._folder / f".{name}", self._folder / name
        descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.rename(hidden, path)
        return _Segment(path, descriptor)

    def _rotate(self) -> None:
        fresh = self._begin_segment()
        self._closed.append(self._active)
        self._active = fresh

    def _put_damaged_aside(self, segment: _Segment) -> None:
        rest = os.pread(segment.descriptor, segment.written - segment.read, segment.read)
        kept = segment.path.with_suffix(".damaged")
        kept.write_bytes(rest)
        logger.error("%d bytes of %s are not whole records; they are kept in %s", len(rest), segment.path.name, kept)
        with self._lock:
            if segment is self._active:
                self._rotate()
            segment.read = segment.written
            self._delete(segment)

    def _delete(self, segment: _Segment) -> None:
        for segments in (self._left_behind, self._closed):
            if segment in segments:
                segments.remove(segment)
        segment.path.unlink(missing_ok=True)
        segment.close()

    def _refuse_overflow(self) -> None:
        if self._max_pending_bytes is not None and self.pending_bytes > self._max_pending_bytes:
            raise JournalFull(f"more than {self._max_pending_bytes:,} bytes wait in {self._folder}")
        now = time.monotonic()
        if now >= self._look_at_disk_at:
            self._look_at_disk_at = now + _LOOK_AT_DISK_SECONDS
            disk = os.statvfs(self._folder)
            free = disk.f_bavail * disk.f_frsize
            self._full = None
            if free < self._min_free_bytes:
                self._full = (
                    f"the disk of {self._folder} has {free:,} bytes left and {self._min_free_bytes:,} are kept free "
                    "(serve.min_free_bytes); free some disk space"
                )
        if self._full is not None:
            raise JournalFull(self._full)


def _read(segment: _Segment, most_bytes: int) -> Batch | None:
    waiting = segment.written - segment.read
    data = os.pread(segment.descriptor, min(most_bytes, waiting), segment.read)
    if len(data) >= _HEADER.size:
        first = _HEADER.size + _HEADER.unpack_from(data)[0]
        if len(data) < first <= waiting:  # one record that is longer than a batch
            data = os.pread(segment.descriptor, first, segment.read)
    records, size = _records(data)
    return Batch(records, segment, segment.read + size) if records else None


def _records(data: bytes) -> tuple[list[bytes], int]:
    """The whole records at the beginning, and how many bytes they take."""
    found: list[bytes] = []
    at = 0
    while at + _HEADER.size <= len(data):
        length, checksum = _HEADER.unpack_from(data, at)
        record = data[at + _HEADER.size : at + _HEADER.size + length]
        if len(record) < length or zlib.crc32(record) != checksum:
            break
        found.append(record)
        at += _HEADER.size + length
    return found, at


def _taken_over(path: Path) -> _Segment | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # its process lives
        os.close(descriptor)
        return None
    if not path.exists():  # its process ended well and deleted it between the two calls
        os.close(descriptor)
        return None
    size = os.fstat(descriptor).st_size
    return _Segment(path, descriptor, written=size, records=_count(descriptor, size))


def _count(descriptor: int, size: int) -> int:
    """How many records a segment says it has, from their lengths alone."""
    count = at = 0
    while len(header := os.pread(descriptor, _HEADER.size, at)) == _HEADER.size:
        at += _HEADER.size + _HEADER.unpack(header)[0]
        count += at <= size
    return count
