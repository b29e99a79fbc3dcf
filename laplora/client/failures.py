"""The client's errors.

LaploraError
└── ServiceFailedError             the service did not answer with a result
    ├── RequestRefusedError        the request cannot be answered as it is
    ├── ServiceUnavailableError    no room, or not ready, at every try
    ├── ServiceUnreachableError    no answer came
    ├── JobFailedError             a job failed, or was cancelled
    └── ChangeFailedError          an artifact could not be loaded, activated or conditioned
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from laplora.errors import LaploraError

#: The fields of an error beside its message.
DETAILS = ("code", "field", "limit", "got", "problems", "problems_count", "lines", "lines_bad")


@dataclass(eq=False, repr=False)
class ServiceFailedError(LaploraError):
    """The service did not answer with a result.

    Attributes:
        status: HTTP status; None where no answer came.
        code: the service's name of the error.
        request_id: identifies the request in the service's log.
        field: of the request, at fault; limit, got: where a limit was passed.
        problems: where several things are wrong with a body, ``field`` and ``message`` of the first 16;
            problems_count: how many there are.
        lines: of a refused upload, ``line``, ``code`` and ``message`` of the first 100 bad lines; lines_bad: how many
            there are.
        retry_after_s: seconds that the service wants the client to wait.
    """

    message: str
    _: KW_ONLY
    status: int | None = None
    code: str | None = None
    request_id: str | None = None
    field: str | None = None
    limit: int | None = None
    got: int | None = None
    problems: list[dict[str, Any]] | None = None
    problems_count: int | None = None
    lines: list[dict[str, Any]] | None = None
    lines_bad: int | None = None
    retry_after_s: float | None = None


class RequestRefusedError(ServiceFailedError):
    """The request cannot be answered as it is (4xx but 429): sending it again changes nothing."""


class ServiceUnavailableError(ServiceFailedError):
    """The service had no room or was not ready (429, 503) at every try."""


class ServiceUnreachableError(ServiceFailedError):
    """No answer came: no connection, one that broke, also behind a proxy (502), or none in time."""


class ChangeFailedError(ServiceFailedError):
    """An artifact could not be loaded, activated or conditioned; ``code`` says why."""


class JobFailedError(ServiceFailedError):
    """The awaited job failed, or was cancelled (code ``cancelled``)."""
