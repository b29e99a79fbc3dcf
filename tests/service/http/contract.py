"""Answers as the contract (``openapi.json``) describes them, made of its fields' examples."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx

SNAPSHOT = Path(__file__).with_name("openapi.json")


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the operations of a document by their names, such as ``GET /artifacts``."""
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def composed(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    """Return an example of a schema, made of the examples of its fields."""
    if schema.get("examples"):
        return schema["examples"][0]
    if "$ref" in schema:
        return composed(document, document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]])
    if "anyOf" in schema:
        return composed(document, schema["anyOf"][0])
    if schema.get("type") == "array":
        return [composed(document, schema["items"])]
    if isinstance(schema.get("additionalProperties"), dict):
        return {"map": composed(document, schema["additionalProperties"])}
    return {name: composed(document, field) for name, field in schema["properties"].items()}


def answer_to(method: str, path: str, status: int | None = None) -> Any:
    """Return the body that answers a request, by default that of success."""
    document = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    for name, operation in operations(document).items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", name), f"{method} {path}"):
            responses = operation["responses"]
            wanted = str(status or min(responses))
            return composed(document, responses[wanted]["content"]["application/json"]["schema"])
    raise AssertionError(f"the contract has no {method} {path}")


def example(schema: str) -> Any:
    return composed(json.loads(SNAPSHOT.read_text(encoding="utf-8")), {"$ref": f"#/components/schemas/{schema}"})


def answered(request: httpx.Request) -> httpx.Response:
    """Answer a request of any operation with success, and one of several rows with as many."""
    body = answer_to(request.method, request.url.path)
    for sent, got in (("inputs", "predictions"), ("items", "results")):
        if got in body:
            body[got] *= len(json.loads(request.content)[sent])
    return httpx.Response(200, json=body)


def refused(request: httpx.Request, status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=answer_to(request.method, request.url.path, status), headers=headers)
