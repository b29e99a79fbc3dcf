"""What the client raises: everything that the service refuses, and everything that keeps it from answering."""

from __future__ import annotations

from typing import Any

import httpx

from laplora.errors import LaploraError


class ServiceFailedError(LaploraError):
    """The service did not answer with a result.

    Attributes:
        status: HTTP status; None where no answer came.
        code: the service's name of the error.
        request_id: under which the service's log has it.
        field: of the request, at fault; limit, got: where a limit was passed.
        retry_after_s: seconds after which the service asked to try again.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        field: str | None = None,
        limit: int | None = None,
        got: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.field = field
        self.limit = limit
        self.got = got
        self.retry_after_s = retry_after_s


class RequestRefusedError(ServiceFailedError):
    """The request cannot be answered as it is (4xx but 429): sending it again changes nothing."""


class ServiceUnavailableError(ServiceFailedError):
    """The service had no room or was not ready (429, 503) at every try."""


class ServiceUnreachableError(ServiceFailedError):
    """No answer came: no connection, one that broke, or none in time."""


def failure_of(response: httpx.Response) -> ServiceFailedError:
    """Return the error that a response without a result stands for, the service's own or a proxy's."""
    try:
        body: Any = response.json()
    except ValueError:
        body = None
    detail = body.get("error") if isinstance(body, dict) else None
    if not isinstance(detail, dict):
        detail = {"message": f"HTTP status {response.status_code} without the service's error body: is it a proxy's?"}
    kind: type[ServiceFailedError] = ServiceFailedError
    if response.status_code in (429, 503):
        kind = ServiceUnavailableError
    elif 400 <= response.status_code < 500:
        kind = RequestRefusedError
    return kind(
        str(detail.get("message")),
        status=response.status_code,
        code=detail.get("code"),
        request_id=body.get("request_id") if isinstance(body, dict) else response.headers.get("x-request-id"),
        field=detail.get("field"),
        limit=detail.get("limit"),
        got=detail.get("got"),
        retry_after_s=_seconds(response.headers.get("retry-after")),
    )


def _seconds(header: str | None) -> float | None:
    """Return a Retry-After header's seconds; dates, which the service does not send, count as none."""
    try:
        return max(0.0, float(header)) if header is not None else None
    except ValueError:
        return None
