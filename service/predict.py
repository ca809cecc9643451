"""Bytes in, recorded predictions out: decode, infer, record, answer.

All of it runs in one of a few threads that release the GIL; the event loop only moves bytes. Each thread has its own
infer request. A slot is held for every request from before its body is read, and for every image of a batch once it is
read, until it is answered, so memory and waiting are bounded; past `max_queue` slots the answer is 503 at once.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from perennial.errors import InvalidImage, InvalidParameter, Overloaded
from perennial.graph import CUDA, Graph, GraphOutput
from perennial.images import ImageHeader, ImageLimits, PreparedImage, prepare
from perennial.ledger.ids import new_id
from perennial.ledger.predictions import Prediction
from perennial.settings import ServeSettings
from perennial.storage import sha256
from service import metrics, problems
from service.batching import Batching
from service.captures import Captures
from service.limits import Upload
from service.live_model import LiveModel
from service.recorder import Recorder
from service.threads import Threads

DEFAULT_TOP: Final = 3
_CPU_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


class Slots:
    """Counts the images in flight. Used in the event loop's thread only."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    def take(self, images: int = 1) -> None:
        """Raises Overloaded when there are not so many free slots. Give them back with `give`."""
        if self._taken + images > self._most:
            raise Overloaded(f"{self._taken} images are being worked on and {self._most} is the most; try again soon")
        self._taken += images

    def give(self, images: int = 1) -> None:
        self._taken -= images


class Predictor:
    """Scores images on the model a request brings, and records each before it is answered."""

    def __init__(self, name: str, serve: ServeSettings, recorder: Recorder, captures: Captures) -> None:
        self._name = name
        self._limits = ImageLimits(serve.max_bytes, serve.max_pixels)
        self._recorder = recorder
        self._captures = captures
        self._threads = Threads(threads_for(serve), "predict")
        self._batching = Batching(most=serve.batch_images, seconds=serve.batch_window)
        self._batches = serve.batching
        self._id_lock = threading.Lock()
        self._last_id = ""

    async def predict(self, live: LiveModel, upload: Upload, top: int) -> dict[str, Any]:
        """Answer one image.

        Raises:
            InvalidImage, JournalFull.
        """
        (image,) = upload.images
        return await self._answer(live, image, upload.source, top)

    async def predict_batch(self, live: LiveModel, upload: Upload, top: int) -> list[dict[str, Any]]:
        """Answer many images, in order; one that cannot be read gives `{"error": problem}` in its place.

        Raises:
            JournalFull: none of them is answered.
        """

        async def one(image: bytes | InvalidImage) -> dict[str, Any]:
            try:
                return await self._answer(live, image, upload.source, top)
            except InvalidImage as error:
                return {"error": problems.document(error)}

        return await asyncio.gather(*map(one, upload.images))

    def close(self) -> None:
        """Finish what was accepted."""
        self._threads.close()
        self._batching.close()

    async def _answer(
        self, live: LiveModel, image: bytes | InvalidImage, source: str | None, top: int
    ) -> dict[str, Any]:
        if isinstance(image, InvalidImage):
            raise image
        received = time.perf_counter()
        if not self._is_batched(live.graph):
            return await self._threads.call(self._all_at_once, live, image, source, top, received)
        prepared = await self._threads.call(self._prepare, live, image, received)
        began = time.perf_counter()
        output = await self._batching.run(live.graph, prepared.pixels)
        metrics.infer_seconds.observe(time.perf_counter() - began)
        return await self._threads.call(self._finish, live, prepared, output, image, source, top, received)

    def _is_batched(self, graph: Graph) -> bool:
        return graph.device == CUDA if self._batches == "auto" else self._batches == "always"

    def _all_at_once(self, live: LiveModel, data: bytes, source: str | None, top: int, received: float) -> Any:
        prepared = self._prepare(live, data, received)
        began = time.perf_counter()
        output = live.graph.run(prepared.pixels[np.newaxis])
        metrics.infer_seconds.observe(time.perf_counter() - began)
        return self._finish(live, prepared, output, data, source, top, received)

    def _prepare(self, live: LiveModel, data: bytes, received: float) -> PreparedImage:
        began = time.perf_counter()
        metrics.queue_seconds.observe(began - received)
        prepared = prepare(data, live.rule, self._limits)
        metrics.decode_seconds.observe(time.perf_counter() - began)
        return prepared

    def _finish(
        self,
        live: LiveModel,
        prepared: PreparedImage,
        output: GraphOutput,
        data: bytes,
        source: str | None,
        top: int,
        received: float,
    ) -> dict[str, Any]:
        began = time.perf_counter()
        row = self._row(live, prepared.header, output, data, source, (began - received) * 1000)
        self._recorder.record(row)
        metrics.record_seconds.observe(time.perf_counter() - began)
        metrics.predictions.add((row.label, row.model_version))
        metrics.confidence.observe(row.confidence)
        return self._document(live, row, top)

    def _row(
        self,
        live: LiveModel,
        header: ImageHeader,
        output: GraphOutput,
        data: bytes,
        source: str | None,
        latency_ms: float,
    ) -> Prediction:
        probabilities = output.probabilities[0]
        best = int(probabilities.argmax())
        confidence = float(probabilities[best])
        digest = sha256(data)
        return Prediction(
            id=self._next_id(),
            at=datetime.now(UTC),
            model_version=live.version,
            precision=live.precision,
            label=live.classes[best],
            confidence=confidence,
            probabilities=probabilities,
            embedding=output.embedding[0],
            properties=output.properties[0],
            width=header.width,
            height=header.height,
            format=header.format,
            mode=header.mode,
            bytes=len(data),
            image_digest=digest,
            image_url=self._captures.keep(data, digest, header.format, confidence),
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
        with self._id_lock:
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
    """Threads of one worker: as set, else its share of the cores and one more, which works while another waits for
    Python's lock."""
    return serve.threads or max(1, _cores() // serve.workers) + 1


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no control group, or no quota ("max")
        return cores
