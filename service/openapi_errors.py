"""What a call answers when it fails, for the OpenAPI document: by status, with an example of each problem."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from perennial.errors import (
    EmptyImage,
    Forbidden,
    HeadersTooLarge,
    InferenceLost,
    InvalidImage,
    InvalidParameter,
    JournalFull,
    LedgerUnavailable,
    MalformedRequest,
    NoLiveModel,
    NothingToDo,
    Overloaded,
    Overtaken,
    PerennialError,
    PredictionPending,
    TooManyBytes,
    TooManyPixels,
    TooSlow,
    TruncatedImage,
    Unauthorized,
    UnknownLabel,
    UnknownModel,
    UnknownPicture,
    UnknownPrediction,
    UnsupportedImageFormat,
    UrlTooLong,
)
from service import problems

Response = dict[str, Any]
Errors = Iterable[type[PerennialError]]

#: Anything may have a broken or too large header, come from a page of another origin, or meet a fault.
ALWAYS: Final = (MalformedRequest, Forbidden, UrlTooLong, HeadersTooLarge, PerennialError)
IMAGE: Final = (EmptyImage, InvalidImage, TruncatedImage, TooManyBytes, TooManyPixels, UnsupportedImageFormat)
SCORING: Final = (NoLiveModel, Overloaded, JournalFull, InferenceLost, TooSlow)
LEDGER: Final = (LedgerUnavailable, TooSlow)
BODY: Final = (InvalidParameter, TooManyBytes)

_MEANINGS: Final = {
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
    503: "Not now; `Retry-After` says when to ask again",
    504: "No answer in time",
}
#: One of each.
EXAMPLES: Final = {
    type(error): problems.plain_document(error)
    for error in (
        MalformedRequest("the request could not be read"),
        EmptyImage("there are no bytes; send the image as the request body or in the field `image`"),
        InvalidImage("these 12 bytes are not an image; send JPEG, PNG, WEBP, GIF, BMP, TIFF"),
        TruncatedImage(
            "the JPEG header is fine but the image data is not (image file is truncated); send the whole file"
        ),
        Unauthorized("this call needs a key: `Authorization: Bearer KEY` or `X-API-Key: KEY`"),
        Forbidden("the key camera-1 allows predict; this call needs admin"),
        UnknownPrediction("there is no prediction '01a1fb77-194f-7ebc-b7bf-c270089afb4e'"),
        UnknownPicture("no image is kept of prediction '01a1fb77-194f-7ebc-b7bf-c270089afb4e'"),
        UnknownModel("flowers has no version '20261120-000000-00000'; the newest are: 20261121-001723-77540"),
        NothingToDo("flowers has no earlier version to go back to"),
        Overtaken("the rollout of 20261122-030112-91027 has moved on or ended meanwhile; look again"),
        TooManyBytes("more than 20,971,520 bytes; at most 20,971,520 are accepted"),
        TooManyPixels("90000 x 90000 is 8,100,000,000 pixels; at most 50,000,000 are accepted"),
        UrlTooLong("9,000 bytes of path and query; at most 8,192 are accepted"),
        UnsupportedImageFormat("HEIC is not read here; send JPEG, PNG, WEBP, GIF, BMP, TIFF"),
        InvalidParameter("top='0' is not a whole number from 1 to 3, the number of classes"),
        UnknownLabel("'dasy' is not a class of model 20261121-001723-77540; its classes are: aster, daisy, tulip"),
        HeadersTooLarge("140 header lines; at most 100 are accepted"),
        PerennialError("this is a fault of the server, not of the request; its log says more"),
        NoLiveModel("no model named 'flowers' is live yet; train one: perennial train DATA --name flowers"),
        Overloaded("as many images as may be, 128, are being worked on; try again soon"),
        JournalFull(
            "the disk of /data/journal has 104,857,600 bytes left and 268,435,456 are kept free "
            "(serve.min_free_bytes); free some disk space"
        ),
        InferenceLost("the inference process ended; it is being started again"),
        LedgerUnavailable("the database does not answer"),
        PredictionPending("not every prediction has reached the ledger yet; send the labels again soon"),
        TooSlow("no answer within 30 seconds"),
    )
}


def responses(errors: Errors) -> dict[str, Response]:
    """The answers of a call that may fail with these errors, and with those that any call may, by status."""
    by_status: dict[int, list[type[PerennialError]]] = {}
    every: list[type[PerennialError]] = [*ALWAYS, *errors]
    for error in every:
        found = by_status.setdefault(error.status, [])
        if error not in found:
            found.append(error)
    return {
        str(status): {"$ref": f"#/components/responses/{found[0].slug}"} if len(found) == 1 else _response(found)
        for status, found in sorted(by_status.items())
    }


def components() -> dict[str, dict[str, Any]]:
    """What `responses` refers to."""
    return {
        "responses": {error.slug: _response([error]) for error in EXAMPLES},
        "examples": {error.slug: {"summary": error.title, "value": value} for error, value in EXAMPLES.items()},
        "headers": {
            "X-Request-ID": {
                "description": "The one that was sent, or else a new one.",
                "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
            },
            "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}},
            "WWW-Authenticate": {"schema": {"const": "Bearer"}},
        },
    }


def headers(*names: str) -> dict[str, Any]:
    """Those of an answer, by name, beside the one that every answer has."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-ID", *names)}


def _response(errors: list[type[PerennialError]]) -> Response:
    status = errors[0].status
    more = {401: ("WWW-Authenticate",), 503: ("Retry-After",)}.get(status, ())
    content = {
        "schema": {"$ref": "#/components/schemas/Problem"},
        "examples": {error.slug: {"$ref": f"#/components/examples/{error.slug}"} for error in errors},
    }
    return {
        "description": _MEANINGS[status],
        "headers": headers(*more),
        "content": {problems.MEDIA_TYPE: content},
    }
