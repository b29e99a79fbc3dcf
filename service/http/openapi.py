"""The documented surface: which errors an endpoint can answer, the OpenAPI document, and offline docs pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from service.errors import kinds_by_code
from service.http.error_answers import schema_of
from service.http.in_flight import needs_place
from service.http.schemas.errors import ErrorResponse
from service.http.versioned import PREFIX
from service.security.access import line_of
from service.settings import Settings

#: Version of the HTTP contract, not of the package.
API_VERSION = "1.0"

BODY_ERRORS = ("body_too_large", "unsupported_media_type", "invalid_json", "invalid_request", "deadline_exceeded")
STATE_ERRORS = ("not_ready", "draining", "device_fault")
#: The errors of /predict and /evaluate.
SCORING_ERRORS = (
    *BODY_ERRORS,
    *STATE_ERRORS,
    "artifact_not_found",
    "artifact_not_loaded",
    "batch_too_large",
    "client_queue_full",
    "device_memory",
    "invalid_input",
    "queue_full",
    "too_many_tokens",
    "unscorable_input",
    "upstream_changed",
    "upstream_failed",
    "upstream_unavailable",
)

#: The errors of an endpoint that takes a job's id.
JOB_ERRORS = ("jobs_unavailable", "job_not_found")

DESCRIPTION = """
Calibrated probabilities for a LoRA-tuned language-model classifier, by the linearised Laplace approximation.

Every error has one shape, `{"error": {"code", "message", "field"?, "limit"?, "got"?}, "request_id"}`; branch on
`code`. Only the endpoints for clients of decision models (tag `protocols`) have their own. All others answer under
`/v1` too. Every answer carries
`X-Request-ID`: yours, if you sent one of up to 128 letters, digits, dots, colons, dashes and underscores. Numbers in
answers are always finite. Beside what an operation lists, any request may be answered with 400 `malformed_http`, 404
`route_not_found`, 405 `method_not_allowed`, 429 `too_many_requests` or `client_too_many_requests` where there are too
many connections, 403 `foreign_origin` where a browser sends it for another site's page, 421 `unknown_host` where no
API keys are asked for and Host is a name that the server was not told of and, should the server have a fault, 500
`internal_error`.

A request body is one JSON object in UTF-8, declared as `application/json`, no key twice in an object; an upload of POST
/evaluate/jobs is one such object a line, declared as `application/jsonl` or `application/x-ndjson`. Both may be packed
with gzip (`Content-Encoding: gzip`): limits are of what they hold. Answers of 1 kB or more are packed where
`Accept-Encoding` has it.
"""

#: Descriptions of the tags of operations, in the order of the docs page.
TAGS = {
    "scoring": "Answers about inputs: predictions, and metrics where the labels are known.",
    "protocols": "For clients of decision models.",
    "jobs": "Large files of inputs, with labels or without: uploaded, answered in the background, across restarts.",
    "feedback": "True labels of earlier predictions, and how calibrated they turned out to be.",
    "artifacts": "Which artifacts there are, and which answers.",
    "health": "For orchestrators and monitoring.",
}

REQUEST_ID_HEADER = "X-Request-ID"
_REQUEST_ID = {
    "description": "Id of the request, also in the server's log and in the body of an error.",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
}

_UNDER_VERSION = {"url": PREFIX[1:], "description": "The same endpoints, for clients that name a version."}
_ASSETS = Path(fastapi_offline.__file__).parent / "static"


def error_responses(*codes: str, model: Any = ErrorResponse) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's ``responses`` for an endpoint that can answer with these error codes.

    Args:
        model: describes the body.
    """
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in kinds_by_code(*codes):
        response = responses.setdefault(kind.status, {"model": model, "description": ""})
        response["description"] = f"{response['description']}\n- `{kind.code}`: {kind.meaning}".lstrip("\n")
        if kind.retry_after_s is not None:
            response["headers"] = {
                "Retry-After": {
                    "description": "Seconds until another try makes sense.",
                    "schema": {"type": "integer", "minimum": 0},
                }
            }
        if kind.status == 401:
            response["headers"] = {"WWW-Authenticate": {"description": "`Bearer`.", "schema": {"type": "string"}}}
    return responses


def describe(settings: Settings) -> str:
    """Return the document's description, with the limits of this server: every setting that is a most or a time."""
    worked_out = {
        "max_queue_tokens": settings.queue_limits(settings.batch_tokens or 0)[1],
        "max_tokenize_bytes": settings.tokenize_bytes,
        "max_in_flight_bytes": settings.in_flight_bytes,
        "max_jobs_bytes": settings.jobs_bytes,
    }
    rows = ["", "## Limits of this server", "| limit | value | |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        if (name.startswith("max_") and name != "max_memory") or name in ("client_share", "request_timeout_s"):
            value = worked_out.get(name, getattr(settings, name))
            rows.append(f"| `{name}` | {f'{value:g}' if isinstance(value, float) else value} | {field.description} |")
    return "\n".join([DESCRIPTION.strip(), *rows])


def install(app: FastAPI, *, with_keys: bool) -> None:
    """Give the application its OpenAPI document and a docs page whose assets it serves itself.

    Args:
        with_keys: whether the server asks for API keys; the document says so where an operation needs one.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=[{"name": name, "description": meaning} for name, meaning in TAGS.items()],
                servers=[{"url": ".", "description": "This server."}, _UNDER_VERSION],
            )
            _leave_out_unreachable_422(document)
            _unwrap(document)
            for path, method, operation in _operations(document):
                if "protocols" in operation["tags"]:
                    operation["servers"] = document["servers"][:1]
                if needs_place(method, path):
                    _add_errors(path, operation, "too_many_requests", "client_too_many_requests")
            if with_keys:
                _add_keys(document)
            _add_request_id(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    app.mount("/docs/assets", StaticFiles(directory=_ASSETS), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return _docs_page(app.title)


def _docs_page(title: str) -> HTMLResponse:
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title=f"{title}: API",
        swagger_js_url="docs/assets/swagger-ui-bundle.js",
        swagger_css_url="docs/assets/swagger-ui.css",
        swagger_favicon_url="docs/assets/favicon.png",
    )


def docs_script(app: FastAPI) -> str:
    """Return the text of the docs page's one inline script."""
    (script,) = re.findall(r"<script>(.*?)</script>", bytes(_docs_page(app.title).body).decode(), re.DOTALL)
    return str(script)


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def _add_keys(document: dict[str, Any]) -> None:
    """Say of each operation what key it needs, and how it refuses one: from the table, so the two never differ."""
    document["components"]["securitySchemes"] = {
        "api_key": {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key: `Authorization: Bearer laplora_...`. Each operation says which scope it needs.",
        }
    }
    for path, method, operation in _operations(document):
        line = line_of(method, path)
        need = None if line is None else line.need
        if need == "open":
            continue
        operation["security"] = [{"api_key": []}]
        _add_errors(path, operation, "unauthorized")
        if need not in (None, "key"):
            operation["description"] = f"{operation['description']}\n\nNeeds an API key with the scope `{need}`."
            _add_errors(path, operation, "forbidden")


def _add_errors(path: str, operation: dict[str, Any], *codes: str) -> None:
    """Document these error codes of a path's operation, beside those of the same statuses that it has."""
    model = schema_of(path).__name__
    for status, response in error_responses(*codes).items():
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}
        documented = operation["responses"].setdefault(str(status), {"description": "", "content": content})
        documented["description"] = f"{documented['description']}\n{response['description']}".lstrip("\n")
        documented.setdefault("headers", {}).update(response.get("headers", {}))


def _leave_out_unreachable_422(document: dict[str, Any]) -> None:
    # FastAPI adds a 422 of another shape to every endpoint with a parameter; here a path parameter is any string.
    for _, _, operation in _operations(document):
        if "HTTPValidationError" in str(operation["responses"].get("422")):
            del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _unwrap(document: dict[str, Any]) -> None:
    """Write what a field or a parameter means in one line, however its docstring is broken into lines."""
    schemas = document["components"]["schemas"].values()
    parts = [field for schema in schemas for field in schema.get("properties", {}).values()]
    for _, _, operation in _operations(document):
        for parameter in operation.get("parameters", ()):
            parts += [parameter, parameter["schema"]]
    for part in parts:
        if "description" in part:
            part["description"] = " ".join(part["description"].split())


def _add_request_id(document: dict[str, Any]) -> None:
    document["components"]["headers"] = {REQUEST_ID_HEADER: _REQUEST_ID}
    reference = {"$ref": f"#/components/headers/{REQUEST_ID_HEADER}"}
    for _, _, operation in _operations(document):
        for response in operation["responses"].values():
            response["headers"] = {**response.get("headers", {}), REQUEST_ID_HEADER: reference}
