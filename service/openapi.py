"""The OpenAPI 3.1 document of every call (`/docs.json`), and the page at `/` that lists them.

Both are made once, when a worker starts. A test holds the document to the routes that exist, in both directions, and
another one attacks a server by it.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, Final

from perennial.images import FORMATS
from perennial.overview import MOST_HOURS
from perennial.settings_sections import ServeSettings
from service import problems
from service.edge import Page
from service.keys import Keyring
from service.openapi_schemas import PREDICTION, PROBLEM, Schema, object_of, schemas
from service.ops.page import ASSETS

#: Paths that the Edge answers with a page.
PAGES: Final = ("/", "/docs.json")

_TITLES: Final = {
    400: "Not an image that can be read, or not a request",
    401: "A key is needed, and this one is missing, unknown or expired",
    403: "Not allowed: by this key, from this address, or from a page of another origin",
    404: "No such thing",
    409: "Nothing to do, or another model went live meanwhile",
    413: "Too many bytes, or too many pixels by the header",
    414: "The URL is too long",
    415: "An image type that is not read here",
    422: "A parameter, form field or JSON body that is not what the call takes",
    431: "The header is too large",
    500: "A fault of the server; its log says more",
    503: "Not now: full, no model live, inference starting again, or the ledger or the disk is away; `Retry-After` "
    "says when to ask again",
    504: "No answer in time",
}
_ALWAYS: Final = (400, 403, 414, 431, 500)  # anything may have a broken or too large header
_IMAGE_TYPES: Final = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff")


def pages(serve: ServeSettings) -> dict[str, Page]:
    """What the Edge answers at `PAGES`."""
    whole = document(serve)
    return {
        "/": Page("text/html; charset=utf-8", _page(whole).encode()),
        "/docs.json": Page("application/json", json.dumps(whole, ensure_ascii=False).encode()),
    }


def document(serve: ServeSettings) -> dict[str, Any]:
    """The OpenAPI document of a service with these settings: limits and the calls that need a key depend on them."""
    paths = _paths(serve)
    keyring = Keyring(serve, frozenset(paths))
    for path, operations in paths.items():
        for operation in operations.values():
            if keyring.guards(path):
                operation["security"] = [{"bearer": []}, {"header": []}]
                operation["responses"]["401"] = _problem(401)
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
    }
    formats = ", ".join(FORMATS)
    return {
        "/v1/predict": {
            "post": _operation(
                "predict", f"Classify one image ({formats}): the raw body, or the field `image` of a form.",
                "Prediction", (413, 415, 422, 503, 504), PREDICTION, predict,
            )
        },
        "/v1/predict/batch": {
            "post": _operation(
                "predict_batch", "Classify many images; one that cannot be read fails alone.",
                "Batch", (413, 422, 503, 504), {"results": [PREDICTION, {"error": PROBLEM}]},
                {
                    "parameters": [top, x_source],
                    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": batch}}},
                },
            )
        },
        "/v1/feedback": {
            "post": _operation(
                "feedback", "Say what the right answer was; of several labels for a prediction the last one counts.",
                "Accepted", (404, 413, 422, 503, 504),
                {"accepted": 1, "kept": 0, "unknown_predictions": [], "unknown_labels": []},
                {
                    "requestBody": _json_body(
                        {"oneOf": [label, {"type": "array", "items": label, "maxItems": 10_000}]},
                        {"prediction_id": PREDICTION["prediction_id"], "label": "aster", "source": "Ann"},
                    )
                },
            )
        },
        "/v1/model": {"get": _operation("model", "The card of the live model.", "Model", (503, 504))},
        "/v1/status": {"get": _operation("status", "What the monitor found last.", "Status", (503, 504))},
        "/v1/events": {
            "get": _operation(
                "events", "The audit trail, oldest first.", "Events", (422, 503, 504), None,
                {
                    "parameters": [
                        _query("after", {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
                               "Only events after this id; `after` of the page before."),
                        _query("limit", {"type": "integer", "minimum": 1, "maximum": 1000}, "100 unless given."),
                    ]
                },
            )
        },
        "/v1/overview": {
            "get": _operation(
                "overview", "Everything at a glance, as the page at `/ops` shows it.", "Overview", (422, 503, 504),
                None, {
                    "parameters": [
                        _query("hours", {"type": "integer", "minimum": 1, "maximum": MOST_HOURS},
                               "How far back traffic, checks and deployments go; 24 unless given.")
                    ]
                },
            )
        },
        "/v1/labels/queue": {
            "get": _operation(
                "labels_queue", "What to label next: half drawn at random, half what the model was least sure of.",
                "LabelsQueue", (422, 503, 504), None,
                {
                    "parameters": [
                        _query("count", {"type": "integer", "minimum": 1, "maximum": 100}, "20 unless given.")
                    ]
                },
            )
        },
        "/v1/images/{prediction_id}": {
            "get": _picture(
                "captured_image", "What the model saw of a captured image, small. Without any key for it, this machine "
                "only.", {**which, "name": "prediction_id"}
            )
        },
        "/v1/references/{version}/{digest}": {
            "get": _picture(
                "reference_image", "A reference image that a check has shown, small. As captured images.", which,
                {**which, "name": "digest", "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
            )
        },
        "/v1/models/{version}/promote": {
            "post": _operation(
                "promote", "Make a version live, without the gate. Needs an admin key, or this machine where there is "
                "none.", "Deployment", (404, 409, 413, 422, 503, 504), None, {"parameters": [which], **deploying},
            )
        },
        "/v1/rollback": {
            "post": _operation(
                "rollback", "Go back to the version before. Needs an admin key, or this machine where there is none.",
                "Deployment", (404, 409, 413, 422, 503, 504), None, deploying,
            )
        },
        "/classify": {
            "post": _operation(
                "classify", "The same prediction for `bentoml.SyncHTTPClient`.",
                "Prediction", (413, 415, 422, 503, 504), PREDICTION,
                {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}},
            )
        },
        "/livez": {"get": _plain("livez", "The worker runs.", "text/plain", ())},
        "/healthz": {"get": _plain("healthz", "The same.", "text/plain", ())},
        "/readyz": {"get": _plain("readyz", "A verified model is loaded in this worker.", "text/plain", (503,))},
        "/metrics": {"get": _plain("metrics", "Prometheus metrics.", "text/plain", ())},
        "/schema.json": {"get": _plain("schema", "BentoML's own description of `/classify`.", "application/json", ())},
        "/docs.json": {"get": _plain("docs", "This document.", "application/json", ())},
        "/": {"get": _plain("page", "A page that lists the calls.", "text/html", ())},
        **{
            path: {"get": _plain(file.replace(".", "_"), said, media_type.split(";")[0], ())}
            for path, (file, media_type, said) in ASSETS.items()
        },
    }  # fmt: skip


def _operation(
    name: str,
    summary: str,
    answer: str,
    statuses: Iterable[int],
    example: Any = None,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{answer}"}}
    if example is not None:
        content["example"] = example
    return _described(name, summary, {"application/json": content}, statuses, more or {})


def _plain(name: str, summary: str, media_type: str, statuses: Iterable[int]) -> dict[str, Any]:
    return _described(name, summary, {media_type: {}}, statuses, {})


def _picture(name: str, summary: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    return _described(name, summary, {"image/jpeg": {}}, (404, 422, 503, 504), {"parameters": list(parameters)})


def _described(
    name: str, summary: str, content: dict[str, Any], statuses: Iterable[int], more: dict[str, Any]
) -> dict[str, Any]:
    refused = {str(status): _problem(status) for status in sorted({*_ALWAYS, *statuses})}
    answered = {"200": {"description": "Done", "headers": _request_id(), "content": content}}
    return {"operationId": name, "summary": summary, **more, "responses": answered | refused}


def _problem(status: int) -> dict[str, Any]:
    return {
        "description": _TITLES[status],
        "headers": _request_id(),
        "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def _request_id() -> dict[str, Any]:
    return {"X-Request-ID": {"schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"}}}


def _query(name: str, schema: Schema, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _json_body(schema: Schema, example: Any) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


def _binary(description: str) -> Schema:
    return {"type": "string", "contentMediaType": "application/octet-stream", "description": description}


def _page(whole: dict[str, Any]) -> str:
    """One page without anything from elsewhere."""
    rows = "".join(
        f"<tr><td><code>{method.upper()} {html.escape(path)}</code></td><td>{html.escape(each['summary'])}</td></tr>"
        for path, operations in whole["paths"].items()
        for method, each in operations.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Perennial</title>'
        '<meta name="viewport" content="width=device-width">'
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "td{padding:.2rem .8rem .2rem 0;vertical-align:top}pre{overflow:auto}"
        "@media(prefers-color-scheme:dark){body{background:#111;color:#eee}a{color:#8cf}}</style>"
        "<h1>Perennial</h1><p>Classifies images with the live model, and records every prediction.</p>"
        "<pre>curl --data-binary @photo.jpg &lt;this address&gt;/v1/predict</pre>"
        f'<table>{rows}</table><p><a href="/docs.json">The OpenAPI document of these calls</a></p></html>'
    )
