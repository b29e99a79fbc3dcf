"""Requests as the service takes them, and its responses as typed answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from laplora.client.answers import Answers, Artifact, Evaluated, FeedbackResult, Prediction, ServedArtifact
from laplora.client.failures import RequestRefusedError, ServiceFailedError, failure_of
from laplora.client.jobs import Job, JobListing
from laplora.errors import DataError

Mode = Literal["laplace", "map", "fast"]
Record = TypeVar("Record", bound=BaseModel)
Inputs = Iterable[Mapping[str, Any]]
Labels = Mapping[str, str] | Iterable[tuple[str, str]]


class _Predicted(BaseModel):
    artifact: Artifact
    predictive: dict[str, str] = {}
    target_risk: float | None = None
    predictions: tuple[Prediction, ...]


class _Listing(BaseModel):
    artifacts: tuple[ServedArtifact, ...]


class _Fed(BaseModel):
    results: tuple[FeedbackResult, ...]


class _Changed(BaseModel):
    artifact: Artifact


def predict_options(
    mode: Mode | None,
    predictive: str | None,
    target_risk: float | None,
    covariance: bool,
    truncate: bool,
    order_average: bool,
    timeout_s: float | None,
) -> dict[str, Any]:
    """Return only what was asked for, so that older services, which refuse what they do not know, answer too."""
    stated = {"mode": mode, "predictive": predictive, "target_risk": target_risk, "timeout_s": timeout_s}
    switches = {"covariance": covariance, "truncate": truncate, "order_average": order_average}
    return {k: v for k, v in stated.items() if v is not None} | {k: True for k, v in switches.items() if v}


def body_of(inputs: Sequence[Mapping[str, Any]], artifact: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's body."""
    body: dict[str, Any] = {"inputs": [dict(one) for one in inputs]}
    if artifact is not None:
        body["artifact"] = artifact
    if options:
        body["options"] = dict(options)
    return body


def feedback_batches(labels: Labels, size: int) -> list[list[dict[str, str]]]:
    """Return the items of POST /feedback in batches, in order; none of no labels."""
    pairs = labels.items() if isinstance(labels, Mapping) else labels
    items = [{"prediction_id": prediction_id, "label": label} for prediction_id, label in pairs]
    return [items[i : i + size] for i in range(0, len(items), size)]


def fed_of(response: httpx.Response, count: int) -> tuple[FeedbackResult, ...]:
    """Return the results in a response to so many items.

    Raises:
        ServiceFailedError: a response that is not what the contract says.
    """
    results = _parsed(_Fed, response).results
    if len(results) != count:
        raise _not_understood(response, f"{len(results)} results of {count} items")
    return results


def change_path(name: str, change: Literal["load", "activate", "unload"]) -> str:
    """Return where an artifact is loaded, activated or unloaded."""
    return f"/artifacts/{quote(name, safe='')}/{change}"


def in_batches(inputs: Inputs, size: int) -> list[list[Mapping[str, Any]]]:
    """Return the inputs in batches, in order.

    Raises:
        DataError: no inputs, or an input that is no mapping.
    """
    rows = list(inputs)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"input {number} is {type(row).__name__}: each is a mapping of the template's fields")
    if not rows:
        raise DataError("no inputs: the service answers one or more")
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def can_be_split(failure: RequestRefusedError, rows: int) -> bool:
    """Return whether a request was refused for its size alone, and halves of it are smaller."""
    return failure.status == 413 and rows > 1


def result(response: httpx.Response) -> Any:
    """Return a successful response's JSON.

    Raises:
        ServiceFailedError: any other status, or a body that is no JSON.
    """
    if response.status_code not in (200, 202):
        raise failure_of(response)
    try:
        return response.json()
    except ValueError:
        raise _not_understood(response, "no JSON") from None


def answers_of(responses: Sequence[tuple[httpx.Response, int]]) -> Answers:
    """Return the answers in several responses, in order.

    Args:
        responses: each with the number of its inputs.

    Raises:
        ServiceFailedError: a response that is not what the contract says.
    """
    parts = []
    for response, count in responses:
        part = _parsed(_Predicted, response)
        if len(part.predictions) != count:
            raise _not_understood(response, f"{len(part.predictions)} answers to {count} inputs")
        parts.append(part)
    return Answers(
        predictions=tuple(p for part in parts for p in part.predictions),
        artifacts=tuple({part.artifact.digest: part.artifact for part in parts}.values()),
        predictive=parts[0].predictive.get("name"),
        target_risk=parts[0].target_risk,
    )


def evaluated_of(response: httpx.Response) -> Evaluated:
    """Return the metrics in a response."""
    return _parsed(Evaluated, response)


def job_of(response: httpx.Response) -> Job:
    """Return the job in a response."""
    return _parsed(Job, response)


def jobs_of(response: httpx.Response) -> tuple[Job, ...]:
    """Return the jobs in a response."""
    return _parsed(JobListing, response).jobs


def listing_of(response: httpx.Response) -> tuple[ServedArtifact, ...]:
    """Return the artifacts in a response."""
    return _parsed(_Listing, response).artifacts


def changed_of(response: httpx.Response) -> Artifact:
    """Return the artifact that a response says was loaded, activated or unloaded."""
    return _parsed(_Changed, response).artifact


def _parsed(kind: type[Record], response: httpx.Response) -> Record:
    try:
        return kind.model_validate(result(response))
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, e["loc"])) for e in error.errors()[:4])
        raise _not_understood(response, f"unexpected {fields}") from None


def _not_understood(response: httpx.Response, why: str) -> ServiceFailedError:
    return ServiceFailedError(
        f"the answer is not the service's ({why}): is another version or another server at this address?",
        status=response.status_code,
        request_id=response.headers.get("x-request-id"),
    )
