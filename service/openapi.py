"""The documented surface: which errors an endpoint can answer, the OpenAPI document, and offline docs pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles

from service.errors import kinds_by_code
from service.schemas import ErrorResponse
from service.settings import Settings

#: Version of the HTTP contract, not of the package.
API_VERSION = "1.0"

BODY_ERRORS = ("body_too_large", "unsupported_media_type", "invalid_json", "invalid_request", "deadline_exceeded")
STATE_ERRORS = ("not_ready", "draining", "device_fault")
CANDIDATE_ERRORS = (
    "artifact_corrupt",
    "artifact_incompatible",
    "golden_mismatch",
    "model_unavailable",
    "model_unsupported",
)
#: What /predict and /evaluate can answer instead of 200.
SCORING_ERRORS = (
    *BODY_ERRORS,
    *STATE_ERRORS,
    "artifact_not_found",
    "artifact_not_loaded",
    "batch_too_large",
    "device_memory",
    "invalid_input",
    "queue_full",
    "too_many_tokens",
    "unscorable_input",
)

DESCRIPTION = """
Calibrated probabilities for a LoRA-tuned language-model classifier, by the linearised Laplace approximation.

Every error has one shape, `{"error": {"code", "message", "field"?, "limit"?, "got"?}, "request_id"}`; branch on
`code`. Every answer carries `X-Request-ID`: yours, if you sent one of up to 128 letters, digits, dots, colons, dashes
and underscores. Numbers in answers are always finite. Beside what an operation lists, any request may be answered with
404 `route_not_found`, 405 `method_not_allowed` and, should the server have a fault, 500 `internal_error`.

A request body is one JSON object in UTF-8, declared as `application/json`, not compressed, no key twice in an object.
"""

#: What the tags of operations mean, in the order of the docs page.
TAGS = {
    "scoring": "Answers about inputs: predictions, and metrics where the labels are known.",
    "artifacts": "Which artifacts there are, and which answers.",
    "health": "For orchestrators and monitoring.",
}

REQUEST_ID_HEADER = "X-Request-ID"
_REQUEST_ID = {
    "description": "Id of the request, also in the server's log and in the body of an error.",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
}

_ASSETS = Path(fastapi_offline.__file__).parent / "static"


def error_responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's ``responses`` for an endpoint that can answer with these error codes."""
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in kinds_by_code(*codes):
        response = responses.setdefault(kind.status, {"model": ErrorResponse, "description": ""})
        response["description"] = f"{response['description']}\n- `{kind.code}`: {kind.meaning}".lstrip("\n")
        if kind.retry_after_s is not None:
            response["headers"] = {
                "Retry-After": {
                    "description": "Seconds until another try makes sense.",
                    "schema": {"type": "integer", "minimum": 0},
                }
            }
    return responses


def operation_id(route: APIRoute) -> str:
    """Return the operation's id: the name of the endpoint's function, which generated clients call theirs."""
    return route.name


def describe(settings: Settings) -> str:
    """Return the document's description, with the limits of this server: every setting that is a most or a time."""
    rows = [
        f"| `{name}` | {'none' if value is None else f'{value:g}' if isinstance(value, float) else value} | {meaning} |"
        for name, field in Settings.model_fields.items()
        if name.startswith("max_") or name == "request_timeout_s"
        for value, meaning in [(getattr(settings, name), field.description)]
    ]
    return "\n".join(
        [DESCRIPTION.strip(), "\n## Limits of this server\n| limit | value | |\n| --- | --- | --- |", *rows]
    )


def install(app: FastAPI) -> None:
    """Give the application its OpenAPI document and a docs page whose assets it serves itself."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=[{"name": name, "description": meaning} for name, meaning in TAGS.items()],
            )
            app.openapi_schema = _with_request_id(_without_unreachable_422(document))
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    app.mount("/docs/assets", StaticFiles(directory=_ASSETS), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=f"{app.title}: API",
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon.png",
        )

    @app.get("/", include_in_schema=False)
    async def index() -> RedirectResponse:
        return RedirectResponse("docs")


def _without_unreachable_422(document: dict[str, Any]) -> dict[str, Any]:
    # FastAPI adds its own 422 to every endpoint with a parameter; here a path parameter is any string.
    for path in document["paths"].values():
        for operation in path.values():
            responses = operation["responses"]
            if "HTTPValidationError" in str(responses.get("422")):
                del responses["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document


def _with_request_id(document: dict[str, Any]) -> dict[str, Any]:
    document["components"]["headers"] = {REQUEST_ID_HEADER: _REQUEST_ID}
    for path in document["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                reference = {"$ref": f"#/components/headers/{REQUEST_ID_HEADER}"}
                response["headers"] = {**response.get("headers", {}), REQUEST_ID_HEADER: reference}
    return document
