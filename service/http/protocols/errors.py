"""Which body an error has: each protocol's clients read their own. Status and headers are the same for all.

The path says which protocol a request is in. On POST /predict its body does, as soon as it is read; until then an error
is in laplora's shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.types import Scope

from service.errors import error_content, kind_of
from service.http.schemas.errors import ErrorResponse
from service.http.schemas.open_inference import V2ErrorResponse
from service.http.schemas.tei import TeiErrorResponse
from service.http.schemas.vllm import VllmErrorResponse


@dataclass(frozen=True)
class ErrorShape:
    """How one protocol writes an error.

    Attributes:
        write: makes the body of laplora's own and the HTTP status.
        model: describes the body.
    """

    write: Callable[[dict[str, Any], int], dict[str, Any]]
    model: type[BaseModel]


def _vllm(content: dict[str, Any], status: int) -> dict[str, Any]:
    detail = content["error"]
    # Their inputs are called input.
    param = re.sub(r"^inputs\b", "input", detail["field"]) if "field" in detail else None
    return {"error": {"message": detail["message"], "type": detail["code"], "param": param, "code": status}}


def _tei(content: dict[str, Any], status: int) -> dict[str, Any]:
    kinds = {429: "Overloaded", 503: "Unhealthy", 500: "Backend", 504: "Backend"}
    return {"error": content["error"]["message"], "error_type": kinds.get(status, "Validation")}


LAPLORA = ErrorShape(lambda content, status: content, ErrorResponse)
VLLM = ErrorShape(_vllm, VllmErrorResponse)
TEI = ErrorShape(_tei, TeiErrorResponse)
OPEN_INFERENCE = ErrorShape(lambda content, status: {"error": content["error"]["message"]}, V2ErrorResponse)

_BY_PATH = (
    (re.compile(r"/classify$|/v1(/|$)"), VLLM),
    (re.compile(r"/info$"), TEI),
    (re.compile(r"/v2(/|$)"), OPEN_INFERENCE),
)


def shape_of_path(path: str) -> ErrorShape:
    """Return how errors of a path are written."""
    return next((shape for pattern, shape in _BY_PATH if pattern.match(path)), LAPLORA)


def mark(scope: Scope, shape: ErrorShape) -> None:
    """Say in which protocol a request turned out to be."""
    scope.setdefault("state", {})["error_shape"] = shape


def error_body(error: BaseException, request_id: str, scope: Scope | None) -> dict[str, Any]:
    """Return the body of an error for the client of a request; in laplora's shape where there is no request."""
    content = error_content(error, request_id)
    if scope is None:
        return content
    shape: ErrorShape = scope.get("state", {}).get("error_shape") or shape_of_path(scope["path"])
    return shape.write(content, kind_of(error).status)
