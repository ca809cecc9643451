"""Errors as `application/problem+json` (RFC 9457), built from the classes of `perennial.errors`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from perennial.errors import (
    InvalidParameter,
    MalformedRequest,
    MethodNotAllowed,
    NoLiveModel,
    PerennialError,
    TooSlow,
    UnknownPath,
)
from service import metrics

MEDIA_TYPE: Final = "application/problem+json"
URN: Final = "urn:perennial:problem:"

logger = logging.getLogger("perennial.service")


def document(error: PerennialError) -> dict[str, Any]:
    """The problem document of an error; counts it by its slug."""
    metrics.rejected.add((error.slug,))
    return plain_document(error)


def plain_document(error: PerennialError) -> dict[str, Any]:
    """The problem document of an error, not counted."""
    return {
        "type": f"{URN}{error.slug}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
    }


def response(error: PerennialError, headers: Mapping[str, str] | None = None) -> Response:
    """The whole answer, with `Retry-After` and `WWW-Authenticate` where they belong."""
    extra = dict(headers or {})
    if error.retry_after_seconds is not None:
        extra["Retry-After"] = str(error.retry_after_seconds)
    if error.status == HTTPStatus.UNAUTHORIZED:
        extra["WWW-Authenticate"] = "Bearer"
    return Response(json.dumps(document(error)), error.status, extra, MEDIA_TYPE)


def of_status(status: int, path: str, method: str) -> PerennialError:
    """The error that says what an answer of BentoML's or Starlette's own means."""
    if status == HTTPStatus.NOT_FOUND:
        return UnknownPath(f"there is nothing at {path[:200]}; the calls are listed at /docs.json and in docs/http.md")
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return MethodNotAllowed(f"{path[:200]} does not take {method[:20]}; the header `Allow` says what it takes")
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return NoLiveModel("not ready: no verified model is loaded in this worker yet; /v1/model says more")
    if status == HTTPStatus.GATEWAY_TIMEOUT:
        return TooSlow("the answer did not come in time")
    if status == HTTPStatus.BAD_REQUEST:
        return MalformedRequest("the request could not be read")
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return InvalidParameter("the request could not be read")
    return unexpected()


def unexpected() -> PerennialError:
    """What is said of a fault of ours. The cause is in the log, not in the answer."""
    return PerennialError("this is a fault of the server, not of the request; its log says more")


async def on_error(request: Request, error: Exception) -> Response:
    """Exception handler of the mounted routes."""
    if isinstance(error, PerennialError):
        if error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            logger.error("%s %s: %s", request.method, request.url.path, error, exc_info=error)
        return response(error)
    if isinstance(error, HTTPException):
        return response(of_status(error.status_code, request.url.path, request.method), error.headers)
    if isinstance(error, ClientDisconnect):
        return response(MalformedRequest("the request broke off before its body was complete"))
    raise error
