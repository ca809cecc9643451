"""The BentoML service: `perennial serve`, or `bentoml serve service.app:Perennial`.

The hot path is a mounted Starlette application (service/routes.py); `/classify` is the same prediction in BentoML's own
style, for `bentoml.SyncHTTPClient`; health, metrics and schema are BentoML's.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import bentoml

from service import head_start  # isort: split

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from perennial.errors import LedgerUnavailable, PerennialError
from perennial.images import ImageLimits
from perennial.storage import Storage
from service import keys, metrics, openapi, outline, problems, protocol, routes
from service.body_memory import BodyMemory
from service.captures import Captures
from service.edge import Edge, RealPath
from service.feedback import FeedbackDesk
from service.inference import Inference, threads_for
from service.ledger_link import LedgerLink
from service.lifetime import end_with_parent
from service.live_model import LiveModels
from service.ops.overview import Overview
from service.ops.page import pages
from service.ops.pictures import Pictures
from service.overload import EarlyRefusal
from service.predict import Predictor, Slots
from service.recorder import Recorder
from service.rejections import Rejections
from service.shadow import Shadow

_LEDGER_THREADS: Final = 4

settings: Final = head_start.settings
hot_path: Final = routes.Endpoint(bentoml.get_current_service, routes.predict)


class ImageInput(bentoml.IODescriptor):  # type: ignore[misc]  # BentoML ships no types that mypy follows
    """One image in the multipart field `image`. Reads the request as `/v1/predict` does: bounded, and without
    BentoML's fetching of URLs, which would let a caller reach whatever this machine can reach."""

    image: Path

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:
        return cls.model_construct(image=request)


class ModelName(BaseModel):
    name: str
    version: str


class LabelProbability(BaseModel):
    label: str
    probability: float


class PredictionAnswer(BaseModel):
    prediction_id: str
    model: ModelName
    label: str
    confidence: float
    top: list[LabelProbability]


class EdgedService(bentoml.Service):  # type: ignore[misc]
    """BentoML's service with our edge around it."""

    def to_asgi(self, is_main: bool = True) -> Any:
        self.add_asgi_middleware(RealPath)
        app = super().to_asgi(is_main=is_main)
        serve = settings.serve
        protocol.install(serve.max_url + serve.max_header_bytes + 4 * serve.max_headers)
        # BentoML's own page and document at these paths know of `/classify` only, and the page loads scripts from
        # elsewhere.
        behind = [route for route in app.routes if route.path not in openapi.PAGES]
        return Edge(app, behind, serve, openapi.pages(serve) | pages(), {routes.PREDICT: hot_path})


def _let_others_finish() -> None:
    """Where all cores are busy, the event loop takes its turn instead of interrupting an inference for every packet.
    It then finds several at once: a twentieth more throughput, for at most a few milliseconds of waiting under load."""
    if hasattr(os, "SCHED_BATCH"):
        try:
            os.sched_setscheduler(threading.main_thread().native_id or 0, os.SCHED_BATCH, os.sched_param(0))
        except OSError as error:  # a sandbox may forbid it
            problems.logger.info("the event loop is scheduled as any thread: %s", error)


@bentoml.service(**outline.options(settings.serve), service_class=EdgedService)
@bentoml.asgi_app(routes.build(bentoml.get_current_service), path="/")
class Perennial:
    """Classifies images with the live model, and records every prediction."""

    def __init__(self) -> None:
        logging.getLogger("perennial").setLevel(logging.INFO)
        logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every broken form
        metrics.forget_dead_workers()
        self.settings = settings
        self.inference = head_start.inference or Inference(settings.serve, threads_for(settings.serve))
        self.link = LedgerLink(settings.ledger_url)
        try:
            self.link.engine()
        except LedgerUnavailable as error:
            problems.logger.warning("starting without the ledger; it is tried again: %s", error)
        storage = Storage(settings.blobs_url)
        self.models = LiveModels(self.link.engine, storage, settings, self.inference)
        journal = settings.journal_path
        self.recorder = Recorder(
            self.link.engine, journal / "predictions", min_free_bytes=settings.serve.min_free_bytes
        )
        self.captures = Captures(storage, journal / "captures", settings.serve)
        self.rejections = Rejections(self.link.engine)
        self.shadow = Shadow(self.inference, settings.rollout, self.link.engine)
        self.predictor = Predictor(
            settings.name, self.inference, self.recorder, self.captures, self.rejections, self.shadow
        )
        self.slots = Slots(settings.serve.max_queue)
        metrics.flushing.sample(metrics.queue_images, lambda: self.slots.taken)
        metrics.flushing.sample(metrics.queue_limit, lambda: self.slots.most)
        metrics.flushing.sample(metrics.disk_free, lambda: metrics.free_bytes(journal))
        metrics.flushing.sample(metrics.disk_min_free, lambda: settings.serve.min_free_bytes)
        metrics.flushing.sample(metrics.behind, lambda: self.recorder.behind_seconds)
        self.bodies = BodyMemory(settings.serve.max_queue_bytes, lambda: self.inference.most_working)
        self.feedback = FeedbackDesk(settings.name, self.recorder, keeps=settings.retrain.new_class_labels > 0)
        self.overview = Overview(settings, keys.asked(settings.serve))
        self.pictures = Pictures(storage, ImageLimits(settings.serve.max_bytes, settings.serve.max_pixels))
        self.ledger_threads = ThreadPoolExecutor(_LEDGER_THREADS, thread_name_prefix="ledger")
        self.models.look()

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    def start(self) -> None:
        end_with_parent()
        metrics.flushing.start()
        _let_others_finish()
        if not self.settings.serve.access_log:  # which lists refusals too
            protocol.BoundedProtocol.early = EarlyRefusal(self.slots)
        self.models.start()
        head_start.finish()

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def stop(self) -> None:
        deadline = time.monotonic() + self.settings.serve.drain_delivery
        self.predictor.close()
        self.inference.close()
        self.recorder.close(deadline - time.monotonic())
        self.captures.close(max(0.0, deadline - time.monotonic()))
        self.rejections.close(max(0.0, deadline - time.monotonic()))
        self.shadow.close(max(0.0, deadline - time.monotonic()))
        self.models.close()
        self.ledger_threads.shutdown()
        self.link.close()
        metrics.flushing.close()

    async def __is_ready__(self) -> bool:
        return self.models.current is not None and self.inference.ready

    @bentoml.api(input_spec=ImageInput, output_spec=PredictionAnswer)  # type: ignore[untyped-decorator]
    async def classify(self, image: Any) -> Response:
        """Classify one image."""
        try:
            return JSONResponse(await routes.in_time(self, routes.predict, image))
        except PerennialError as error:
            return problems.response(error)
