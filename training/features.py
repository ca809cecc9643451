"""Embeddings by the frozen backbone, each computed once and kept on disk.

The cache is one SQLite file for each (weights, backbone, preprocessing), with a row an image digest: nothing in it
can run code, a crash leaves whole rows only, and several processes may use it at once.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from perennial.errors import InvalidImage
from perennial.images import ImageLimits, InputRule, Pixels, prepare
from perennial.progress import Progress, Step, silent
from perennial.storage import sha256
from training.backbones import Backbone, normalised
from training.datasets import DEFAULT_LIMITS, Row, read_bytes

logger = logging.getLogger(__name__)

T = TypeVar("T")
Floats = NDArray[np.float32]

BATCH: Final = 32
_EDITION: Final = 1  # to be raised when the decoder or the forward pass comes to give other numbers
_BUSY_SECONDS: Final = 30.0
_READ_AT_ONCE: Final = 500  # SQLite bounds the parameters of a query


@dataclass(frozen=True, slots=True)
class Embedded:
    """`features` [N, D], a row for each of `rows`; `failures` (digest -> reason) could not be decoded."""

    rows: tuple[Row, ...]
    features: Floats
    failures: dict[str, str]
    cached: int


def embed(
    rows: Sequence[Row],
    backbone: Backbone,
    cache: Path,
    *,
    threads: int,
    limits: ImageLimits = DEFAULT_LIMITS,
    progress: Progress = silent,
) -> Embedded:
    """The pooled features of every image, from `cache` where they are known.

    Each of `threads` threads embeds batches of its own on one core, which keeps them all busy and makes the numbers
    the same for any number of threads. It wants `torch.set_num_threads(1)`.

    Raises:
        InvalidDataset: a file is gone, or was changed since it was listed.
    """
    path = cache / "embeddings" / f"{backbone.name}-{cache_key(backbone)[:16]}.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    with contextlib.closing(_open(path)) as store:
        known = _known(store, [row.digest for row in rows], backbone.width)
        cached = len(known)
        todo = [row for row in rows if row.digest not in known]
        done = len(rows) - len(todo)
        progress(Step("embedding images", done, len(rows)))
        forward = partial(_embed_batch, backbone=backbone, limits=limits)
        for chunk, vectors, broken in in_batches(todo, forward, threads=threads):
            failures |= broken
            fresh = {row.digest: vector for row, vector in zip(chunk, vectors, strict=True)}
            with store:
                store.executemany(
                    "INSERT OR REPLACE INTO features VALUES (?, ?)",
                    [(digest, vector.tobytes()) for digest, vector in fresh.items()],
                )
            known |= fresh
            done += len(chunk) + len(broken)
            progress(Step("embedding images", done, len(rows)))
    good = tuple(row for row in rows if row.digest in known)
    features = np.stack([known[row.digest] for row in good]) if good else np.empty((0, backbone.width), np.float32)
    return Embedded(good, features, failures, cached)


def cache_key(backbone: Backbone) -> str:
    """What an embedding depends on beside the image itself."""
    origin = backbone.weights_sha256 or f"seed {backbone.seed}"
    rule = backbone.rule
    return sha256(
        f"{_EDITION} {origin} {backbone.name} {rule.resize} {rule.crop} {backbone.mean} {backbone.std}".encode()
    )


def in_batches(rows: Sequence[Row], work: Callable[[Sequence[Row]], T], *, threads: int) -> Iterator[T]:
    """`work` on each batch of rows, in order, on `threads` threads that stay at most one batch each ahead."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(rows), BATCH):
            waiting.append(pool.submit(work, rows[start : start + BATCH]))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def decode(
    rows: Sequence[Row], rule: InputRule, limits: ImageLimits = DEFAULT_LIMITS
) -> tuple[list[Row], Pixels, dict[str, str]]:
    """The rows that could be decoded, their pixels uint8 [N, crop, crop, 3], and digest -> reason for the rest."""
    good: list[Row] = []
    pixels: list[Pixels] = []
    broken: dict[str, str] = {}
    for row in rows:
        try:
            pixels.append(prepare(read_bytes(row), rule, limits).pixels)
            good.append(row)
        except InvalidImage as error:
            broken[row.digest] = str(error)
    return good, np.stack(pixels) if pixels else np.empty((0, rule.crop, rule.crop, 3), np.uint8), broken


def _embed_batch(
    rows: Sequence[Row], backbone: Backbone, limits: ImageLimits
) -> tuple[list[Row], Floats, dict[str, str]]:
    good, pixels, broken = decode(rows, backbone.rule, limits)
    return good, _forward(backbone, pixels), broken


def _forward(backbone: Backbone, pixels: Pixels) -> Floats:
    # A short batch is filled up: another batch size can take another kernel, and the last bits of an embedding
    # must not depend on which images happened to be cached.
    filled = np.zeros((BATCH, *pixels.shape[1:]), np.uint8)
    filled[: len(pixels)] = pixels
    with torch.inference_mode():
        features = backbone.network(normalised(torch.from_numpy(filled), backbone))
    result: Floats = features[: len(pixels)].numpy().copy()
    return result


def _open(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        logger.warning("the embedding cache %s is damaged (%s) and is made anew", path, error)
        for leftover in path.parent.glob(f"{path.name}*"):
            leftover.unlink()
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    store = sqlite3.connect(path, timeout=_BUSY_SECONDS)
    try:
        store.execute("PRAGMA journal_mode=WAL")
        store.execute("PRAGMA synchronous=NORMAL")
        store.execute("CREATE TABLE IF NOT EXISTS features (digest TEXT PRIMARY KEY, vector BLOB) WITHOUT ROWID")
    except BaseException:
        store.close()
        raise
    return store


def _known(store: sqlite3.Connection, digests: Sequence[str], width: int) -> dict[str, Floats]:
    known: dict[str, Floats] = {}
    for start in range(0, len(digests), _READ_AT_ONCE):
        some = digests[start : start + _READ_AT_ONCE]
        query = f"SELECT digest, vector FROM features WHERE digest IN ({','.join('?' * len(some))})"  # noqa: S608
        for digest, blob in store.execute(query, some):
            vector = np.frombuffer(blob, np.float32)
            if len(vector) == width:
                known[digest] = vector
    return known
