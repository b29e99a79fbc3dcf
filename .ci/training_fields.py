"""The table of a run's fields on the site, made from the classes of its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from training.config import RunConfig

_NAMES = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true, false",
    Path: "path",
    tuple: "list",
    dict: "mapping",
}


def fields(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Return each field with its values, default and meaning; those of a section follow in its place."""
    made = []
    for name, field in section.model_fields.items():
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if _is_section(kind)]
        if inner and field.description is None:
            made += fields(inner[0], f"{prefix}{name}.")
        else:
            default = "required" if field.default is PydanticUndefined else _shown(field.default)
            made.append((f"`{prefix}{name}`", _values(field.annotation), default, field.description or ""))
    return made


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _values(kind: Any) -> str:
    """Return a type in words: its choices if it has some."""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    parts = [part for part in get_args(kind) if part is not type(None)]
    if parts and get_origin(kind) not in (tuple, dict, list):
        return ", ".join(dict.fromkeys(_values(part) for part in parts))
    return _NAMES.get(get_origin(kind) or kind, "section")


def _shown(default: Any) -> str:
    """Return a default as YAML writes it."""
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, (tuple, dict)):
        return ", ".join(map(str, default)) or "none"
    return str(default)
