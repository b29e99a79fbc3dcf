"""Fields that a section of a configuration got after artifacts recorded it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel


def as_before(section: BaseModel, fields: dict[str, Any], later: Collection[str]) -> dict[str, Any]:
    """Return a section's fields without those of ``later`` that are at their defaults.

    So a configuration that uses none of them is written, and has the digest, as before there were such fields.
    """
    defaults = {name: type(section).model_fields[name].default for name in later}
    return {k: v for k, v in fields.items() if k not in defaults or getattr(section, k) != defaults[k]}
