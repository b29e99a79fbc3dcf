"""The documented surface: a snapshot, and a docs page without a network."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import jsonschema_rs
import pytest
from contract import SNAPSHOT, composed, operations
from serving import library, settings

from service.app import create_app
from service.errors import ERROR_KINDS
from service.http.openapi import TAGS
from service.security.keys_file import Key, digest, write_keys

#: Asked for by no single operation: no HTTP, unknown paths and methods, faults, answers that nobody reads.
UNDOCUMENTED = {"malformed_http", "route_not_found", "method_not_allowed", "internal_error", "client_closed_request"}
#: Why a job or a change failed, in its own answer; and what a browser is told, whatever it asks for.
UNDOCUMENTED |= {"too_many_bad_rows", "foreign_origin", "conditioning_refused", "golden_mismatch", "server_gone"}
UNDOCUMENTED |= {"model_unavailable", "model_unsupported", "unknown_host"}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    write_keys(keys, [Key(id="a", sha256=digest("a"), scopes=("predict",))])
    app = create_app(settings(auth="keys", keys=keys), library=library())
    app.state.threads.stop()
    return app.openapi()


def test_snapshot(document: dict[str, Any]) -> None:
    """A change of the contract shows in a diff; LAPLORA_UPDATE_SNAPSHOT=1 writes the new one."""
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if os.environ.get("LAPLORA_UPDATE_SNAPSHOT"):
        SNAPSHOT.write_text(text, encoding="utf-8")
    assert json.loads(text) == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_every_error_has_its_schema_and_headers_are_documented(document: dict[str, Any]) -> None:
    more = {"202": ("Location",), "401": ("WWW-Authenticate",), "429": ("Retry-After",), "503": ("Retry-After",)}
    for name, operation in operations(document).items():
        for status, response in operation["responses"].items():
            assert set(response["headers"]) == {"X-Request-ID", *more.get(status, ())}, (name, status)
            if status not in ("200", "202"):
                schema = response["content"]["application/json"]["schema"]
                models = re.findall(r"#/components/schemas/(\w+)", json.dumps(schema))
                foreign = "protocols" in operation["tags"]
                assert models == ["SystemOneErrorResponse" if foreign else "ErrorResponse"], (name, status)
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_code_and_what_every_operation_does_is_documented(document: dict[str, Any]) -> None:
    every = operations(document).values()
    documented = set(re.findall(r"`(\w+)`:", json.dumps([operation["responses"] for operation in every])))
    assert documented == {kind.code for kind in ERROR_KINDS} - UNDOCUMENTED
    assert {tag["name"]: tag["description"] for tag in document["tags"]} == TAGS
    assert all(operation.get("description") for operation in every)
    assert {tag for operation in every for tag in operation["tags"]} == set(TAGS)


def kinds(schema: dict[str, Any]) -> set[str]:
    """Return the JSON types that a field's leaves can have; none of another schema."""
    parts = [*schema.get("anyOf", []), *schema.get("prefixItems", [])]
    parts += [schema[key] for key in ("items", "additionalProperties") if isinstance(schema.get(key), dict)]
    own = {schema["type"]} if "type" in schema and not parts else set()
    return own.union(*(kinds(part) for part in parts))


UNITS = re.compile(r"\bnats\b|\bms\b|seconds|\bbytes\b|[Pp]robabilit|0 to [12]\b|[Nn]umber of|[Tt]okens|unit\b")


def test_every_field_says_what_it_is_and_that_of_an_answer_has_an_example_and_a_unit(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        assert schema.get("description"), name
        requested = name.endswith(("Options", "Request")) or name in ("Input", "LabelledInput")
        for field, found in schema.get("properties", {}).items():
            # A reference without words of its own has those of its schema.
            assert found.get("description") or set(found) == {"$ref"}, f"{name}.{field} needs a description"
            if requested or not kinds(found) - {"null"}:
                continue  # of another schema, with examples of its own
            assert found.get("examples"), f"{name}.{field} needs an example"
            if kinds(found) & {"number", "integer"}:
                assert UNITS.search(found["description"]), f"{name}.{field}: in which unit?"


def test_examples_and_answers_composed_of_them_fit_their_schemas(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"].values()
    fields = [field for schema in schemas for field in schema.get("properties", {}).values()]
    examples = [(holder, example) for holder in (*schemas, *fields) for example in holder.get("examples", [])]
    assert len(examples) > 60
    for operation in operations(document).values():
        contents = [operation.get("requestBody", {}), *operation["responses"].values()]
        for media in (media for content in contents for media in content.get("content", {}).values()):
            examples += [(media["schema"], example["value"]) for example in media.get("examples", {}).values()]
        answers = [response.get("content", {}).get("application/json") for response in operation["responses"].values()]
        # What a docs page shows as an example of an answer could have come from the server.
        examples += [(one["schema"], composed(document, one["schema"])) for one in answers if one and one["schema"]]
    for schema, example in examples:
        jsonschema_rs.validate({"components": document["components"], **schema}, example)
