"""What the service and its inference process say to each other.

Bytes of images go one way and vectors the other way through memory that both have mapped, divided into slots. Which
slot holds what is said in small messages over a socket that keeps their borders (SOCK_SEQPACKET): any of the process's
threads may take the next one.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import orjson
from numpy.typing import NDArray

from perennial.errors import InvalidImage
from perennial.images import ImageHeader

Floats = NDArray[np.float32]

_JOB: Final = struct.Struct("<IIQQQQ")  # slot, length of the image, model, and a split: model (0: none), salt, below
_REPLY: Final = struct.Struct("<IBIQ3d3I")  # slot, kind, batch, model, three times, lengths of three vectors
#: No message is longer.
MESSAGE_BYTES: Final = 32 * 1024
_MAX_TEXT: Final = 2000  # characters, each up to twelve bytes of a message
_SCORED, _REFUSED, _FAILED = range(3)
_SPLIT: Final = 2**64
# Memory of a slot that held more than this is given back to the system.
_KEEP_BYTES: Final = 4 * 2**20


class ImageMemory:
    """Memory that several processes have mapped: `count` slots of `size` bytes each. Only what was written takes room.

    Args:
        descriptor: of the memory that another process made; None makes it.
    """

    def __init__(self, count: int, size: int, descriptor: int | None = None) -> None:
        self.count: Final = count
        self.size: Final = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        if descriptor is None:
            descriptor = os.memfd_create("perennial-images")
            os.ftruncate(descriptor, self.count * self.size)
        self.descriptor: Final = descriptor
        self._memory = mmap.mmap(descriptor, self.count * self.size)

    def put(self, slot: int, data: bytes) -> None:
        if len(data) > self.size:  # it would run into the next one
            raise ValueError(f"{len(data)} bytes do not fit into a slot of {self.size}")
        # Not through the mapping: the pages of an image would count as this process's too.
        written = os.pwrite(self.descriptor, data, slot * self.size)
        if written < len(data):
            raise OSError(f"only {written} of {len(data)} bytes could be put into shared memory")

    def get(self, slot: int, length: int) -> bytes:
        start = slot * self.size
        return self._memory[start : start + length]

    def release(self, slot: int, length: int) -> None:
        """What `put` wrote is not needed any more."""
        if length > _KEEP_BYTES:
            self._memory.madvise(mmap.MADV_REMOVE, slot * self.size, self.size)

    def close(self) -> None:
        self._memory.close()
        os.close(self.descriptor)

    def put_vectors(self, slot: int, vectors: tuple[Floats, ...]) -> None:
        self.put(slot, b"".join(vector.tobytes() for vector in vectors))

    def get_vectors(self, slot: int, lengths: tuple[int, ...]) -> list[Floats]:
        """Copies of float32 vectors of these lengths."""
        data = self.get(slot, 4 * sum(lengths))
        vectors, start = [], 0
        for length in lengths:
            vectors.append(np.frombuffer(data, np.float32, length, start))
            start += 4 * length
        return vectors


@dataclass(frozen=True, slots=True)
class Split:
    """A share of the images that another model scores: those whose digest, with `salt`, comes to less than `below` of
    2**64. An image is always on the same side, and stays in when the share grows."""

    model: int
    salt: int
    below: int

    @classmethod
    def of(cls, model: int, salt: int, share: float) -> Split:
        return cls(model, salt, min(int(share * _SPLIT), _SPLIT - 1))

    def takes(self, digest: str) -> bool:
        """Whether an image is in that share, by the SHA-256 of its bytes in hex."""
        drawn = hashlib.sha256(f"{self.salt}:{digest}".encode()).digest()
        return int.from_bytes(drawn[:8]) < self.below


@dataclass(frozen=True, slots=True)
class Job:
    """An image of `length` bytes lies in `slot`; `model` is to score it, unless `split` takes it."""

    slot: int
    length: int
    model: int
    split: Split | None = None

    def pack(self) -> bytes:
        split = (0, 0, 0) if self.split is None else (self.split.model, self.split.salt, self.split.below)
        return _JOB.pack(self.slot, self.length, self.model, *split)

    @classmethod
    def unpack(cls, message: bytes) -> Job:
        slot, length, model, *split = _JOB.unpack(message)
        return cls(slot, length, model, Split(*split) if split[0] else None)


@dataclass(frozen=True, slots=True)
class Scored:
    """An image's scores. `probabilities` [K], `embedding` [E], `properties` [P], float32; `digest`: SHA-256 of its
    bytes in hex; `began`: the moment (`time.perf_counter`, one clock for all processes of a machine) its turn came;
    `batch`: how many images the inference had, said to the first of them only; 0 where images are not gathered;
    `model`: which one it was, where an image is given to one of two."""

    header: ImageHeader
    digest: str
    probabilities: Floats
    embedding: Floats
    properties: Floats
    began: float
    decode_seconds: float
    infer_seconds: float
    batch: int
    model: int = 0


class InferenceFailed(RuntimeError):
    """A fault of ours; the text is the process's traceback."""


def pack_scored(memory: ImageMemory, slot: int, scored: Scored) -> bytes:
    """The message that says so, after the vectors were put into the slot."""
    vectors = (scored.probabilities, scored.embedding, scored.properties)
    memory.put_vectors(slot, vectors)
    header = scored.header
    text = orjson.dumps([header.format, header.mode, header.width, header.height, scored.digest])
    times = (scored.began, scored.decode_seconds, scored.infer_seconds)
    return _REPLY.pack(slot, _SCORED, scored.batch, scored.model, *times, *map(len, vectors)) + text


def pack_error(slot: int, error: Exception, traceback: str) -> bytes:
    """The message that an image cannot be read, or that something else failed."""
    if isinstance(error, InvalidImage):
        kind, said = _REFUSED, [type(error).__name__, error.detail[:_MAX_TEXT]]
    else:
        kind, said = _FAILED, [traceback[-_MAX_TEXT:]]
    # Not orjson: a decoder's message may hold what is no UTF-8.
    return _REPLY.pack(slot, kind, 0, 0, 0.0, 0.0, 0.0, 0, 0, 0) + json.dumps(said).encode()


def unpack_reply(memory: ImageMemory, message: memoryview) -> tuple[int, Scored | Exception]:
    """The slot, and what became of its image."""
    slot, kind, batch, model, began, decode, infer, *lengths = _REPLY.unpack_from(message)
    text = message[_REPLY.size :]
    if kind == _SCORED:
        said = orjson.loads(text)
        probabilities, embedding, properties = memory.get_vectors(slot, tuple(lengths))
        header = ImageHeader(*said[:4])
        return slot, Scored(header, said[4], probabilities, embedding, properties, began, decode, infer, batch, model)
    said = json.loads(bytes(text))
    if kind == _REFUSED:
        return slot, _error_of(*said)
    return slot, InferenceFailed(said[0])


def _error_of(name: str, detail: str) -> Exception:
    kinds = {kind.__name__: kind for kind in InvalidImage.__subclasses__()}
    return kinds.get(name, InvalidImage)(detail)
