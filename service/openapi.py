"""The OpenAPI 3.1 document of every call (`/docs.json`), and the page at `/` that lists them.

Both are made once, when a worker starts. A test holds the document to the routes that exist, in both directions, and
another one attacks a server by it.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

from perennial.errors import (
    InvalidParameter,
    NoLiveModel,
    NothingToDo,
    Overtaken,
    PredictionPending,
    TooSlow,
    Unauthorized,
    UnknownLabel,
    UnknownModel,
    UnknownPicture,
    UnknownPrediction,
)
from perennial.images import FORMATS
from perennial.json_body import json_body
from perennial.overview import MOST_HOURS
from perennial.settings_sections import ServeSettings
from service import openapi_errors as errors
from service.edge import Page, etag_of
from service.keys import Keyring
from service.openapi_examples import ANSWERS, LABEL, METRICS
from service.openapi_page import page_of
from service.openapi_schemas import Schema, object_of, schemas
from service.ops.page import ASSETS

#: Paths that the Edge answers with a page.
PAGES: Final = ("/", "/docs.json")

_IMAGE_TYPES: Final = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff")


def pages(serve: ServeSettings) -> dict[str, Page]:
    """What the Edge answers at `PAGES`."""
    whole = document(serve)
    bodies = {
        "/": ("text/html; charset=utf-8", page_of(whole).encode()),
        "/docs.json": ("application/json", json_body(whole)),
    }
    return {path: Page(media_type, body, etag_of(body)) for path, (media_type, body) in bodies.items()}


def document(serve: ServeSettings) -> dict[str, Any]:
    """The OpenAPI document of a service with these settings: limits and the calls that need a key depend on them."""
    paths = _paths(serve)
    keyring = Keyring(serve, frozenset(paths))
    for path, operations in paths.items():
        for operation in operations.values():
            if keyring.guards(path):
                operation["security"] = [{"bearer": []}, {"header": []}]
                operation["responses"]["401"] = errors.responses([Unauthorized])["401"]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Perennial",
            "version": version("perennial"),
            "summary": "An image classifier that watches its traffic.",
            "description": "Errors are problem documents (RFC 9457). Every answer carries `X-Request-ID`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas(),
            **errors.components(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _paths(serve: ServeSettings) -> dict[str, dict[str, dict[str, Any]]]:
    image: dict[str, Schema] = {media: {} for media in _IMAGE_TYPES}
    source = {"type": "string", "maxLength": 200, "description": "Where the image came from."}
    form = object_of({"image": _binary("The image."), "source": source}, required=["image"])
    batch = object_of(
        {
            "images": {
                "type": "array",
                "items": _binary("An image."),
                "minItems": 1,
                "maxItems": min(serve.max_batch, serve.max_queue),
            },
            "source": source,
        },
        required=["images"],
    )
    top = _query(
        "top", {"type": "integer", "minimum": 1}, "How many classes to list, at most all of them; 3 unless given."
    )
    x_source = {
        "name": "X-Source",
        "in": "header",
        "description": "Where the image came from, if there is no form with a `source`; at most 200 characters.",
        "schema": {"type": "string"},
    }
    label = {"$ref": "#/components/schemas/Label"}
    reason = object_of(
        {
            "reason": {
                "type": "string",
                "minLength": 1,
                "maxLength": 1000,
                "pattern": r"^\s*[^\u0000-\u001f\u007f]*\S[^\u0000-\u001f\u007f]*\s*$",
            }
        },
        required=["reason"],
    )
    deploying = {"requestBody": _json_body(reason, {"reason": "passed the field test"})}
    which = {
        "name": "version",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": r"^[A-Za-z0-9._-]+$", "maxLength": 64},
    }
    predict = {
        "parameters": [top, x_source],
        "requestBody": {"required": True, "content": {**image, "multipart/form-data": {"schema": form}}},
        **_curl("--data-binary @photo.jpg 'http://127.0.0.1:3000/v1/predict?top=2'"),
    }
    scoring = (*errors.IMAGE, *errors.SCORING, InvalidParameter)
    formats = ", ".join(FORMATS)
    return {
        "/v1/predict": {
            "post": _operation(
                "predict", f"Classify one image ({formats}): the raw body, or the field `image` of a form.",
                "Prediction", scoring, predict,
            )
        },
        "/v1/predict/batch": {
            "post": _operation(
                "predict_batch", "Classify many images; one that cannot be read fails alone.",
                "Batch", (*errors.BODY, *errors.SCORING),
                {
                    "parameters": [top, x_source],
                    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": batch}}},
                    **_curl("-F images=@photo.jpg -F images=@other.jpg http://127.0.0.1:3000/v1/predict/batch"),
                },
            )
        },
        "/v1/feedback": {
            "post": _operation(
                "feedback", "Say what the right answer was; of several labels for a prediction the last one counts.",
                "Accepted", (UnknownPrediction, *errors.BODY, UnknownLabel, *errors.LEDGER, PredictionPending),
                {
                    "requestBody": _json_body(
                        {"oneOf": [label, {"type": "array", "items": label, "maxItems": 10_000}]}, LABEL
                    )
                },
            )
        },
        "/v1/model": {"get": _operation("model", "The card of the live model.", "Model", (NoLiveModel, TooSlow))},
        "/v1/status": {"get": _operation("status", "What the monitor found last.", "Status", errors.LEDGER)},
        "/v1/events": {
            "get": _operation(
                "events", "The audit trail, oldest first.", "Events", (InvalidParameter, *errors.LEDGER),
                {
                    "parameters": [
                        _query("after", {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
                               "Only events after this id; `after` of the page before."),
                        _query("limit", {"type": "integer", "minimum": 1, "maximum": 1000}, "100 unless given."),
                    ]
                },
            )
        },
        "/v1/overview": {"get": _overview()},
        "/v1/labels/queue": {
            "get": _operation(
                "labels_queue", "What to label next: half drawn at random, half what the model was least sure of.",
                "LabelsQueue", (InvalidParameter, NoLiveModel, *errors.LEDGER),
                {
                    "parameters": [
                        _query("count", {"type": "integer", "minimum": 1, "maximum": 100}, "20 unless given.")
                    ]
                },
            )
        },
        "/v1/images/{prediction_id}": {
            "get": _described(
                "captured_image", "What the model saw of a captured image, small. Without any key for it, this machine "
                "only.", {"image/jpeg": {}}, (UnknownPicture, InvalidParameter, NoLiveModel, *errors.LEDGER),
                {"parameters": [{**which, "name": "prediction_id"}]},
            )
        },
        "/v1/references/{version}/{digest}": {
            "get": _described(
                "reference_image", "A reference image that a check has shown, small. As captured images.",
                {"image/jpeg": {}}, (UnknownPicture, TooSlow),
                {"parameters": [
                    which, {**which, "name": "digest", "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"}}
                ]},
            )
        },
        "/v1/models/{version}/promote": {
            "post": _operation(
                "promote", "Make a version live, without the gate. Needs an admin key, or this machine where there is "
                "none.", "Deployment", (UnknownModel, Overtaken, *errors.BODY, *errors.LEDGER),
                {"parameters": [which], **deploying},
            )
        },
        "/v1/rollback": {
            "post": _operation(
                "rollback", "Go back to the version before. Needs an admin key, or this machine where there is none.",
                "Deployment", (NothingToDo, Overtaken, *errors.BODY, *errors.LEDGER), deploying,
            )
        },
        "/classify": {
            "post": _operation(
                "classify", "The same prediction for `bentoml.SyncHTTPClient`.", "Prediction", scoring,
                {
                    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
                    **_curl("-F image=@photo.jpg http://127.0.0.1:3000/classify"),
                },
            )
        },
        "/livez": {"get": _plain("livez", "The worker runs.", "text/plain", "")},
        "/healthz": {"get": _plain("healthz", "The same.", "text/plain", "")},
        "/readyz": {
            "get": _plain("readyz", "A verified model is loaded in this worker.", "text/plain", "", (NoLiveModel,))
        },
        "/metrics": {"get": _plain("metrics", "Prometheus metrics.", "text/plain", METRICS)},
        "/schema.json": {
            "get": _plain(
                "schema", "BentoML's own description of `/classify`.", "application/json",
                {"name": "Perennial", "type": "service", "routes": [{"name": "classify", "route": "/classify"}]},
            )
        },
        "/docs.json": {
            "get": _plain("docs", "This document.", "application/json", {"openapi": "3.1.0", "info": {}, "paths": {}})
        },
        "/": {"get": _plain("page", "A page that lists the calls.", "text/html")},
        **{
            path: {"get": _plain(file.replace(".", "_"), said, media_type.split(";")[0])}
            for path, (file, media_type, said) in ASSETS.items()
        },
    }  # fmt: skip


def _overview() -> dict[str, Any]:
    hours = _query(
        "hours",
        {"type": "integer", "minimum": 1, "maximum": MOST_HOURS},
        "How far back traffic, checks and deployments go; 24 unless given.",
    )
    known = {
        "name": "If-None-Match",
        "in": "header",
        "description": "The `ETag` of an answer before.",
        "schema": {"type": "string"},
    }
    made = _operation(
        "overview",
        "Everything at a glance, as the page at `/ops` shows it.",
        "Overview",
        (InvalidParameter, *errors.LEDGER),
        {"parameters": [hours, known]},
    )
    same = {"description": "Nothing but the time has changed since that answer", "headers": errors.headers()}
    return {**made, "responses": {**made["responses"], "304": same}}


def _operation(
    name: str, summary: str, answer: str, may_fail: errors.Errors, more: dict[str, Any] | None = None
) -> dict[str, Any]:
    content = {"schema": {"$ref": f"#/components/schemas/{answer}"}, "example": ANSWERS[answer]}
    return _described(name, summary, {"application/json": content}, may_fail, more or {})


def _plain(
    name: str, summary: str, media_type: str, example: Any = None, may_fail: errors.Errors = ()
) -> dict[str, Any]:
    """A document or a file; only what is read by programs has an example."""
    if example is None:
        return _described(name, summary, {media_type: {}}, may_fail, {})
    schema = {"type": "string" if isinstance(example, str) else "object"}
    return _described(name, summary, {media_type: {"schema": schema, "example": example}}, may_fail, {})


def _described(
    name: str, summary: str, content: dict[str, Any], may_fail: errors.Errors, more: dict[str, Any]
) -> dict[str, Any]:
    answered = {"200": {"description": "Done", "headers": errors.headers(), "content": content}}
    return {"operationId": name, "summary": summary, **more, "responses": answered | errors.responses(may_fail)}


def _curl(what: str) -> dict[str, Any]:
    """The example of a request whose body is an image: JSON has no way to write one."""
    return {"x-codeSamples": [{"lang": "Shell", "label": "curl", "source": f"curl {what}"}]}


def _query(name: str, schema: Schema, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _json_body(schema: Schema, example: Any) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


def _binary(description: str) -> Schema:
    return {"type": "string", "contentMediaType": "application/octet-stream", "description": description}
