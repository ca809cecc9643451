"""Bytes in, recorded predictions out: decode, infer, record, answer.

Decoding and inference run in a pool of threads and release the GIL; the event loop only moves bytes. Each thread has
its own infer request. A slot is held for every request from before its body is read, and for every image of a batch
once it is read, until it is answered, so memory and
waiting are bounded; past `max_queue` slots the answer is 503 at once.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from perennial.errors import InvalidImage, InvalidParameter, Overloaded, PerennialError
from perennial.graph import FLOAT32, Floats
from perennial.images import ImageHeader, ImageLimits, prepare
from perennial.ledger.ids import new_id
from perennial.ledger.predictions import Prediction
from perennial.settings import ServeSettings
from perennial.storage import sha256
from service import metrics, problems
from service.limits import Upload
from service.live_model import LiveModel
from service.recorder import Recorder

DEFAULT_TOP: Final = 3
_CPU_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, slots=True)
class _Scored:
    """What the graph said of one image. Vectors: [K], [E], [P]."""

    header: ImageHeader
    digest: str
    probabilities: Floats
    embedding: Floats
    properties: Floats


class Slots:
    """Counts the images in flight. Used in the event loop's thread only."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    @contextmanager
    def taken(self, images: int = 1) -> Iterator[None]:
        """Raises Overloaded when there are not so many free slots."""
        if self._taken + images > self._most:
            raise Overloaded(f"{self._taken} images are being worked on and {self._most} is the most; try again soon")
        self._taken += images
        try:
            yield
        finally:
            self._taken -= images


class Predictor:
    """Scores images on the model a request brings, and records each before it is answered."""

    def __init__(self, name: str, serve: ServeSettings, recorder: Recorder) -> None:
        self._name = name
        self._limits = ImageLimits(serve.max_bytes, serve.max_pixels)
        self._recorder = recorder
        self._pool = ThreadPoolExecutor(threads_for(serve), thread_name_prefix="predict")
        self._last_id = ""

    async def predict(self, live: LiveModel, upload: Upload, top: int) -> dict[str, Any]:
        """Answer one image.

        Raises:
            InvalidImage, LedgerUnavailable.
        """
        result = (await self._answer(live, upload, top))[0]
        if isinstance(result, PerennialError):
            raise result
        return result

    async def predict_batch(self, live: LiveModel, upload: Upload, top: int) -> list[dict[str, Any]]:
        """Answer many images, in order; one that cannot be read gives `{"error": problem}` in its place.

        Raises:
            LedgerUnavailable: none of them is answered.
        """
        results = await self._answer(live, upload, top)
        return [
            {"error": problems.document(result)} if isinstance(result, PerennialError) else result for result in results
        ]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def _answer(self, live: LiveModel, upload: Upload, top: int) -> list[dict[str, Any] | InvalidImage]:
        began = time.perf_counter()
        metrics.batch_images.observe(len(upload.images))
        scored = await self._score_all(live, upload.images)
        latency = (time.perf_counter() - began) * 1000
        results: list[dict[str, Any] | InvalidImage] = []
        rows: list[Prediction] = []
        images: list[bytes] = []
        for image, score in zip(upload.images, scored, strict=True):
            if isinstance(score, InvalidImage) or isinstance(image, InvalidImage):
                results.append(score if isinstance(score, InvalidImage) else InvalidImage("unreadable"))
                continue
            row = self._row(live, score, len(image), upload.source, latency)
            rows.append(row)
            images.append(image)
            results.append(self._document(live, row, top))
        if rows:
            submitted = time.perf_counter()
            await self._recorder.record(rows, images)
            metrics.stage_seconds.labels("record").observe(time.perf_counter() - submitted)
            for row in rows:
                metrics.predictions.labels(row.label, row.model_version).inc()
                metrics.confidence.observe(row.confidence)
        return results

    async def _score_all(
        self, live: LiveModel, images: Sequence[bytes | InvalidImage]
    ) -> Sequence[_Scored | InvalidImage]:
        loop = asyncio.get_running_loop()

        async def score(image: bytes | InvalidImage) -> _Scored | InvalidImage:
            if isinstance(image, InvalidImage):
                return image
            try:
                return await loop.run_in_executor(self._pool, self._score, live, image, time.perf_counter())
            except InvalidImage as error:
                return error

        if len(images) == 1:
            return [await score(images[0])]
        return await asyncio.gather(*map(score, images))

    def _score(self, live: LiveModel, data: bytes, submitted: float) -> _Scored:
        started = time.perf_counter()
        prepared = prepare(data, live.rule, self._limits)
        decoded = time.perf_counter()
        output = live.graph.run(prepared.pixels[np.newaxis])
        inferred = time.perf_counter()
        metrics.stage_seconds.labels("queue").observe(started - submitted)
        metrics.stage_seconds.labels("decode").observe(decoded - started)
        metrics.stage_seconds.labels("infer").observe(inferred - decoded)
        return _Scored(
            prepared.header, sha256(data), output.probabilities[0], output.embedding[0], output.properties[0]
        )

    def _row(self, live: LiveModel, scored: _Scored, size: int, source: str | None, latency_ms: float) -> Prediction:
        best = int(scored.probabilities.argmax())
        header = scored.header
        return Prediction(
            id=self._next_id(),
            at=datetime.now(UTC),
            model_version=live.version,
            precision=FLOAT32,
            label=live.classes[best],
            confidence=float(scored.probabilities[best]),
            probabilities=scored.probabilities,
            embedding=scored.embedding,
            properties=scored.properties,
            width=header.width,
            height=header.height,
            format=header.format,
            mode=header.mode,
            bytes=size,
            image_digest=scored.digest,
            image_url=None,
            source=source,
            latency_ms=round(latency_ms, 3),
        )

    def _document(self, live: LiveModel, row: Prediction, top: int) -> dict[str, Any]:
        best = np.argsort(-row.probabilities, kind="stable")[:top]
        return {
            "prediction_id": row.id,
            "model": {"name": self._name, "version": live.version},
            "label": row.label,
            "confidence": round(row.confidence, 6),
            "top": [
                {"label": live.classes[index], "probability": round(float(row.probabilities[index]), 6)}
                for index in best
            ],
        }

    def _next_id(self) -> str:
        # Windows are "the latest rows by id", so ids of one worker grow even within a millisecond.
        fresh = new_id()
        if fresh <= self._last_id:
            fresh = new_id(int(self._last_id.replace("-", "")[:12], 16) + 1)
        self._last_id = fresh
        return fresh


def top_of(value: str | None, classes: int) -> int:
    """The query parameter `top`: how many classes to list, 1 to all of them.

    Raises:
        InvalidParameter.
    """
    if value is None:
        return min(DEFAULT_TOP, classes)
    if not (value.isascii() and value.isdigit() and len(value) <= 6 and 1 <= int(value) <= classes):
        raise InvalidParameter(f"top={value[:40]!r} is not a whole number from 1 to {classes}, the number of classes")
    return int(value)


def threads_for(serve: ServeSettings) -> int:
    """Threads of one worker: as set, else this process's share of the cores."""
    return serve.threads or max(1, _cores() // serve.workers)


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no control group, or no quota ("max")
        return cores
