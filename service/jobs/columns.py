"""The columns of an upload: their names, of what kind their values are, and what a row's value is as one of that kind.

A file of rows has no schema of its own; a table, and figures by a column, need one. It is gathered line by line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from service.errors import InvalidRequestError

#: ``json``: values of several kinds, lists and objects; as JSON text in a table.
Kind = Literal["bool", "integer", "number", "string", "json"]
#: Most columns of one upload: each has its place in every row of a table.
MAX_COLUMNS = 128
_INTEGERS = range(-(2**63), 2**63)


class Columns:
    """The columns of the rows so far; ``kinds`` in the order in which they came, None where all values are null."""

    def __init__(self) -> None:
        self._kinds: dict[str, Kind | None] = {}

    @property
    def kinds(self) -> dict[str, Kind]:
        """Kind by name; a column without any value counts as text."""
        return {name: kind or "string" for name, kind in self._kinds.items()}

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a row in.

        Raises:
            InvalidRequestError: there are more than 128 columns with it.
        """
        for name, value in row.items():
            before = self._kinds.get(name)
            if name not in self._kinds and len(self._kinds) == MAX_COLUMNS:
                raise InvalidRequestError(
                    f"with it the upload has more than {MAX_COLUMNS} columns: leave out what nothing needs",
                    limit=MAX_COLUMNS,
                    got=MAX_COLUMNS + 1,
                )
            self._kinds[name] = _joined(before, _kind(value))


def _kind(value: Any) -> Kind | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "integer" if value in _INTEGERS else "json"
    if isinstance(value, float):
        return "number"
    return "string" if isinstance(value, str) else "json"


def _joined(before: Kind | None, new: Kind | None) -> Kind | None:
    if before is None or new is None:
        return before or new
    if before == new:
        return before
    return "number" if {before, new} == {"integer", "number"} else "json"


def as_kind(value: Any, kind: Kind) -> Any:
    """Return a value as one of its column's kind."""
    if value is None:
        return None
    if kind == "json":
        return json.dumps(value, ensure_ascii=False)
    return float(value) if kind == "number" else value
