"""An upload's bytes, cut into lines as they come, and read as rows. Memory is that of one chunk and one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from laplora.answers.labels import LabelNames, Truth
from laplora.errors import InvalidInputError
from service.errors import MediaTypeError
from service.jobs.store.records import ReadRow

_UTF8_MARK = b"\xef\xbb\xbf"
#: By their first bytes: what people send in place of JSON Lines, and what to do with it.
_OTHERS = {
    b"PAR1": "a Parquet file: write its rows as JSON Lines; laplora evaluate reads Parquet",
    b"\xff\xfe": "UTF-16 text: write it as UTF-8",
    b"\xfe\xff": "UTF-16 text: write it as UTF-8",
    b"[": "a JSON array: send one object a line, as jq -c '.[]' writes them",
    b"\x1f\x8b": "a gzip file: send it uncompressed, or with Content-Encoding: gzip",
    b"PK\x03\x04": "a zip file: send it uncompressed",
    b"\x28\xb5\x2f\xfd": "a zstd file: send it uncompressed",
    b"BZh": "a bzip2 file: send it uncompressed",
    b"\xfd7zX": "an xz file: send it uncompressed",
}


class Lines:
    """Lines of an upload; the last one may end with it. A mark of UTF-8 before the first is passed over."""

    def __init__(self) -> None:
        self._begun = bytearray()
        self._first = True

    @property
    def pending(self) -> int:
        """How many bytes of a line have come that is not whole."""
        return len(self._begun)

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that are whole with this chunk.

        Raises:
            MediaTypeError: the upload is something else.
        """
        self._begun += chunk
        # White space alone tells nothing yet: each byte of it is looked at once.
        enough = len(self._begun) >= max(map(len, _OTHERS)) and not chunk.isspace()
        if self._first and (b"\n" in chunk or enough):
            self._check()
        if b"\n" not in chunk:
            return []
        *lines, rest = bytes(self._begun).split(b"\n")
        self._begun = bytearray(rest)
        return lines

    def finish(self) -> list[bytes]:
        """Return the last line, if it has no line break; the end of a file may be one of white space. As ``feed``."""
        if self._first:
            self._check()
        rest, self._begun = bytes(self._begun), bytearray()
        return [rest] if rest.strip() else []

    def _check(self) -> None:
        self._first = False
        self._begun = self._begun.removeprefix(_UTF8_MARK)
        begin = bytes(self._begun).lstrip()
        for magic, what in _OTHERS.items():
            if begin.startswith(magic):
                raise MediaTypeError(f"the upload is {what}")


class Row(NamedTuple):
    """A row of an upload.

    Attributes:
        fields: what the prompt is made of; columns: everything that was sent.
        truth: where its true labels are; None of a row without one.
    """

    id: str | None
    fields: Mapping[str, Any]
    columns: Mapping[str, Any]
    truth: Truth | None


def read_row(read_uploaded: ReadRow, line: bytes, labels: LabelNames, template_fields: Sequence[str]) -> Row:
    """Return a row from its JSON object.

    Args:
        template_fields: of the artifact's template. Other fields of a row are columns of its own.

    Raises:
        InvalidJsonError, InvalidRequestError, InvalidInputError: as of a body; fields and messages are of the row.
    """
    row = read_uploaded(line)
    fields = _prompt_fields(row.inputs, template_fields)
    truth = None if row.label is None else labels.truth(row.label, fields)
    return Row(row.id, fields, row.columns, truth)


def _prompt_fields(sent: Mapping[str, Any], template_fields: Sequence[str]) -> dict[str, Any]:
    named = [name for name in template_fields if name in sent]
    if "prompt" not in sent or "prompt" in template_fields:
        return {name: sent[name] for name in named}
    if named:
        raise InvalidInputError(f"it has a prompt and {named}: send one or the other", field="prompt")
    return {"prompt": sent["prompt"]}
