"""An upload's bytes, cut into its rows as they come: lines of JSON, or the objects of one JSON array.

What it is, is told by its first bytes: a ``[`` begins an array, since a row is an object. Memory is that of one chunk
and one row.
"""

from __future__ import annotations

import re
from typing import Literal, Protocol

from service.errors import InvalidJsonError, MediaTypeError

Layout = Literal["lines", "array", "parquet"]
#: How many bytes tell what an upload is, white space aside.
_MAGIC_BYTES = 4
_PARQUET = b"PAR1"
#: By their first bytes: what people send compressed, by mistake or to make a small upload a large one.
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zX": "xz",
}
_SPACE = b" \t\r\n"
#: What an array's scan looks at: all that opens, closes or parts; and what is inside of a string.
_MARKS = re.compile(rb'["{}\[\],]')
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
#: Most white space before an upload's first byte that tells what it is.
_LEADING_BYTES = 1024


class Splitter(Protocol):
    """Cuts what it is fed into rows."""

    @property
    def pending(self) -> int:
        """How many bytes of a row have come that is not whole."""
        ...

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the rows that are whole with this chunk, as they came: white space in them may be line breaks."""
        ...

    def finish(self) -> list[bytes]:
        """Return the rows that only the end completes."""
        ...


def layout_of(begin: bytes) -> Layout | None:
    """Return how an upload is laid out, by its first bytes; None while there are too few to tell.

    Raises:
        MediaTypeError: it is compressed.
        InvalidJsonError: it begins with more than 1 KiB of white space.
    """
    shown = begin.lstrip(_SPACE)
    if len(begin) - len(shown) > _LEADING_BYTES:
        raise InvalidJsonError(f"the upload begins with more than {_LEADING_BYTES} bytes of white space: leave it out")
    if begin[:4] == _PARQUET:
        return "parquet"
    for magic, name in _COMPRESSED.items():
        if begin.startswith(magic):
            raise MediaTypeError(f"the upload is a {name} file: send its rows uncompressed, or as Parquet")
    if shown.startswith(b"["):
        return "array"
    return None if len(begin) < _MAGIC_BYTES or not shown else "lines"


class Lines:
    """Rows that end with a line break, or with the upload."""

    def __init__(self) -> None:
        self._begun = bytearray()

    @property
    def pending(self) -> int:
        """As of ``Splitter``; so are the methods."""
        return len(self._begun)

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that are whole."""
        self._begun += chunk
        if b"\n" not in chunk:
            return []
        *lines, rest = bytes(self._begun).split(b"\n")
        self._begun = bytearray(rest)
        return lines

    def finish(self) -> list[bytes]:
        """Return the last line, if it has no line break; the end of a file may be one of white space."""
        rest, self._begun = bytes(self._begun), bytearray()
        return [rest] if rest.strip() else []


class Array:
    """The members of one JSON array."""

    def __init__(self) -> None:
        #: What has come of the next member, in earlier chunks.
        self._begun = bytearray()
        #: Where the next byte is: how deep in objects and lists, the array counted; in a string; behind a backslash.
        self._depth = 0
        self._in_string = self._escaped = False
        self._closed = False
        self._members = 0

    @property
    def pending(self) -> int:
        """As of ``Splitter``; so are the methods."""
        return len(self._begun)

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the members that are whole. Each byte is looked at once, however the chunks are cut.

        Raises:
            InvalidJsonError: more after the array's end, or a comma without a member before it.
        """
        members: list[bytes] = []
        first = position = 0
        while position < len(chunk) and not self._closed:
            if self._in_string:
                position = self._skip_string(chunk, position)
                continue
            mark = _MARKS.search(chunk, position)
            if mark is None:
                break
            what, position = mark[0], mark.end()
            if what == b'"':
                self._in_string = True
            elif what in b"{[":
                self._depth += 1
                if self._depth == 1:
                    self._check_blank(self._until(chunk[first : mark.start()]))
                    first = position
            elif what in b"}]":
                self._depth -= 1
                if self._depth == 0:
                    if what != b"]":
                        raise InvalidJsonError("the array of rows ends with } instead of ]")
                    self._close(self._until(chunk[first : mark.start()]), members)
                    first = position
            elif self._depth == 1:
                self._take(self._until(chunk[first : mark.start()]), members)
                first = position
        if self._closed:
            self._check_blank(chunk[first:])
        else:
            self._begun += chunk[first:]
        return members

    def _skip_string(self, chunk: bytes, position: int) -> int:
        """Return where a string that has begun ends in a chunk, or the chunk's end."""
        if self._escaped:
            position += 1
        inside = _IN_STRING.match(chunk, position)
        end = position if inside is None else inside.end()
        # What ends the match is the string's quote, or a backslash that is the chunk's last byte.
        self._escaped = chunk[end : end + 1] == b"\\"
        self._in_string = chunk[end : end + 1] != b'"'
        return min(end + 1, len(chunk))

    def _until(self, more: bytes) -> bytes:
        """Return what has come of a member, with so much more of it; the next one begins."""
        member = bytes(self._begun) + more
        self._begun.clear()
        return member

    def finish(self) -> list[bytes]:
        """Return nothing: a whole array has ended before; InvalidJsonError for one that has not."""
        if not self._closed:
            raise InvalidJsonError(f"the array of rows has no end: it stops after {self._members} whole rows")
        return []

    def _take(self, member: bytes, members: list[bytes]) -> None:
        self._members += 1
        members.append(member.strip(_SPACE))

    def _close(self, member: bytes, members: list[bytes]) -> None:
        self._closed = True
        if member.strip(_SPACE) or self._members:
            self._take(member, members)

    def _check_blank(self, text: bytes) -> None:
        if text.strip(_SPACE):
            raise InvalidJsonError("the upload is more than one array: send one array of rows, or one row a line")
