"""The tables of docs/api.md, made from the OpenAPI document and the error table."""

from __future__ import annotations

import re
from typing import Any

from service.errors import ERROR_KINDS

#: Schemas whose fields the page lists, by the name of their table.
FIELDS = {
    "input": "Input",
    "predict-options": "PredictOptions",
    "prediction": "PredictionOut",
    "uncertainty": "UncertaintyParts",
    "timing": "Timing",
    "evaluate-options": "EvaluateOptions",
    "method-metrics": "MethodMetrics",
    "suggest-options": "SuggestOptions",
    "suggested": "SuggestedInput",
    "job": "JobOut",
}
#: Those of requests; the others are of answers.
REQUESTED = {"Input", "PredictOptions", "EvaluateOptions", "SuggestOptions"}


def with_tables(page: str, document: dict[str, Any]) -> str:
    """Return the page with each ``<!-- table: NAME -->`` followed by that table, up to the next blank line.

    Raises:
        KeyError: a name that is no table's.
        ValueError: a table that the page does not show.
    """
    tables = {"endpoints": endpoints(document), "errors": errors()}
    tables |= {name: fields(document, schema) for name, schema in FIELDS.items()}
    missing = set(tables) - set(re.findall(r"<!-- table: ([\w-]+) -->", page))
    if missing:
        raise ValueError(f"docs/api.md shows no table {sorted(missing)}")

    def filled(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n{tables[match[1]]}\n"

    return re.sub(r"<!-- table: ([\w-]+) -->\n(?:\|.*\n)*", filled, page)


def endpoints(document: dict[str, Any]) -> str:
    rows = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            first = operation["description"].split("\n\n")[0].replace("\n", " ")
            statuses = " ".join(sorted(operation["responses"]))
            rows.append((f"`{method.upper()} {path}`", f"`{operation['operationId']}`", first, statuses))
    return table(("endpoint", "operation", "what it does", "statuses"), sorted(rows))


def errors() -> str:
    rows = [
        (str(kind.status), f"`{kind.code}`", kind.meaning, "" if kind.retry_after_s is None else "yes")
        for kind in ERROR_KINDS
    ]
    return table(("status", "code", "meaning", "`Retry-After`"), sorted(rows, key=lambda row: row[0]))


def fields(document: dict[str, Any], name: str) -> str:
    schema = document["components"]["schemas"][name]
    required = schema.get("required", [])
    requested = name in REQUESTED
    rows = []
    for field, described in schema["properties"].items():
        sent = "always" if field in required else "where set"
        third = default(described, field in required) if requested else sent
        rows.append((f"`{field}`", kind(described), third, described.get("description", "")))
    return table(("field", "type", "default" if requested else "there", "meaning"), rows)


def kind(schema: dict[str, Any]) -> str:
    """Return a field's type in words."""
    if "$ref" in schema:
        return f"`{schema['$ref'].rsplit('/', 1)[1]}`"
    if "anyOf" in schema:
        return " or ".join(kind(part) for part in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        inner = schema.get("items") or {"type": "number"}
        return f"list of {kind(inner)}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"{kind(schema['additionalProperties'])} by name"
    return str(schema.get("type", "any"))


def default(schema: dict[str, Any], required: bool) -> str:
    if "default" in schema and schema["default"] is not None:
        return f"`{schema['default']!r}`".lower() if isinstance(schema["default"], bool) else f"`{schema['default']}`"
    return "" if required else "none"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )
