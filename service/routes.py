"""The routes under `/v1`: each reads its request, calls a plain method, and answers. See docs/http.md."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import Any, Final, Protocol, TypeVar

import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from perennial.errors import InvalidImage, InvalidParameter, PerennialError, TooSlow
from perennial.json_body import json_body
from perennial.ledger import checks, deployments, events
from perennial.ledger.deployments import Deployment
from perennial.overview import MOST_HOURS
from perennial.settings import Settings
from service import feedback, keys, problems
from service.body_memory import BodyMemory
from service.feedback import FeedbackDesk
from service.ledger_link import LedgerLink
from service.limits import hold, most_batch_bytes, plain_text, read_image, read_images, read_json
from service.live_model import LiveModel, LiveModels
from service.ops import labelling
from service.ops.overview import Overview
from service.ops.pictures import Pictures
from service.predict import Predictor, Slots, top_of
from service.rejections import Rejections

DEFAULT_EVENTS: Final = 100
MAX_EVENTS: Final = 1000
DEFAULT_HOURS: Final = 24
DEFAULT_QUEUE: Final = 20
MAX_QUEUE: Final = 100
_MAX_REASON: Final = 1000
_MAX_VERSION: Final = 64
_MAX_ID: Final = 2**63 - 1

T = TypeVar("T")


class Desk(Protocol):
    """What the routes need of the service. Everything in it is made once a worker."""

    settings: Settings
    models: LiveModels
    predictor: Predictor
    rejections: Rejections
    slots: Slots
    bodies: BodyMemory
    link: LedgerLink
    feedback: FeedbackDesk
    overview: Overview
    pictures: Pictures
    ledger_threads: ThreadPoolExecutor


class Endpoint:
    """One call as an ASGI application of its own: no routing and no middleware between it and the server."""

    def __init__(self, desk_of: Callable[[], Desk], handler: Callable[[Desk, Request], Awaitable[Any]]) -> None:
        self._desk_of = desk_of
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = _json(await in_time(self._desk_of(), self._handler, request))
        except (PerennialError, ClientDisconnect) as error:
            response = await problems.on_error(request, error)
        await response(scope, receive, send)


PREDICT: Final = ("POST", "/v1/predict")


def build(desk_of: Callable[[], Desk]) -> Starlette:
    """The application that is mounted into the BentoML service."""

    def route(path: str, method: str, handler: Callable[[Desk, Request], Awaitable[Any]]) -> Route:
        return Route(path, Endpoint(desk_of, handler), methods=[method], name=handler.__name__)

    return Starlette(
        routes=[
            route(PREDICT[1], PREDICT[0], predict),
            route("/v1/predict/batch", "POST", predict_batch),
            route("/v1/feedback", "POST", give_feedback),
            route("/v1/model", "GET", model_card),
            route("/v1/status", "GET", status),
            route("/v1/events", "GET", list_events),
            route("/v1/overview", "GET", overview),
            route("/v1/labels/queue", "GET", labels_queue),
            route("/v1/images/{prediction_id}", "GET", captured_image),
            route("/v1/references/{version}/{digest}", "GET", reference_image),
            route("/v1/models/{version}/promote", "POST", promote),
            route("/v1/rollback", "POST", roll_back),
        ],
        exception_handlers={HTTPException: problems.on_error},
    )


async def in_time(desk: Desk, handler: Callable[[Desk, Request], Awaitable[T]], request: Request) -> T:
    """The handler's answer.

    Raises:
        TooSlow: it took longer than the setting `serve.timeout`.
    """
    seconds = desk.settings.serve.timeout
    try:
        async with asyncio.timeout(seconds):
            return await handler(desk, request)
    except TimeoutError:
        raise TooSlow(f"no answer within {seconds:g} seconds") from None


async def predict(desk: Desk, request: Request) -> dict[str, Any]:
    live = desk.models.get()
    top = top_of(request.query_params.get("top") if request.scope["query_string"] else None, len(live.classes))
    serve = desk.settings.serve
    desk.slots.take()
    try:
        async with hold(desk.bodies, request, serve.max_bytes) as room:
            return await desk.predictor.predict(live, await read_image(request, serve, room), top, room.waited)
    except InvalidImage as error:
        desk.rejections.add(live.refusing, error.slug)
        raise
    finally:
        desk.slots.give()


async def predict_batch(desk: Desk, request: Request) -> dict[str, Any]:
    live = desk.models.get()
    top = top_of(request.query_params.get("top"), len(live.classes))
    serve = desk.settings.serve
    taken = 1
    desk.slots.take()
    try:
        async with hold(desk.bodies, request, most_batch_bytes(serve)) as room:
            upload = await read_images(request, serve, room)
            desk.slots.take(len(upload.images) - 1)
            taken = len(upload.images)
            return {"results": await desk.predictor.predict_batch(live, upload, top, room.waited)}
    except InvalidImage as error:  # the whole body; of how many images is not known
        desk.rejections.add(live.refusing, error.slug)
        raise
    finally:
        desk.slots.give(taken)


async def give_feedback(desk: Desk, request: Request) -> dict[str, Any]:
    call = feedback.parse(await read_json(request))
    return await _in_ledger(desk, lambda engine: desk.feedback.take(engine, call))


async def model_card(desk: Desk, request: Request) -> dict[str, Any]:
    return card(desk.settings.name, desk.models.get())


async def status(desk: Desk, request: Request) -> dict[str, Any]:
    name = desk.settings.name
    found = await _in_ledger(desk, lambda engine: checks.latest(engine, name))
    live = desk.models.current
    model = {"name": name, "version": live.version if live else None}
    if not found:
        return {"model": model, "verdict": None, "message": "no check yet; run one: perennial monitor"}
    check = found[0]
    return {
        **check.detail,
        "model": model,
        "check": check.id,
        "at": check.at.isoformat(),
        "model_version": check.model_version,
        "window": check.window,
        "verdict": check.verdict,
    }


async def list_events(desk: Desk, request: Request) -> dict[str, Any]:
    after = _whole(request, "after", 0, low=0, high=_MAX_ID)
    limit = _whole(request, "limit", DEFAULT_EVENTS, low=1, high=MAX_EVENTS)
    found = await _in_ledger(desk, lambda engine: events.after(engine, desk.settings.name, after, limit=limit))
    return events.page(found, after)


async def overview(desk: Desk, request: Request) -> Response:
    hours = _whole(request, "hours", DEFAULT_HOURS, low=1, high=MOST_HOURS)
    anew = "no-cache" in request.headers.get("cache-control", "")
    found = await _in_ledger(desk, lambda engine: desk.overview.get(engine, hours, anew=anew))
    headers = {"ETag": found.etag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == found.etag:
        return Response(status_code=304, headers=headers)
    return Response(found.body, media_type="application/json", headers=headers)


async def labels_queue(desk: Desk, request: Request) -> dict[str, Any]:
    count = _whole(request, "count", DEFAULT_QUEUE, low=1, high=MAX_QUEUE)
    live, window = desk.models.get(), desk.settings.monitor.window
    images = await _in_ledger(desk, lambda engine: labelling.queue(engine, live.version, window, count))
    return {"version": live.version, "classes": list(live.classes), "images": images}


async def captured_image(desk: Desk, request: Request) -> Response:
    prediction = plain_text("a prediction", request.path_params["prediction_id"], _MAX_VERSION)
    rule = desk.models.get().bundle.manifest.input
    return _picture(await _in_ledger(desk, lambda engine: desk.pictures.captured(engine, prediction, rule)))


async def reference_image(desk: Desk, request: Request) -> Response:
    version, digest = request.path_params["version"], request.path_params["digest"]
    name = desk.settings.name
    return _picture(await _in_thread(desk, lambda: desk.pictures.reference(name, version, digest)))


async def promote(desk: Desk, request: Request) -> dict[str, Any]:
    actor = keys.actor_of(request.scope)
    reason = _reason(await read_json(request))
    version = plain_text("a version", request.path_params["version"], _MAX_VERSION)
    name = desk.settings.name
    return _deployed(
        await _in_ledger(desk, lambda engine: deployments.deploy(engine, name, version, reason=reason, actor=actor))
    )


async def roll_back(desk: Desk, request: Request) -> dict[str, Any]:
    actor = keys.actor_of(request.scope)
    reason = _reason(await read_json(request))
    name = desk.settings.name
    return _deployed(
        await _in_ledger(desk, lambda engine: deployments.roll_back(engine, name, reason=reason, actor=actor))
    )


def card(name: str, live: LiveModel) -> dict[str, Any]:
    """What is known of a live model, without the paths of the machine that trained it."""
    manifest = live.bundle.manifest.model_dump(mode="json", exclude={"files", "schema_number"})
    del manifest["dataset"]["location"]
    manifest["findings"] = [{"kind": each["kind"]} for each in manifest["findings"]]  # the rest names images
    manifest["pretrained"]["source"] = PurePath(manifest["pretrained"]["source"]).name
    trained_at = manifest.pop("created_at")
    return {
        **manifest,
        "name": name,
        "version": live.version,
        "trained_at": trained_at,
        "deployed_at": live.deployment.at.isoformat(),
        "reason": live.deployment.reason,
        "actor": live.deployment.actor,
        "bundle_sha256": live.bundle.digest,
    }


async def _in_ledger(desk: Desk, work: Callable[[sa.Engine], T]) -> T:
    return await _in_thread(desk, lambda: work(desk.link.engine()))


async def _in_thread(desk: Desk, work: Callable[[], T]) -> T:
    # Its own threads, so that a slow database never waits behind inference, nor inference behind it.
    return await asyncio.get_running_loop().run_in_executor(desk.ledger_threads, work)


def _json(document: Any) -> Response:
    if isinstance(document, Response):
        return document
    return Response(json_body(document), media_type="application/json")


def _picture(jpeg: bytes) -> Response:
    # What is under such a name never changes, but it may be removed; and it is nobody else's to keep.
    headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
    return Response(jpeg, media_type="image/jpeg", headers=headers)


def _deployed(deployment: Deployment) -> dict[str, Any]:
    return {
        "name": deployment.name,
        "version": deployment.version,
        "reason": deployment.reason,
        "actor": deployment.actor,
        "deployed_at": deployment.at.isoformat(),
        "event_id": deployment.event_id,
    }


def _reason(body: Any) -> str:
    reason = body.get("reason") if isinstance(body, dict) else None
    if not isinstance(reason, str) or not reason.strip():
        raise InvalidParameter('say why: {"reason": "..."}')
    return plain_text("a reason", reason.strip(), _MAX_REASON)


def _whole(request: Request, key: str, default: int, *, low: int, high: int) -> int:
    value = request.query_params.get(key)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and len(value) <= 19 and low <= int(value) <= high):
        raise InvalidParameter(f"{key}={value[:40]!r} is not a whole number from {low} to {high}")
    return int(value)
