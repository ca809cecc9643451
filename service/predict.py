"""Bytes in, recorded predictions out: score, record, answer.

Images are scored in another process, rows are recorded in a thread; the event loop only moves bytes. A slot is held for
every request from before its body is read, and for every image of a batch once it is read, until it is answered, so
memory and waiting are bounded; past `max_queue` slots the answer is 503 at once.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from perennial.errors import InvalidImage, InvalidParameter, Overloaded
from perennial.ids import new_id
from perennial.ledger.predictions import Prediction
from service import metrics, problems
from service.captures import Captures
from service.inference import Inference
from service.inference_wire import InferenceFailed, Scored
from service.limits import Upload
from service.live_model import LiveModel
from service.loaded_model import LoadedModel
from service.recorder import Recorder
from service.rejections import Rejections
from service.shadow import Shadow, fault_of
from service.threads import Threads

DEFAULT_TOP: Final = 3


class Slots:
    """Counts the images in flight. Used in the event loop's thread only."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self.full_text: Final = f"as many images as may be, {most}, are being worked on; try again soon"

    def take(self, images: int = 1) -> None:
        """Raises Overloaded when there are not so many free slots. Give them back with `give`."""
        if self._taken + images > self._most:
            raise Overloaded(self.full_text)
        self._taken += images

    @property
    def most(self) -> int:
        return self._most

    @property
    def taken(self) -> int:
        return self._taken

    def free(self) -> int:
        return self._most - self._taken

    def give(self, images: int = 1) -> None:
        self._taken -= images


class Predictor:
    """Scores images on the model a request brings, or on its challenger, and records each before it is answered."""

    def __init__(
        self,
        name: str,
        inference: Inference,
        recorder: Recorder,
        captures: Captures,
        rejections: Rejections,
        shadow: Shadow,
    ) -> None:
        self._name = name
        self._inference = inference
        self._recorder = recorder
        self._captures = captures
        self._rejections = rejections
        self._shadow = shadow
        self._thread = Threads(1, "record")
        self._last_id = ""

    async def predict(self, live: LiveModel, upload: Upload, top: int, waited: float = 0.0) -> dict[str, Any]:
        """Answer one image. `waited`: seconds in the queue before its body was read.

        Raises:
            InvalidImage, InferenceLost, JournalFull.
        """
        (image,) = upload.images
        return await self._answer(live, image, upload.source, top, waited)

    async def predict_batch(
        self, live: LiveModel, upload: Upload, top: int, waited: float = 0.0
    ) -> list[dict[str, Any]]:
        """Answer many images, in order; one that cannot be read is counted and gives `{"error": problem}` in its place.

        Raises:
            InferenceLost, JournalFull: none of them is answered.
        """

        async def one(image: bytes | InvalidImage) -> dict[str, Any]:
            try:
                return await self._answer(live, image, upload.source, top, waited)
            except InvalidImage as error:
                self._rejections.add(live.refusing, error.slug)
                return {"error": problems.document(error)}

        return await asyncio.gather(*map(one, upload.images))

    def close(self) -> None:
        """Finish what was accepted."""
        self._thread.close()

    async def _answer(
        self, live: LiveModel, image: bytes | InvalidImage, source: str | None, top: int, waited: float
    ) -> dict[str, Any]:
        if isinstance(image, InvalidImage):
            raise image
        received = time.perf_counter() - waited
        model, scored, fault = await self._score(live, image)
        metrics.queue_seconds.observe(scored.began - received)
        metrics.decode_seconds.observe(scored.decode_seconds)
        metrics.infer_seconds.observe(scored.infer_seconds)
        if scored.batch:
            metrics.batch_images.observe(scored.batch)
        # In a thread, so that a disk that is slow for a moment does not hold up the event loop.
        document = await self._thread.call(self._record, model, scored, image, source, top, received)
        if live.challenger is not None:
            self._shadow.answered(live.challenger, document, scored, image, fault)
        return document

    async def _score(self, live: LiveModel, image: bytes) -> tuple[LoadedModel, Scored, str | None]:
        """The model that scored it, and what was wrong with the challenger's own try, if it was its turn: then the
        champion answers."""
        challenger = live.challenger
        if challenger is None or challenger.split is None:
            return live, await self._inference.score(live.model, image), None
        try:
            scored = await self._inference.score(live.model, image, challenger.split)
        except InferenceFailed as error:
            # If it was the champion, it may fail again, as it would without a challenger.
            scored = await self._inference.score(live.model, image)
            return live, scored, str(error) if challenger.split.takes(scored.digest) else None
        if scored.model != challenger.split.model:
            return live, scored, None
        fault = fault_of(scored)
        if fault is not None:
            return live, await self._inference.score(live.model, image), fault
        return challenger.model, scored, None

    def _record(
        self, live: LoadedModel, scored: Scored, data: bytes, source: str | None, top: int, received: float
    ) -> dict[str, Any]:
        began = time.perf_counter()
        row = self._row(live, scored, data, source, (began - received) * 1000)
        self._recorder.record(row)
        metrics.record_seconds.observe(time.perf_counter() - began)
        metrics.predictions.add((row.label, row.model_version))
        metrics.confidence.observe(row.confidence)
        return self._document(live, row, top)

    def _row(self, live: LoadedModel, scored: Scored, data: bytes, source: str | None, latency_ms: float) -> Prediction:
        header = scored.header
        best = int(scored.probabilities.argmax())
        confidence = float(scored.probabilities[best])
        return Prediction(
            id=self._next_id(),
            at=datetime.now(UTC),
            model_version=live.version,
            precision=live.precision,
            label=live.classes[best],
            confidence=confidence,
            probabilities=scored.probabilities,
            embedding=scored.embedding,
            properties=scored.properties,
            width=header.width,
            height=header.height,
            format=header.format,
            mode=header.mode,
            bytes=len(data),
            image_digest=scored.digest,
            image_url=self._captures.keep(data, scored.digest, header.format, confidence),
            source=source,
            latency_ms=round(latency_ms, 3),
        )

    def _document(self, live: LoadedModel, row: Prediction, top: int) -> dict[str, Any]:
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
