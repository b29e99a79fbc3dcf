"""The table of a run's fields in docs/training.md, made from the configuration's classes.

python tests/docs/training_page.py      # writes it anew
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from training.config import RunConfig

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
HEAD = "| field | values | default | meaning |\n| --- | --- | --- | --- |\n"


def with_fields(page: str) -> str:
    """Return the page with the table between its markers."""
    return re.sub(
        r"(<!-- fields -->\n).*?(<!-- /fields -->)",
        lambda match: f"{match[1]}{HEAD}{''.join(rows(RunConfig))}{match[2]}",
        page,
        flags=re.DOTALL,
    )


def rows(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Return a row for each field of a section, those of its own sections in its place."""
    made = []
    for name, field in section.model_fields.items():
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if is_section(kind)]
        if inner and field.description is None:
            made += rows(inner[0], f"{prefix}{name}.")
        else:
            default = "required" if field.default is PydanticUndefined else shown(field.default)
            meaning = (field.description or "").replace("|", "\\|")
            made.append(f"| `{prefix}{name}` | {values(field.annotation)} | {default} | {meaning} |\n")
    return made


def is_section(kind: Any) -> bool:
    """Return whether a type is a section of its own."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def values(kind: Any) -> str:
    """Return a type in words: its choices where it has some."""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    parts = [part for part in get_args(kind) if part is not type(None)]
    if parts and get_origin(kind) not in (tuple, dict, list):
        return ", ".join(dict.fromkeys(values(part) for part in parts))
    names = {
        str: "text",
        int: "integer",
        float: "number",
        bool: "true, false",
        Path: "path",
        tuple: "list",
        dict: "mapping",
    }
    return names.get(get_origin(kind) or kind, "section")


def shown(default: Any) -> str:
    """Return a default as YAML writes it."""
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, (tuple, dict)):
        return ", ".join(map(str, default)) or "none"
    return str(default)


if __name__ == "__main__":
    PAGE.write_text(with_fields(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
