"""Reading request bodies without trusting them: every byte, part and field is counted as it arrives."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from perennial.errors import InvalidImage, InvalidParameter, TooManyBytes
from perennial.settings_sections import ServeSettings
from service.body_memory import BodyMemory, Hold

MAX_JSON_BYTES: Final = 4 * 2**20
MAX_SOURCE: Final = 200  # characters, as the ledger keeps
_MAX_FIELD_BYTES: Final = 16 * 1024
_MAX_FIELDS: Final = 16
_PART_OVERHEAD: Final = 4 * 1024  # boundary and headers of one part
# Neither control characters nor half surrogate pairs, which a database would not take.
_PLAIN: Final = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]*")


@dataclass(frozen=True, slots=True)
class Upload:
    """The images of one request, in order; one that is too large is its error. `source`: who sent them, if said."""

    images: tuple[bytes | InvalidImage, ...]
    source: str | None


def is_multipart(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


def hold(memory: BodyMemory, request: Request, most: int) -> Hold:
    """Room for a request's body of at most `most` bytes."""
    length = request.headers.get("content-length", "")
    return memory.hold(min(int(length), most) if length.isdigit() else most)


async def read_image(request: Request, serve: ServeSettings, room: Hold) -> Upload:
    """One image: the raw body, or the multipart field `image`.

    Raises:
        TooManyBytes: the body, by its header or as it arrives, is over `serve.max_bytes`.
        Overloaded: with those of other requests it is over `serve.max_queue_bytes`.
        InvalidParameter: the form is broken or has no such file.
    """
    if not is_multipart(request):
        return Upload((await _read_body(request, serve.max_bytes, room),), source_of(_source_header(request)))
    limit = serve.max_bytes + (_MAX_FIELDS + 1) * _PART_OVERHEAD
    return await _read_form(request, serve, room, field="image", most=1, limit=limit)


async def read_images(request: Request, serve: ServeSettings, room: Hold) -> Upload:
    """Many images: the multipart fields `images`. One that is too large fails alone.

    Raises:
        TooManyBytes: the whole body is more than `most_batch_bytes`.
        Overloaded: with those of other requests it is over `serve.max_queue_bytes`.
        InvalidParameter: not multipart, broken, no file, or too many of them.
    """
    if not is_multipart(request):
        raise InvalidParameter("send multipart/form-data with one part named `images` for each image")
    most = min(serve.max_batch, serve.max_queue)
    return await _read_form(request, serve, room, field="images", most=most, limit=most_batch_bytes(serve))


def most_batch_bytes(serve: ServeSettings) -> int:
    """The most bytes of a request with many images: what they may be by their number and size, or what a worker may
    hold."""
    most = min(serve.max_batch, serve.max_queue)
    return min(serve.max_queue_bytes, most * (serve.max_bytes + _PART_OVERHEAD) + _MAX_FIELDS * _MAX_FIELD_BYTES)


async def read_json(request: Request) -> Any:
    """A JSON body of at most `MAX_JSON_BYTES`.

    Raises:
        TooManyBytes, InvalidParameter.
    """
    body = await _read_body(request, MAX_JSON_BYTES)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(f"the body is not JSON: {error}") from error


def source_of(value: str | None) -> str | None:
    """A source as the ledger keeps it.

    Raises:
        InvalidParameter: too long, or with control characters.
    """
    return plain_text("a source", value, MAX_SOURCE) if value else None


def plain_text(what: str, value: str, most: int) -> str:
    """The text itself.

    Raises:
        InvalidParameter: more than `most` characters, or with control characters.
    """
    if len(value) > most or not _PLAIN.fullmatch(value):
        raise InvalidParameter(f"{what} has at most {most} characters, none of them a control character")
    return value


async def _read_body(request: Request, limit: int, room: Hold | None = None) -> bytes:
    """The whole body. Most come in one message, and are then neither copied nor joined."""
    _refuse_length(request, limit)
    chunks: list[bytes] = []
    total, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        total += len(chunk)
        if total > limit:
            raise TooManyBytes(f"more than {limit:,} bytes; at most {limit:,} are accepted")
        chunks.append(chunk)
        more = message.get("more_body", False)
        if room is not None:
            room.add(len(chunk), more=more)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _refuse_length(request: Request, limit: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise TooManyBytes(f"{int(length):,} bytes; at most {limit:,} are accepted")


async def _bounded(request: Request, limit: int, room: Hold) -> AsyncGenerator[bytes, None]:
    _refuse_length(request, limit)
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > limit:
            raise TooManyBytes(f"more than {limit:,} bytes; at most {limit:,} are accepted")
        room.add(len(chunk), more=True)
        yield chunk
    room.add(0, more=False)


async def _read_form(
    request: Request, serve: ServeSettings, room: Hold, *, field: str, most: int, limit: int
) -> Upload:
    parser = MultiPartParser(
        request.headers,
        _bounded(request, limit, room),
        max_files=most,
        max_fields=_MAX_FIELDS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidParameter(f"the form cannot be read: {error.message} (at most {most} files)") from error
    try:
        return await _collect(form, request, serve, field)
    finally:
        await form.close()


async def _collect(form: FormData, request: Request, serve: ServeSettings, field: str) -> Upload:
    parts = form.getlist(field)
    if not parts:
        named = ", ".join(sorted({f"`{name[:40]}`" for name in form})) or "nothing"
        raise InvalidParameter(f"the form has {named} but no file part named `{field}`")
    images: list[bytes | InvalidImage] = []
    for part in parts:
        if not isinstance(part, UploadFile):
            # A text field is never taken for a URL to fetch.
            raise InvalidParameter(f"the part `{field}` is text; send the image's bytes, as a file")
        if (part.size or 0) > serve.max_bytes:
            images.append(TooManyBytes(f"{part.size:,} bytes; at most {serve.max_bytes:,} are accepted"))
        else:
            images.append(await part.read())
    field_source = form.get("source")
    source = field_source if isinstance(field_source, str) else _source_header(request)
    return Upload(tuple(images), source_of(source))


def _source_header(request: Request) -> str | None:
    value = request.headers.get("x-source")  # Starlette reads headers as Latin-1, clients write UTF-8
    return value and value.encode("latin-1").decode("utf-8", "replace")
