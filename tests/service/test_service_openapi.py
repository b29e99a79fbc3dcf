"""The documented surface: a snapshot, exactly the statuses that can come out, and a docs page without a network."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from serving import library, serve, settings

from service.app import create_app
from service.errors import ERROR_KINDS

SNAPSHOT = Path(__file__).with_name("openapi.json")
#: Asked for by no single operation: no HTTP, unknown paths and methods, faults, answers that nobody reads.
UNDOCUMENTED = {"malformed_http", "route_not_found", "method_not_allowed", "internal_error", "client_closed_request"}


@pytest.fixture
def document() -> dict[str, Any]:
    app = create_app(settings(), library=library())
    app.state.service.tokenizers.shutdown()
    return app.openapi()


def test_snapshot(document: dict[str, Any]) -> None:
    """A change of the contract shows in a diff; LAPLORA_UPDATE_SNAPSHOT=1 writes the new one."""
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if os.environ.get("LAPLORA_UPDATE_SNAPSHOT"):
        SNAPSHOT.write_text(text, encoding="utf-8")
    assert json.loads(text) == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_statuses_are_exactly_those_that_can_come_out(document: dict[str, Any]) -> None:
    scoring = ["200", "404", "409", "413", "415", "422", "429", "503", "504"]
    assert {name: sorted(op["responses"]) for name, op in operations(document).items()} == {
        "POST /predict": scoring,
        "POST /evaluate": scoring,
        "GET /artifacts": ["200"],
        "POST /artifacts/{name}/activate": ["200", "404", "409", "503"],
        "GET /health/live": ["200"],
        "GET /health/ready": ["200", "503"],
        "GET /v2/health/live": ["200"],
        "GET /v2/health/ready": ["200", "503"],
        "GET /v2/models/{name}": ["200", "404", "503"],
        "GET /metrics": ["200"],
    }


def test_every_error_has_the_one_schema(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        for status, response in operation["responses"].items():
            if status != "200":
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorResponse"}, (name, status)
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_code_is_documented_somewhere(document: dict[str, Any]) -> None:
    documented = set(re.findall(r"`(\w+)`:", json.dumps([op["responses"] for op in operations(document).values()])))
    assert documented == {kind.code for kind in ERROR_KINDS} - UNDOCUMENTED


def test_every_operation_and_field_says_what_it_is(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        assert operation.get("description"), name
    for name in ("PredictRequest", "PredictionOut", "Timing", "PredictOptions", "EvaluateOptions", "ErrorDetail"):
        for field, schema in document["components"]["schemas"][name]["properties"].items():
            assert schema.get("description") or "$ref" in schema, (name, field)


@pytest.mark.anyio
async def test_docs_page_needs_no_network() -> None:
    async with serve() as served:
        page = await served.client.get("/docs")
        links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert any(link.endswith(".js") for link in links)
        assert any(link.endswith(".css") for link in links)
        for link in links:
            assert not link.startswith(("http:", "https:", "//"))
            assert (await served.client.get(f"/{link}")).status_code == 200
        assert "openapi.json" in page.text
        assert (await served.client.get("/openapi.json")).status_code == 200
        assert (await served.client.get("/", follow_redirects=True)).url.path == "/docs"
