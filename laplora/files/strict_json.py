"""JSON as its standard has it: Python's reader also takes NaN, numbers beyond a float, and a name twice."""

from __future__ import annotations

import json
import math
from typing import Any

#: The most digits of a whole number, with its sign. Python refuses more too, but its message names a Python setting.
_MOST_DIGITS = 4300


def strict_json(raw: bytes | str) -> Any:
    """Return the value of a JSON text whose numbers are finite and whose names differ; ValueError for another text.

    Raises RecursionError where it is nested too deeply.
    """
    return json.loads(
        raw, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole, object_pairs_hook=_unique
    )


def is_nested_within(value: Any, most: int) -> bool:
    """Return whether a JSON value has at most so many levels of objects and arrays."""
    level = [value]
    for _ in range(most + 1):
        level = [c for v in level if isinstance(v, dict | list) for c in (v.values() if isinstance(v, dict) else v)]
        if not level:
            return True
    return False


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is beyond what a float holds")
    return value


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number has more than {_MOST_DIGITS} digits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"field {name[:64]!r} appears twice")
        values[name] = value
    return values
