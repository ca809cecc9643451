"""Embeddings by the frozen backbone, and the simple features, from one look at each image; kept on disk.

The embeddings' cache is keyed by weights, backbone, preprocessing and arithmetic; the simple features' by preprocessing
only, so that every backbone of that input size shares them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from perennial.errors import InvalidImage
from perennial.images import ImageLimits, InputRule, Pixels, prepare
from perennial.progress import IMAGES, Progress, Step, silent
from perennial.storage import sha256
from training import embedder, simple_features
from training.backbones import Backbone
from training.datasets import DEFAULT_LIMITS, Row, read_bytes
from training.feature_cache import DamagedCache, FeatureCache, Stored

T = TypeVar("T")
Floats = NDArray[np.float32]

BATCH: Final = 16
_EDITION: Final = 2  # to be raised when the decoder or the forward pass comes to give other numbers
_COMPARED: Final = 2  # on so many images OpenVINO is compared with torch


@dataclass(frozen=True, slots=True)
class Embedded:
    """`features` [N, D] and `simple` [N, S] (`training.simple_features`), a row for each of `rows`; `failures` (digest
    -> reason) could not be decoded; for `cached` of the images nothing was computed.

    Both arrays are read-only, and mapped from disk where they are large.
    """

    rows: tuple[Row, ...]
    features: Floats
    failures: dict[str, str]
    cached: int
    simple: Floats


def embed(
    rows: Sequence[Row],
    backbone: Backbone,
    cache: Path,
    *,
    threads: int,
    limits: ImageLimits = DEFAULT_LIMITS,
    progress: Progress = silent,
) -> Embedded:
    """The features of every image, from `cache` where they are known.

    Each of `threads` threads decodes and embeds on one core, a few images at a time: memory does not grow with their
    number, and the numbers are the same for any number of threads. A backbone that OpenVINO does not take is embedded
    by torch, which wants `torch.set_num_threads(1)`.

    Raises:
        InvalidDataset: a file is gone, or was changed since it was listed.
    """
    for _ in range(2):
        try:
            return _embed(rows, backbone, cache / "embeddings", threads, limits, progress)
        except DamagedCache:  # it is empty now
            continue
    return _embed(rows, backbone, cache / "embeddings", threads, limits, progress)


def cache_key(backbone: Backbone, arithmetic: str = embedder.OPENVINO) -> str:
    """What an embedding depends on beside the image itself."""
    origin = backbone.weights_sha256 or f"seed {backbone.seed}"
    rule = backbone.rule
    return sha256(
        f"{_EDITION} {arithmetic} {origin} {backbone.name} {rule.resize} {rule.crop} {backbone.mean} "
        f"{backbone.std}".encode()
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


class _Batch(NamedTuple):
    """What one batch gave: `digests` [M] of the images whose `features` [M, D] were not known, `decoded` [N] with the
    `simple` [N, S] features of all that could be decoded, and digest -> reason for the rest."""

    digests: list[str]
    features: Floats
    decoded: list[str]
    simple: Floats
    broken: dict[str, str]


def _embed(
    rows: Sequence[Row], backbone: Backbone, folder: Path, threads: int, limits: ImageLimits, progress: Progress
) -> Embedded:
    rule = backbone.rule
    digests = [row.digest for row in rows]
    failures: dict[str, str] = {}
    with ExitStack() as opened:
        simple_name = f"simple-{rule.resize}-{rule.crop}-{simple_features.EDITION}"
        simple = opened.enter_context(FeatureCache(folder / simple_name, simple_features.WIDTH))
        simple_at = simple.find(digests)
        network, network_at, forward = _network(rows, backbone, folder, threads, limits, opened)
        todo = [row for row in rows if row.digest not in network_at or row.digest not in simple_at]
        cached = done = len(rows) - len(todo)
        progress(Step("embedding images", done, len(rows), IMAGES))
        known = frozenset(network_at)
        work = partial(_embed_batch, rule=rule, known=known, forward=forward, width=backbone.width, limits=limits)
        for batch in in_batches(todo, work, threads=threads):
            network_at |= network.append(batch.digests, batch.features)
            simple_at |= simple.append(batch.decoded, batch.simple)
            failures |= batch.broken
            done += len(batch.decoded) + len(batch.broken)
            progress(Step("embedding images", done, len(rows), IMAGES))
        good = tuple(row for row in rows if row.digest not in failures)
        return Embedded(
            good,
            network.gather([network_at[row.digest] for row in good]),
            failures,
            cached,
            simple.gather([simple_at[row.digest] for row in good]),
        )


def _network(
    rows: Sequence[Row], backbone: Backbone, folder: Path, threads: int, limits: ImageLimits, opened: ExitStack
) -> tuple[FeatureCache, dict[str, Stored], embedder.Embedder | None]:
    """The cache of the arithmetic that this backbone is embedded in, what it knows, and, unless that is everything,
    what computes the rest."""
    digests = [row.digest for row in rows]
    paths = {
        arithmetic: folder / f"{backbone.name}-{cache_key(backbone, arithmetic)[:16]}"
        for arithmetic in (embedder.OPENVINO, embedder.TORCH)
    }
    for path in paths.values():
        if path.is_dir():
            store = opened.enter_context(FeatureCache(path, backbone.width))
            found = store.find(digests)
            if all(digest in found for digest in digests):
                return store, found, None
    forward = _compiled(rows, backbone, threads, limits)
    store = opened.enter_context(FeatureCache(paths[forward.arithmetic], backbone.width))
    return store, store.find(digests), forward


#: The network that was compiled last, by what its features depend on and its threads, which stays as long as the
#: process: a retrain embeds several lists of images with the same one, and to compile it takes a second or more.
_last: dict[tuple[str, int], embedder.Embedder] = {}


def _compiled(rows: Sequence[Row], backbone: Backbone, threads: int, limits: ImageLimits) -> embedder.Embedder:
    key = (cache_key(backbone), threads)
    found = _last.get(key)
    if found is None:
        _last.clear()  # before another one needs memory
        found = embedder.compiled(backbone, _some(rows, backbone.rule, limits), threads=threads)
        _last[key] = found
    return found


def _some(rows: Sequence[Row], rule: InputRule, limits: ImageLimits) -> Pixels:
    for start in range(0, len(rows), _COMPARED):
        _, pixels, _ = decode(rows[start : start + _COMPARED], rule, limits)
        if len(pixels):
            return pixels
    return decode((), rule, limits)[1]


def _embed_batch(
    rows: Sequence[Row],
    *,
    rule: InputRule,
    known: Container[str],
    forward: embedder.Embedder | None,
    width: int,
    limits: ImageLimits,
) -> _Batch:
    good, pixels, broken = decode(rows, rule, limits)
    decoded = [row.digest for row in good]
    new = [at for at, digest in enumerate(decoded) if digest not in known]
    features = forward(pixels[new]) if forward and new else np.empty((0, width), np.float32)
    return _Batch([decoded[at] for at in new], features, decoded, simple_features.simple_features(pixels), broken)
