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
#: Most characters of one name, and of all names together: a server has those of every job in memory.
MAX_NAME_CHARS, MAX_NAMES_CHARS = 256, 8192
_INTEGERS = range(-(2**63), 2**63)


class Columns:
    """The columns of the rows so far; ``kinds`` in the order in which they came, None where all values are null."""

    def __init__(self) -> None:
        self._kinds: dict[str, Kind | None] = {}
        self._chars = 0

    @property
    def kinds(self) -> dict[str, Kind]:
        """Kind by name; a column without any value counts as text."""
        return {name: kind or "string" for name, kind in self._kinds.items()}

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a row in.

        Raises:
            InvalidRequestError: there are more than 128 columns with it, a name has more than 256 characters, or all of
                them together more than 8,192.
        """
        for name, value in row.items():
            if name not in self._kinds:
                self._check_new(name)
                self._chars += len(name)
            self._kinds[name] = _joined(self._kinds.get(name), _kind(value))

    def _check_new(self, name: str) -> None:
        for got, limit, told in (
            (len(self._kinds) + 1, MAX_COLUMNS, "with it the upload has more than {limit} columns"),
            (len(name), MAX_NAME_CHARS, "the name of a column has more than {limit} characters"),
            (self._chars + len(name), MAX_NAMES_CHARS, "the names of all columns have more than {limit} characters"),
        ):
            if got > limit:
                message = f"{told.format(limit=limit)}: leave out what nothing needs, or shorten names"
                raise InvalidRequestError(message, limit=limit, got=got)


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
