"""The exception tree. Each class knows its HTTP status and its exit code; each message says what to do next.

Exit codes: 1 failed, 2 usage, 3 bad input data, 4 nothing to do, 11 the gate refused.
"""

from __future__ import annotations

from typing import ClassVar


class PerennialError(Exception):
    """Anything Perennial reports on purpose. `slug` ends the `type` of a problem document (RFC 9457)."""

    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    title: ClassVar[str] = "Perennial could not do this"
    slug: ClassVar[str] = "internal"
    retry_after_seconds: ClassVar[int | None] = None

    @property
    def detail(self) -> str:
        return str(self)


# --- usage -----------------------------------------------------------------------------------------------


class InvalidSettings(PerennialError):
    """A setting is unknown or out of range."""

    exit_code = 2
    title = "A setting is not valid"
    slug = "invalid-settings"


class InvalidParameter(PerennialError):
    """A query parameter, form field or JSON body is not what the call takes."""

    status = 422
    exit_code = 2
    title = "A parameter is not valid"
    slug = "invalid-parameter"


# --- images ----------------------------------------------------------------------------------------------


class InvalidImage(PerennialError):
    """The bytes are not an image, or are one that is broken off or corrupt."""

    status = 400
    exit_code = 3
    title = "Not an image that can be read"
    slug = "invalid-image"


class EmptyImage(InvalidImage):
    """There are no bytes at all."""

    title = "The image is empty"
    slug = "empty-image"


class TruncatedImage(InvalidImage):
    """The header is an image's, the rest is missing or corrupt."""

    title = "The image is truncated or corrupt"
    slug = "truncated-image"


class UnsupportedImageFormat(InvalidImage):
    """An image, but of a type Perennial does not read."""

    status = 415
    title = "An image type that is not read here"
    slug = "unsupported-image-format"


class TooManyBytes(InvalidImage):
    """More bytes than the limit."""

    status = 413
    title = "Too many bytes"
    slug = "too-many-bytes"


class TooManyPixels(InvalidImage):
    """More pixels than the limit, by the header; nothing was decoded."""

    status = 413
    title = "Too many pixels"
    slug = "too-many-pixels"


# --- training data and weights ---------------------------------------------------------------------------


class InvalidDataset(PerennialError):
    """The training data cannot be used as it is."""

    status = 422
    exit_code = 3
    title = "The training data cannot be used"
    slug = "invalid-dataset"


class WeightsUnavailable(PerennialError):
    """Pretrained weights cannot be had. Perennial never goes on with random ones."""

    title = "The pretrained weights cannot be had"
    slug = "weights-unavailable"


class WeightsChanged(WeightsUnavailable):
    """The pretrained checkpoint is not, byte for byte, the one the bundle was trained from."""

    title = "The pretrained weights have changed"
    slug = "weights-changed"


# --- models ----------------------------------------------------------------------------------------------


class InvalidBundle(PerennialError):
    """A bundle does not verify: a file is missing, has other bytes, or the manifest cannot be read."""

    title = "The bundle does not verify"
    slug = "invalid-bundle"


class NoLiveModel(PerennialError):
    """Nothing has been deployed yet."""

    status = 503
    title = "No model is live"
    slug = "no-live-model"
    retry_after_seconds = 5


class UnknownModel(PerennialError):
    """No model has that version."""

    status = 404
    exit_code = 2
    title = "No such model"
    slug = "unknown-model"


class GateRefused(PerennialError):
    """The challenger is not better than the champion, so it does not go live."""

    exit_code = 11
    title = "The gate refused the challenger"
    slug = "gate-refused"


class Overtaken(PerennialError):
    """Another model went live while this one was being judged."""

    status = 409
    title = "Another model went live meanwhile"
    slug = "overtaken"


class NothingToDo(PerennialError):
    """There is no work for this command now."""

    status = 409
    exit_code = 4
    title = "Nothing to do"
    slug = "nothing-to-do"


# --- places where things are kept ------------------------------------------------------------------------


class UnknownPrediction(PerennialError):
    """No prediction has that id."""

    status = 404
    exit_code = 3
    title = "No such prediction"
    slug = "unknown-prediction"


class UnknownPicture(PerennialError):
    """There is no picture of that: the image is not kept, or never was."""

    status = 404
    exit_code = 3
    title = "No such picture"
    slug = "unknown-picture"


class UnknownLabel(InvalidParameter):
    """The model that made a prediction has no such class."""

    title = "No such class"
    slug = "unknown-label"


class LedgerUnavailable(PerennialError):
    """The ledger's database does not answer."""

    status = 503
    title = "The ledger cannot be reached"
    slug = "ledger-unavailable"
    retry_after_seconds = 2


class JournalFull(PerennialError):
    """The local disk has no room left to record predictions on."""

    status = 503
    title = "Predictions cannot be recorded"
    slug = "journal-full"
    retry_after_seconds = 30


class PredictionPending(PerennialError):
    """The prediction is not in the ledger yet, but may be on its way there."""

    status = 503
    title = "The prediction may still be on its way to the ledger"
    slug = "prediction-pending"
    retry_after_seconds = 2


class LeaseHeld(PerennialError):
    """Another process holds the lease on this work."""

    exit_code = 4
    title = "Somebody else is doing this now"
    slug = "lease-held"


class LeaseLost(PerennialError):
    """This process held the lease on its work and did not renew it in time; another took it."""

    title = "Somebody else took this over"
    slug = "lease-lost"


class StorageUnavailable(PerennialError):
    """A file in storage cannot be read or written."""

    status = 503
    title = "The storage cannot be reached"
    slug = "storage-unavailable"
    retry_after_seconds = 2


class DiskFull(PerennialError):
    """A disk that training writes to has no room left."""

    title = "A disk is full"
    slug = "disk-full"


class WorkspaceUnavailable(PerennialError):
    """The local folder of the Evidently workspace cannot be read or written."""

    title = "The Evidently workspace cannot be used"
    slug = "workspace-unavailable"


class DrawingFailed(PerennialError):
    """Evidently's report of a check could not be drawn."""

    title = "Evidently's report could not be drawn"
    slug = "drawing-failed"


# --- traffic ---------------------------------------------------------------------------------------------


class Overloaded(PerennialError):
    """The queue is full; the work was not begun."""

    status = 503
    title = "Too busy"
    slug = "overloaded"
    retry_after_seconds = 1


class InferenceLost(PerennialError):
    """The process that decodes and infers ended; it is being started again."""

    status = 503
    title = "The image could not be scored just now"
    slug = "inference-lost"
    retry_after_seconds = 1


class TooSlow(PerennialError):
    """The answer was not ready within the time-out."""

    status = 504
    title = "Too slow"
    slug = "timeout"


class MalformedRequest(PerennialError):
    """What came is not HTTP, or broke off."""

    status = 400
    title = "Not a request that can be read"
    slug = "malformed-request"


class UrlTooLong(PerennialError):
    """More bytes of path and query than the limit."""

    status = 414
    title = "The URL is too long"
    slug = "url-too-long"


class HeadersTooLarge(PerennialError):
    """More header lines, or more bytes of them, than the limit."""

    status = 431
    title = "The header is too large"
    slug = "headers-too-large"


class UnknownPath(PerennialError):
    """There is nothing at that path."""

    status = 404
    title = "There is nothing here"
    slug = "unknown-path"


class MethodNotAllowed(PerennialError):
    """The path is right, the HTTP method is not."""

    status = 405
    title = "Not with this method"
    slug = "method-not-allowed"


class Unauthorized(PerennialError):
    """The call needs a key and has none, or one that is not known."""

    status = 401
    title = "A key is needed"
    slug = "unauthorized"


class Forbidden(PerennialError):
    """The call is not allowed from here or with this key."""

    status = 403
    title = "Not allowed"
    slug = "forbidden"
