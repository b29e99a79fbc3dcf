"""The errors between a request and its answer; each error's class, code, status and meaning in one definition.

The first line of a class's docstring is its meaning in the API's documentation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypedDict

from laplora import errors as library

#: Most characters of a message and of a field's path that are sent: names that a client chose can end up in both.
_MAX_MESSAGE, _MAX_FIELD, _MAX_LINE_MESSAGE = 600, 200, 300
_WORD = re.compile(r"[A-Za-z0-9_\[\]-]{1,64}")


@dataclass(frozen=True)
class ErrorKind:
    """How one class of exceptions is answered, with its subclasses that have no code of their own.

    Attributes:
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


#: Every kind, in the order in which the API's documentation lists them.
ERROR_KINDS: list[ErrorKind] = []


class ServiceError(library.LaploraError):
    """Base of the service's own errors. A subclass without a code is answered as its base class.

    Args:
        message: expected, got, what to do. Never prompt text.
        field: dotted path of the request field at fault, such as ``inputs.3.text``.
        limit: value of the limit that was passed; ``got`` is what came instead.
        retry_after_s: seconds after which another try makes sense.
    """

    def __init_subclass__(cls, *, code: str | None = None, status: int = 500, retry_after_s: int | None = None) -> None:
        super().__init_subclass__()
        if code is not None:
            meaning = (cls.__doc__ or code).partition("\n")[0]
            ERROR_KINDS.append(ErrorKind(cls, code, status, meaning, retry_after_s))

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
        self.field, self.limit, self.got = field, limit, got
        self.retry_after_s = retry_after_s


def _answered(raised: type[Exception], code: str, status: int, meaning: str, retry_after_s: int | None = None) -> None:
    """Say how an exception that is none of the service's is answered."""
    ERROR_KINDS.append(ErrorKind(raised, code, status, meaning, retry_after_s))


class MalformedHttpError(ServiceError, code="malformed_http", status=400):
    """The connection's bytes are not HTTP/1.1."""


class UnauthorizedError(ServiceError, code="unauthorized", status=401):
    """No API key was sent, or none of this server's."""


class ForbiddenError(ServiceError, code="forbidden", status=403):
    """The API key does not have the scope that is needed."""


class ForeignOriginError(ServiceError, code="foreign_origin", status=403):
    """A browser sent the request for a web page of another origin."""


class RouteNotFoundError(ServiceError, code="route_not_found", status=404):
    """No endpoint at this path."""


_answered(library.ArtifactNotFoundError, "artifact_not_found", 404, "No artifact of this name.")


class ArtifactNotLoadedError(ServiceError, code="artifact_not_loaded", status=404):
    """The artifact exists but is not loaded."""


class ReportNotFoundError(ServiceError, code="report_not_found", status=404):
    """There is no report of it that can be shown."""


class FeedbackOffError(ServiceError, code="feedback_off", status=404):
    """The server keeps no predictions: feedback_rows is 0."""


class ConditioningOffError(ServiceError, code="conditioning_off", status=404):
    """The server learns from no labels: conditioning is off."""


class RowsNotKeptError(ServiceError, code="rows_not_kept", status=404):
    """Nothing is kept of the job's rows: it was cancelled, or its upload asked for that."""


class JobNotFoundError(ServiceError, code="job_not_found", status=404):
    """No job of this id, or another caller's."""


class ChangeNotFoundError(ServiceError, code="change_not_found", status=404):
    """No change of this id: it is forgotten, or of a server that shares no jobs with this one."""


class MethodNotAllowedError(ServiceError, code="method_not_allowed", status=405):
    """The endpoint takes another method."""


class ArtifactActiveError(ServiceError, code="artifact_active", status=409):
    """The active artifact cannot be unloaded."""


class ActivationRunningError(ServiceError, code="activation_running", status=409):
    """Another artifact is being loaded or conditioned."""


class ArtifactNotWritableError(ServiceError, code="artifact_not_writable", status=409):
    """The server may not write to the folder that the artifact lies in, or there is no room."""


class LoadStuckError(ServiceError, code="load_stuck", status=409):
    """A load that was given up still runs: no other can begin."""


class ShelfFullError(ServiceError, code="artifacts_full", status=409):
    """No room for another artifact beside those in use."""


class IdempotencyConflictError(ServiceError, code="idempotency_conflict", status=409):
    """The Idempotency-Key is of a job with other rows or options, another change, or an upload that has not ended."""


class ArtifactChangedError(ServiceError, code="artifact_changed", status=409):
    """The artifact of a job, or of a request that states its digest, is not the one that is served now."""


class UploadChangedError(ServiceError, code="upload_changed", status=409):
    """A job's upload is not what it was when it came."""


_answered(library.UpstreamChangedError, "upstream_changed", 409, "Another model answers than the artifact corrects.")
_answered(library.ConditioningError, "conditioning_refused", 409, "The labels make the artifact's answers worse.")


_answered(library.ArtifactCorruptError, "artifact_corrupt", 409, "The artifact's files are not what it says.")
_answered(library.GoldenMismatchError, "golden_mismatch", 409, "The artifact's recorded answers are not reproduced.")
_answered(library.ArtifactError, "artifact_incompatible", 409, "The artifact does not fit this server.")
_answered(library.ModelError, "model_unsupported", 409, "The artifact's base model cannot be used.")
_answered(library.DownloadError, "model_unavailable", 409, "The artifact's base model could not be fetched.")


class BodyTooLargeError(ServiceError, code="body_too_large", status=413):
    """More bytes than max_body_bytes."""


class BatchTooLargeError(ServiceError, code="batch_too_large", status=413):
    """More inputs, values or tokens than one request may bring."""


class MediaTypeError(ServiceError, code="unsupported_media_type", status=415):
    """The body is not UTF-8 application/json, plain or packed with gzip."""


class UnknownHostError(ServiceError, code="unknown_host", status=421):
    """The server asks for no API key, and the Host header is a name that it was not told of."""


class InvalidJsonError(ServiceError, code="invalid_json", status=422):
    """The body cannot be parsed as JSON."""


class InvalidRequestError(ServiceError, code="invalid_request", status=422):
    """The JSON does not fit the schema.

    Attributes:
        problems: the first of several things that are wrong, with ``field`` and ``message``; problems_count: of all.
    """

    problems: list[dict[str, str]] | None = None
    problems_count = 0


_answered(library.TooManyTokensError, "too_many_tokens", 422, "An input is too long and truncate is false.")
_answered(library.InvalidInputError, "invalid_input", 422, "An input does not fit the artifact's template.")


class ConditioningImpossibleError(ServiceError, code="conditioning_impossible", status=422):
    """Too few or too many labelled rows, or an artifact that cannot learn from them."""


class UnscorableInputError(ServiceError, code="unscorable_input", status=422):
    """The model has no finite answer for an input."""


class TooManyBadRowsError(ServiceError, code="too_many_bad_rows", status=422):
    """More of a job's rows cannot be scored than may be."""


class TooManyRequestsError(ServiceError, code="too_many_requests", status=429, retry_after_s=1):
    """Too many requests, bytes of bodies, downloads or connections at once: try again later."""


class ClientTooManyRequestsError(TooManyRequestsError, code="client_too_many_requests", status=429, retry_after_s=1):
    """The caller has its share of places, of bytes of bodies, of downloads or of connections."""


class QueueFullError(ServiceError, code="queue_full", status=429, retry_after_s=1):
    """No room to wait: try again later."""


class ClientQueueFullError(QueueFullError, code="client_queue_full", status=429, retry_after_s=1):
    """The caller's own requests fill its share of the queue."""


class TooManyJobsError(ServiceError, code="too_many_jobs", status=429, retry_after_s=60):
    """No room for another job."""


class ClientGoneError(ServiceError, code="client_closed_request", status=499):
    """The client closed its connection (logged, never read)."""


_answered(library.UpstreamError, "upstream_failed", 502, "The model that the artifact corrects gives no usable answer.")
_answered(
    library.UpstreamUnavailableError, "upstream_unavailable", 503, "The model that the artifact corrects is busy.", 2
)


class NotReadyError(ServiceError, code="not_ready", status=503, retry_after_s=5):
    """The artifact is still loading."""


class DrainingError(ServiceError, code="draining", status=503, retry_after_s=5):
    """The server is stopping."""


class ServerGoneError(ServiceError, code="server_gone", status=503, retry_after_s=5):
    """The server that made a change ended in the middle of it."""


class JobsUnavailableError(ServiceError, code="jobs_unavailable", status=503, retry_after_s=30):
    """The server cannot keep jobs."""


class StorageFullError(ServiceError, code="storage_full", status=503, retry_after_s=60):
    """The disk has no room for jobs."""


class DeviceMemoryError(ServiceError, code="device_memory", status=503, retry_after_s=5):
    """An input does not fit the device's memory."""


class DeviceFaultError(ServiceError, code="device_fault", status=503, retry_after_s=10):
    """The device failed: the server leaves, to start anew."""


class DeviceStalledError(ServiceError, code="device_stalled", status=503, retry_after_s=5):
    """The device's present run is overdue."""


class DeadlineError(ServiceError, code="deadline_exceeded", status=504):
    """The request's deadline passed."""


class LoadTimeoutError(ServiceError, code="load_timeout", status=504):
    """The artifact took longer to load than load_timeout_s."""


_answered(Exception, "internal_error", 500, "A fault of the server.")


class TracingUnavailableError(library.ConfigError):
    """Traces are asked for and OpenTelemetry is not installed. Raised at the start only, never answered."""


_BY_EXCEPTION = {kind.raised: kind for kind in ERROR_KINDS}


def kind_of(error: BaseException) -> ErrorKind:
    """Return how an exception is answered: as its class says, or the nearest base class with a code."""
    for cls in type(error).__mro__:
        if cls in _BY_EXCEPTION:
            return _BY_EXCEPTION[cls]
    return _BY_EXCEPTION[Exception]


def kinds_by_code(*codes: str) -> list[ErrorKind]:
    """Return the kinds with these codes, in the order of ``ERROR_KINDS``.

    Raises:
        KeyError: a code that no error has.
    """
    by_code = {kind.code: kind for kind in ERROR_KINDS}
    return sorted({by_code[code] for code in codes}, key=ERROR_KINDS.index)


class RefusedLine(TypedDict):
    """The error of one line of an upload; lines count from 1."""

    line: int
    code: str
    message: str


def told_of(error: Exception, line: int) -> RefusedLine:
    """Return what is told of a refused line."""
    return {"line": line, "code": kind_of(error).code, "message": _shorten(str(error), _MAX_LINE_MESSAGE)}


def error_content(error: BaseException, request_id: str) -> dict[str, object]:
    """Return the JSON body for an exception: ``{"error": {...}, "request_id": ...}``.

    The message of an exception without a code is not sent: it may hold anything.
    """
    kind = kind_of(error)
    message = "the server failed; its log has the details under this request id"
    if kind.status != 500:
        message = _shorten(str(error) or kind.meaning, _MAX_MESSAGE)
    detail: dict[str, object] = {"code": kind.code, "message": message}
    field = getattr(error, "field", None)
    if field is not None:
        detail["field"] = _shorten(shown_field(str(field)), _MAX_FIELD)
    for name in ("limit", "got"):
        value = getattr(error, name, None)
        if isinstance(value, int):
            detail[name] = value
    lines: Any = getattr(error, "lines", None)
    if lines:
        detail["lines"], detail["lines_bad"] = lines, getattr(error, "lines_bad", len(lines))
    if isinstance(error, InvalidRequestError) and error.problems:
        detail["problems"], detail["problems_count"] = error.problems, error.problems_count
    return {"error": detail, "request_id": request_id}


def error_detail(error: BaseException) -> Any:
    """Return code and message of an exception, and what else is told of it."""
    return error_content(error, "")["error"]


def shown_field(path: str) -> str:
    """Return a dotted field path to show: ``?`` in place of a part that is no short word, which may be a text."""
    return ".".join(part if _WORD.fullmatch(part) else "?" for part in path.split("."))


def retry_after_s(error: BaseException) -> int | None:
    """Return the value of the ``Retry-After`` header in seconds, or None for no header."""
    stated = getattr(error, "retry_after_s", None)
    default = kind_of(error).retry_after_s
    return default if stated is None or default is None else int(stated)


def _shorten(text: str, limit: int) -> str:
    # A lone surrogate can reach a message through a file name; it must not break the answer's encoding.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= limit else text[: limit - 1] + "…"
