"""Responses of the service as typed answers, or as the error that each stands for."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from laplora.client.answers import Answers, Artifact, FeedbackResult, NothingAccepted, Prediction, Record
from laplora.client.failures import (
    DETAILS,
    RequestRefusedError,
    ServiceFailedError,
    ServiceUnavailableError,
    ServiceUnreachableError,
)

Answer = TypeVar("Answer")


class Predicted(Record):
    """The answer to POST /predict."""

    artifact: Artifact
    predictive: dict[str, Any] | None = None
    target_risk: float | dict[str, float] | None = None
    costs: dict[str, Any] | None = None
    nothing_accepted: NothingAccepted | None = None
    predictions: tuple[Prediction, ...]


def parsed(kind: type[Answer], response: httpx.Response, part: str | None = None) -> Answer:
    """Return the answer in a response or in one part of it; ServiceFailedError where it is not the contract's."""
    try:
        return typed(kind, response.json(), response, part)
    except ValueError:
        raise _not_understood(response, "no JSON") from None


def typed(kind: type[Answer], body: Any, response: httpx.Response, part: str | None = None) -> Answer:
    """Return the answer in a body, or in one part of it, that a response led to; raises as ``parsed``."""
    try:
        return TypeAdapter(kind).validate_python(body if part is None else body[part])
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, e["loc"])) for e in error.errors()[:4])
        raise _not_understood(response, f"unexpected {fields}") from None
    except (KeyError, TypeError):
        raise _not_understood(response, f"no {part}") from None


def predicted(response: httpx.Response, count: int) -> Predicted:
    """Return the answers to this many inputs; raises as ``parsed``."""
    answer = parsed(Predicted, response)
    _check_count(response, answer.predictions, count)
    return answer


def fed(response: httpx.Response, count: int) -> tuple[FeedbackResult, ...]:
    """Return the results of this many labels; raises as ``parsed``."""
    results = parsed(tuple[FeedbackResult, ...], response, "results")
    _check_count(response, results, count)
    return results


def joined(parts: Sequence[Predicted]) -> Answers:
    """Return the answers of the parts of one list, in order."""
    return Answers(
        predictions=tuple(p for part in parts for p in part.predictions),
        artifacts=tuple({part.artifact.digest: part.artifact for part in parts}.values()),
        predictive=(parts[0].predictive or {}).get("name"),
        target_risk=parts[0].target_risk,
        costs=parts[0].costs,
        nothing_accepted=next((part.nothing_accepted for part in parts if part.nothing_accepted), None),
    )


def unreachable(error: httpx.TransportError) -> ServiceUnreachableError:
    """Return the error of a request without a response."""
    code = "timeout" if isinstance(error, httpx.TimeoutException) else "unreachable"
    return ServiceUnreachableError(f"no answer from the service ({type(error).__name__}: {error})", code=code)


def did_nothing(error: httpx.TransportError | ServiceFailedError) -> bool:
    """Return whether a request that failed had no effect: there was no connection, or the service itself refused it."""
    if isinstance(error, ServiceFailedError):
        # A proxy has no codes, but for ours, which has this one of a server that it lost.
        return error.code not in (None, "unreachable", "server_unreachable")
    return isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)


def failure_of(response: httpx.Response) -> ServiceFailedError:
    """Return the error of a response that did not succeed, whether the service or a proxy sent it."""
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
    elif response.status_code == 502:
        kind, detail = ServiceUnreachableError, {"code": "unreachable", **detail}
    elif 400 <= response.status_code < 500:
        kind = RequestRefusedError
    return kind(
        str(detail.get("message")),
        status=response.status_code,
        request_id=body.get("request_id") if isinstance(body, dict) else response.headers.get("x-request-id"),
        retry_after_s=_seconds(response.headers.get("retry-after")),
        **{name: detail.get(name) for name in DETAILS},
    )


def _seconds(header: str | None) -> float | None:
    """Return a Retry-After header's seconds. The service sends no dates, and one counts as none."""
    try:
        return max(0.0, float(header)) if header is not None else None
    except ValueError:
        return None


def _check_count(response: httpx.Response, results: Sized, count: int) -> None:
    if len(results) != count:
        raise _not_understood(response, f"{len(results)} answers to {count} inputs")


def _not_understood(response: httpx.Response, why: str) -> ServiceFailedError:
    return ServiceFailedError(
        f"the answer is not the service's ({why}): is another version or another server at this address?",
        status=response.status_code,
        request_id=response.headers.get("x-request-id"),
    )
