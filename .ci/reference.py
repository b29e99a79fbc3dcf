"""Tables of the site that the code writes: settings, log events and metrics, fields of a run and of an artifact, and
the HTTP contract as the tests keep it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase
from training_fields import fields

from laplora.artifact.manifest import Manifest
from service.errors import ERROR_KINDS
from service.settings import Settings
from service.telemetry.logs import EVENTS
from service.telemetry.metrics import Metrics
from training.report.markdown import escaped, markdown_table


def events() -> str:
    """Return what each event of the log means, and its fields."""
    return _table(("event", "when; fields"), [(f"`{name}`", meaning) for name, meaning in EVENTS.items()])


def metrics() -> str:
    """Return each metric with its type, labels and meaning."""
    rows = []
    for metric in Metrics().registry._collector_to_names:
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            rows.append((f"`{name}`", family.type, ", ".join(metric._labelnames), family.documentation))
    return _table(("metric", "type", "labels", "what"), sorted(rows))


def settings() -> str:
    """Return each setting as its flag, with its default and meaning."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, "", ()) else f"`{field.default}`"
        rows.append((f"`--{name.replace('_', '-')}`", default, field.description or ""))
    return _table(("flag", "default", "what"), rows)


def training() -> str:
    """Return each field of a run's configuration with its values, default and meaning."""
    return _table(("field", "values", "default", "meaning"), fields())


def manifest() -> str:
    """Return each field of an artifact's manifest, those of records by their path."""
    schema = Manifest.model_json_schema()
    return _table(("field", "type", "meaning"), list(_fields("", schema, schema["$defs"])))


def endpoints() -> str:
    """Return each operation of the HTTP API with its name in generated clients, what it does, and its statuses."""
    rows = []
    for path, methods in _contract()["paths"].items():
        for method, operation in methods.items():
            first = operation["description"].split("\n\n")[0]
            statuses = " ".join(sorted(operation["responses"]))
            rows.append((f"`{method.upper()} {path}`", f"`{operation['operationId']}`", first, statuses))
    return _table(("endpoint", "operation", "what it does", "statuses"), sorted(rows))


def errors() -> str:
    """Return each error code with its status, its meaning, and whether its answer has Retry-After."""
    rows = [(str(k.status), f"`{k.code}`", k.meaning, "" if k.retry_after_s is None else "yes") for k in ERROR_KINDS]
    return _table(("status", "code", "meaning", "`Retry-After`"), sorted(rows, key=lambda row: row[0]))


def schema(name: str) -> str:
    """Return each field of a body of the HTTP API, those of its records by their path."""
    records = _contract()["components"]["schemas"]
    return _table(("field", "type", "meaning"), list(_fields("", records[name], records)))


def _contract() -> dict[str, Any]:
    snapshot = Path(__file__).parent.parent / "tests" / "service" / "http" / "openapi.json"
    contract: dict[str, Any] = json.loads(snapshot.read_text(encoding="utf-8"))
    return contract


def _fields(path: str, record: Mapping[str, Any], records: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield path, type and description of a JSON schema's fields; of a union all its records' fields, once."""
    for name, field in record.get("properties", {}).items():
        yield f"`{path}{name}`", " or ".join(dict.fromkeys(_types(field))), field.get("description", "")
        below: dict[str, tuple[str, str]] = {}
        for one in _records(field, records):
            for inner, kind, meaning in _fields(f"{path}{name}.", one, records):
                known = below.get(inner, (kind, meaning))
                below[inner] = (known[0] if kind in known[0] else f"{known[0]}, {kind}", known[1] or meaning)
        yield from ((inner, *row) for inner, row in below.items())


def _options(field: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(field.get("anyOf") or field.get("oneOf") or [field])


def _types(field: Mapping[str, Any]) -> list[str]:
    """Return the types of a field in words, with what a text may be."""
    return [
        ", ".join(f"`{value}`" for value in one["enum"])
        if "enum" in one
        else f"`{one['const']}`"
        if "const" in one
        else str(one.get("type", "object"))
        for one in _options(field)
    ]


def _records(field: Mapping[str, Any], records: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the records that a field holds, one by one or by name."""
    for one in _options(field):
        inner = one.get("additionalProperties")
        for held in (one, inner if isinstance(inner, dict) else {}):
            if "$ref" in held:
                yield records[held["$ref"].rpartition("/")[2]]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return markdown_table(head, [map(escaped, row) for row in rows], left=range(len(head)))


#: By the name that a page gives in ``<!-- reference: NAME -->``.
TABLES: dict[str, Callable[[], str]] = {
    "events": events,
    "metrics": metrics,
    "settings": settings,
    "training": training,
    "manifest": manifest,
    "endpoints": endpoints,
    "errors": errors,
}
#: Bodies, by the first word of their schema's name.
for _name in (
    "PredictOptions",
    "PredictionOut",
    "EvaluateOptions",
    "AcceptedOut",
    "MethodMetrics",
    "SuggestOptions",
    "SuggestedInput",
    "JobOut",
):
    TABLES[_name] = partial(schema, _name)
