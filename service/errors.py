"""What can go wrong between a request and its answer, and the one table that gives each its status code.

    LaploraError
    ├── ConfigError
    │   └── TracingUnavailableError     traces are asked for and OpenTelemetry is not installed; ends the start
    └── ServiceError
        ├── MalformedHttpError          bytes that are not HTTP/1.1
        ├── UnauthorizedError           no API key, or none of this server's
        ├── ForbiddenError              an API key without the scope that is needed
        ├── RouteNotFoundError          no endpoint at that path
        ├── FeedbackOffError            predictions are not kept, so none can be labelled
        ├── MethodNotAllowedError       the endpoint takes another method
        ├── ArtifactNotLoadedError      a known artifact that is not loaded
        ├── ArtifactActiveError         the active artifact, which cannot be unloaded
        ├── ActivationRunningError      another artifact is being loaded
        ├── LoadStuckError              a load that was given up still runs
        ├── ShelfFullError              no room for another artifact
        ├── JobNotFoundError            no job of that id, or another caller's
        ├── IdempotencyConflictError    the same key for two different uploads, or two at once
        ├── ArtifactChangedError        a job's artifact is not the one that is served now
        ├── BodyTooLargeError           more bytes than max_body_bytes
        ├── BatchTooLargeError          more inputs, members or tokens than one request may bring
        ├── MediaTypeError              a body that is not plain UTF-8 JSON
        ├── InvalidJsonError            a body that cannot be parsed
        ├── InvalidRequestError         JSON that does not fit the schema
        ├── UnscorableInputError        one input for which the model has no finite answer
        ├── TooManyBadRowsError         a job with more rows that cannot be scored than max_job_bad_rows
        ├── TooManyRequestsError        more requests, bytes, streams or connections at once than there is room for
        │   └── ClientTooManyRequestsError  one caller's share of them
        ├── QueueFullError              no room to wait
        │   └── ClientQueueFullError    one caller's share of it is full
        ├── TooManyJobsError            no room for another job
        ├── NotReadyError               the artifact is still loading
        ├── DrainingError               the server is stopping
        ├── JobsUnavailableError        the jobs folder cannot be had
        ├── StorageFullError            the disk has no room
        ├── DeviceMemoryError           one input alone does not fit the device
        ├── DeviceFaultError            the device failed for good; the process leaves
        ├── DeviceStalledError          the device's present run is overdue
        ├── DeadlineError               the request's time ran out
        ├── LoadTimeoutError            an artifact took too long to load
        └── ClientGoneError             nobody is left to read the answer

The engine raises these without knowing what a status code is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from laplora import errors as library

#: Longest message sent to a client, in characters: client-controlled names can end up in one.
MAX_MESSAGE_CHARACTERS = 600
_WORD = re.compile(r"[A-Za-z0-9_\[\]-]{1,64}")
#: Longest field path sent to a client, in characters.
MAX_FIELD_CHARACTERS = 200


class ServiceError(library.LaploraError):
    """Base of the service's own errors.

    Args:
        message: expected, got, what to do. Never prompt text.
        field: dotted path of the request field at fault, such as ``inputs.3.text``.
        limit: value of the limit that was passed.
        got: what came instead.
        retry_after_s: seconds after which another try makes sense.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        limit: int | None = None,
        got: int | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.field = field
        self.limit = limit
        self.got = got
        self.retry_after_s = retry_after_s


class MalformedHttpError(ServiceError):
    """Bytes that are not HTTP/1.1."""


class UnauthorizedError(ServiceError):
    """No API key, or none of this server's."""


class ForbiddenError(ServiceError):
    """An API key without the scope that is needed."""


class RouteNotFoundError(ServiceError):
    """No endpoint at that path."""


class MethodNotAllowedError(ServiceError):
    """The endpoint takes another method."""


class FeedbackOffError(ServiceError):
    """Predictions are not kept, so none can be labelled."""


class ArtifactNotLoadedError(ServiceError):
    """A known artifact that is not loaded."""


class ArtifactActiveError(ServiceError):
    """The active artifact, which cannot be unloaded."""


class ActivationRunningError(ServiceError):
    """Another artifact is being loaded."""


class LoadStuckError(ServiceError):
    """A load that was given up still runs, and holds memory that nobody can count."""


class LoadTimeoutError(ServiceError):
    """An artifact took longer to load than ``load_timeout_s``."""


class ShelfFullError(ServiceError):
    """No room for another artifact beside those in use."""


class JobNotFoundError(ServiceError):
    """No job of that id, or another caller's."""


class IdempotencyConflictError(ServiceError):
    """An upload under a key that is another job's, or another upload's that has not ended."""


class ArtifactChangedError(ServiceError):
    """A job's artifact is not the one that is served now."""


class BodyTooLargeError(ServiceError):
    """More bytes than ``max_body_bytes``."""


class BatchTooLargeError(ServiceError):
    """More inputs than ``max_inputs``, more values than those could have, or more tokens than the queue could hold."""


class MediaTypeError(ServiceError):
    """A body that is not plain UTF-8 JSON."""


class InvalidJsonError(ServiceError):
    """A body that cannot be parsed."""


class InvalidRequestError(ServiceError):
    """JSON that does not fit the schema."""


class UnscorableInputError(ServiceError):
    """One input for which the model has no finite answer."""


class TooManyBadRowsError(ServiceError):
    """A job with more rows that cannot be scored than it may have, or with no other."""


class TooManyRequestsError(ServiceError):
    """More than ``max_requests``, ``max_in_flight_bytes``, ``max_event_streams`` or ``max_connections``."""


class ClientTooManyRequestsError(TooManyRequestsError):
    """The caller has all the places, bytes, streams or connections that one caller may have."""


class QueueFullError(ServiceError):
    """No room to wait."""


class ClientQueueFullError(QueueFullError):
    """The caller's own requests hold all that one caller may."""


class TooManyJobsError(ServiceError):
    """No room for another job."""


class NotReadyError(ServiceError):
    """The artifact is still loading."""


class DrainingError(ServiceError):
    """The server is stopping."""


class JobsUnavailableError(ServiceError):
    """The jobs folder cannot be had; everything else is served."""


class StorageFullError(ServiceError):
    """The disk has no room for what a job needs to keep."""


class DeviceMemoryError(ServiceError):
    """One input alone does not fit the device's memory."""


class DeviceFaultError(ServiceError):
    """The device failed for good; the process leaves and a new one has to take its place."""


class DeviceStalledError(ServiceError):
    """The device's present run is overdue."""


class DeadlineError(ServiceError):
    """The request's time ran out."""


class ClientGoneError(ServiceError):
    """The client closed its connection: nobody is left to read the answer."""


class TracingUnavailableError(library.ConfigError):
    """Traces are asked for and OpenTelemetry is not installed. Raised at the start only, never answered."""


@dataclass(frozen=True)
class ErrorKind:
    """One row of the table.

    Attributes:
        raised: the exception, with its subclasses unless they have a row of their own.
        code: what clients branch on; it never changes.
        status: HTTP status code.
        meaning: one line for the API's documentation.
        retry_after_s: default of the ``Retry-After`` header in seconds, None for no header.
    """

    raised: type[Exception]
    code: str
    status: int
    meaning: str
    retry_after_s: int | None = None


#: The only place where a status code is chosen.
ERROR_KINDS: tuple[ErrorKind, ...] = (
    ErrorKind(MalformedHttpError, "malformed_http", 400, "The connection's bytes are not HTTP/1.1."),
    ErrorKind(UnauthorizedError, "unauthorized", 401, "No API key was sent, or none of this server's."),
    ErrorKind(ForbiddenError, "forbidden", 403, "The API key does not have the scope that is needed."),
    ErrorKind(RouteNotFoundError, "route_not_found", 404, "No endpoint at this path."),
    ErrorKind(library.ArtifactNotFoundError, "artifact_not_found", 404, "No artifact of this name."),
    ErrorKind(FeedbackOffError, "feedback_off", 404, "The server keeps no predictions: feedback_rows is 0."),
    ErrorKind(JobNotFoundError, "job_not_found", 404, "No job of this id, or another caller's."),
    ErrorKind(MethodNotAllowedError, "method_not_allowed", 405, "The endpoint takes another method."),
    ErrorKind(ArtifactNotLoadedError, "artifact_not_loaded", 409, "The artifact exists but is not loaded."),
    ErrorKind(ArtifactActiveError, "artifact_active", 409, "The active artifact cannot be unloaded."),
    ErrorKind(ActivationRunningError, "activation_running", 409, "Another artifact is being loaded."),
    ErrorKind(LoadStuckError, "load_stuck", 409, "A load that was given up still runs: no other can begin."),
    ErrorKind(ShelfFullError, "artifacts_full", 409, "No room for another artifact beside those in use."),
    ErrorKind(
        IdempotencyConflictError,
        "idempotency_conflict",
        409,
        "The Idempotency-Key is another job's, or of an upload that has not ended.",
    ),
    ErrorKind(ArtifactChangedError, "artifact_changed", 409, "A job's artifact is not the one that is served now."),
    ErrorKind(library.ArtifactCorruptError, "artifact_corrupt", 409, "The artifact's files are not what it says."),
    ErrorKind(
        library.GoldenMismatchError, "golden_mismatch", 409, "The artifact's recorded answers are not reproduced."
    ),
    ErrorKind(library.ArtifactError, "artifact_incompatible", 409, "The artifact does not fit this server."),
    ErrorKind(library.ModelError, "model_unsupported", 409, "The artifact's base model cannot be used."),
    ErrorKind(library.DownloadError, "model_unavailable", 409, "The artifact's base model could not be fetched."),
    ErrorKind(BodyTooLargeError, "body_too_large", 413, "More bytes than max_body_bytes."),
    ErrorKind(BatchTooLargeError, "batch_too_large", 413, "More inputs, values or tokens than one request may bring."),
    ErrorKind(MediaTypeError, "unsupported_media_type", 415, "The body is not plain UTF-8 application/json."),
    ErrorKind(InvalidJsonError, "invalid_json", 422, "The body cannot be parsed as JSON."),
    ErrorKind(InvalidRequestError, "invalid_request", 422, "The JSON does not fit the schema."),
    ErrorKind(library.TooManyTokensError, "too_many_tokens", 422, "An input is too long and truncate is false."),
    ErrorKind(library.InvalidInputError, "invalid_input", 422, "An input does not fit the artifact's template."),
    ErrorKind(UnscorableInputError, "unscorable_input", 422, "The model has no finite answer for an input."),
    ErrorKind(TooManyBadRowsError, "too_many_bad_rows", 422, "More of a job's rows cannot be scored than may be."),
    ErrorKind(
        TooManyRequestsError,
        "too_many_requests",
        429,
        "Too many requests, bytes of bodies, streams of events or connections at once: try again later.",
        retry_after_s=1,
    ),
    ErrorKind(
        ClientTooManyRequestsError,
        "client_too_many_requests",
        429,
        "The caller has its share of places, of bytes of bodies, of streams of events or of connections.",
        retry_after_s=1,
    ),
    ErrorKind(QueueFullError, "queue_full", 429, "No room to wait: try again later.", retry_after_s=1),
    ErrorKind(
        ClientQueueFullError,
        "client_queue_full",
        429,
        "The caller's own requests fill its share of the queue.",
        retry_after_s=1,
    ),
    ErrorKind(TooManyJobsError, "too_many_jobs", 429, "No room for another job.", retry_after_s=60),
    ErrorKind(ClientGoneError, "client_closed_request", 499, "The client closed its connection (logged, never read)."),
    ErrorKind(NotReadyError, "not_ready", 503, "The artifact is still loading.", retry_after_s=5),
    ErrorKind(DrainingError, "draining", 503, "The server is stopping.", retry_after_s=5),
    ErrorKind(JobsUnavailableError, "jobs_unavailable", 503, "The server cannot keep jobs.", retry_after_s=30),
    ErrorKind(StorageFullError, "storage_full", 503, "The disk has no room for jobs.", retry_after_s=60),
    ErrorKind(DeviceMemoryError, "device_memory", 503, "An input does not fit the device's memory.", retry_after_s=5),
    ErrorKind(
        DeviceFaultError, "device_fault", 503, "The device failed: the server leaves, to start anew.", retry_after_s=10
    ),
    ErrorKind(DeviceStalledError, "device_stalled", 503, "The device's present run is overdue.", retry_after_s=5),
    ErrorKind(DeadlineError, "deadline_exceeded", 504, "The request's deadline passed."),
    ErrorKind(LoadTimeoutError, "load_timeout", 504, "The artifact took longer to load than load_timeout_s."),
    ErrorKind(Exception, "internal_error", 500, "A fault of the server."),
)

_BY_EXCEPTION = {kind.raised: kind for kind in ERROR_KINDS}


def kind_of(error: BaseException) -> ErrorKind:
    """Return the table's row for an exception: its own class's, or the nearest base class's."""
    for cls in type(error).__mro__:
        if cls in _BY_EXCEPTION:
            return _BY_EXCEPTION[cls]
    return _BY_EXCEPTION[Exception]


def kinds_by_code(*codes: str) -> list[ErrorKind]:
    """Return the table's rows with these codes, in the table's order.

    Raises:
        KeyError: a code that is not in the table.
    """
    unknown = set(codes) - {kind.code for kind in ERROR_KINDS}
    if unknown:
        raise KeyError(f"no such error codes: {sorted(unknown)}")
    return [kind for kind in ERROR_KINDS if kind.code in codes]


def error_content(error: BaseException, request_id: str) -> dict[str, object]:
    """Return the JSON body for an exception: ``{"error": {...}, "request_id": ...}``.

    The message of an exception without a row of its own is not sent: it may hold anything.
    """
    kind = kind_of(error)
    message = "the server failed; its log has the details under this request id"
    if kind.status != 500:
        message = _shorten(str(error) or kind.meaning, MAX_MESSAGE_CHARACTERS)
    detail: dict[str, object] = {"code": kind.code, "message": message}
    field = getattr(error, "field", None)
    if field is not None:
        detail["field"] = _shorten(shown_field(str(field)), MAX_FIELD_CHARACTERS)
    for name in ("limit", "got"):
        value = getattr(error, name, None)
        if isinstance(value, int):
            detail[name] = value
    return {"error": detail, "request_id": request_id}


def shown_field(path: str) -> str:
    """Return a dotted field path to show: ``?`` in place of a part that is no short word.

    A client chooses its own keys, and may have put text where a name belongs.
    """
    return ".".join(part if _WORD.fullmatch(part) else "?" for part in path.split("."))


def retry_after_s(error: BaseException) -> int | None:
    """Return the value of the ``Retry-After`` header in seconds, or None for no header."""
    asked = getattr(error, "retry_after_s", None)
    default = kind_of(error).retry_after_s
    return default if asked is None or default is None else int(asked)


def _shorten(text: str, limit: int) -> str:
    # A lone surrogate can reach a message through a file name; it must not break the answer's encoding.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= limit else text[: limit - 1] + "…"
