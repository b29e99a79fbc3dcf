"""A job's rows as JSON Lines or as Parquet, made while they are sent: a page of them is in memory, never all.

A line is ``{"line", "input", "answer", "error"}``, the input as it was uploaded. A table has a column ``line``, the
upload's own columns, and those of the answer, whose names begin with ``answer_``: an upload's column that would have
such a name is ``upload_NAME``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

from service.jobs.answered import AnsweredRow, answered_pages
from service.jobs.columns import Kind, as_kind
from service.jobs.disk import Disk
from service.jobs.records import Job

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["jsonl", "parquet"]
MEDIA_TYPES: dict[Format, str] = {"jsonl": "application/jsonl", "parquet": "application/vnd.apache.parquet"}
#: Rows of one group of a table, as many as a page of them comes to: what a reader has in memory at least.
_GROUP_ROWS = 2048
_GROUP_BYTES = 2**23
_PREFIX = "answer_"
_BY_LABEL = ("probs", "map_probs", "probs_std")
_UNCERTAINTY = ("total", "aleatoric", "epistemic")


async def written(disk: Disk, job: Job, format: Format, *, first: int = 0) -> AsyncGenerator[bytes]:
    """Yield the bytes of a job's rows that are over, from number ``first`` on; errors as of ``answered_pages``."""
    async with (
        aclosing(answered_pages(disk, job, first=first)) as pages,
        aclosing(_json_lines(disk, pages) if format == "jsonl" else _table(disk, job, pages)) as parts,
    ):
        async for part in parts:
            yield part


async def _json_lines(disk: Disk, pages: AsyncIterator[Sequence[AnsweredRow]]) -> AsyncGenerator[bytes]:
    async for page in pages:
        yield await disk.in_files(_lines, page)


def _lines(page: Sequence[AnsweredRow]) -> bytes:
    return b"".join(map(_line, page))


def _line(one: AnsweredRow) -> bytes:
    answer = json.dumps(one.answer, ensure_ascii=False, separators=(",", ":")).encode()
    error = b"null" if one.error is None else f'"{one.error}"'.encode()
    return b'{"line":%d,"input":%b,"answer":%b,"error":%b}\n' % (one.row + 1, one.line, answer, error)


async def _table(disk: Disk, job: Job, pages: AsyncIterator[Sequence[AnsweredRow]]) -> AsyncGenerator[bytes]:
    table = await disk.in_files(_Table, job)
    group: list[AnsweredRow] = []
    size = 0
    async for page in pages:
        group += page
        size += sum(len(one.line) + len((one.scored and one.scored.answer) or "") for one in page)
        if len(group) >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield await disk.in_files(table.add, group)
            group, size = [], 0
    yield await disk.in_files(table.end, group)


class _Sink:
    """What a table is written into: it keeps what has come since it was last taken."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, part: Any) -> int:
        self._parts.append(bytes(part))
        return len(self._parts[-1])

    def flush(self) -> None:
        return

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


class _Table:
    """A Parquet file of a job's rows, group by group. Blocks."""

    def __init__(self, job: Job) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        about = job.about
        self._labels = about.labels
        self._columns = {name: _free_name(name) for name in about.columns}
        self._kinds: Mapping[str, Kind] = about.columns
        self._schema = _schema(about.columns, about.labels)
        self._sink = _Sink()
        metadata = {"laplora.job": job.id, "laplora.artifact": about.artifact.digest}
        self._writer = pq.ParquetWriter(
            pa.PythonFile(self._sink, mode="w"), self._schema.with_metadata(metadata), compression="zstd"
        )

    def add(self, rows: Sequence[AnsweredRow]) -> bytes:
        """Return the bytes of the next rows, as one group."""
        import pyarrow as pa

        self._writer.write_batch(pa.RecordBatch.from_pylist([self._row(one) for one in rows], schema=self._schema))
        return self._sink.take()

    def end(self, rows: Sequence[AnsweredRow]) -> bytes:
        """Return the bytes of the last rows, and the file's end."""
        begun = self.add(rows) if rows else b""
        self._writer.close()
        return begun + self._sink.take()

    def _row(self, one: AnsweredRow) -> dict[str, Any]:
        row: dict[str, Any] = {"line": one.row + 1, f"{_PREFIX}error": one.error}
        for name, shown in self._columns.items():
            row[shown] = as_kind(one.columns.get(name), self._kinds[name])
        answer = one.answer or {}
        for field in _PLAIN:
            row[_PREFIX + field] = answer.get(field)
        for field in _BY_LABEL:
            by_label = answer.get(field) or {}
            for label in self._labels:
                row[f"{_PREFIX}{field}.{label}"] = by_label.get(label)
        for field in _UNCERTAINTY:
            row[f"{_PREFIX}uncertainty.{field}"] = (answer.get("uncertainty") or {}).get(field)
        return row


#: Of an answer, in the order of a table: fields of one value, and their types.
_PLAIN: dict[str, str] = {
    "label": "string",
    "labels": "strings",
    "label_text": "string",
    "answered_by": "string",
    "decision": "string",
    "prediction_set": "strings",
    "flags": "strings",
    "score": "number",
    "label_mass": "number",
    "familiarity": "number",
    "tokens": "integer",
    "orders": "integer",
    "truncated": "bool",
}


def _schema(columns: Mapping[str, Kind], labels: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "json": pa.string(),
        "strings": pa.list_(pa.string()),
        "number": pa.float64(),
        "integer": pa.int64(),
        "bool": pa.bool_(),
    }
    fields: list[tuple[str, str]] = [("line", "integer"), *((_free_name(name), kind) for name, kind in columns.items())]
    fields += [(_PREFIX + name, kind) for name, kind in _PLAIN.items()]
    fields += [(f"{_PREFIX}{field}.{label}", "number") for field in _BY_LABEL for label in labels]
    fields += [(f"{_PREFIX}uncertainty.{field}", "number") for field in _UNCERTAINTY]
    fields.append((f"{_PREFIX}error", "string"))
    return pa.schema([pa.field(name, types[kind]) for name, kind in fields])


def _free_name(name: str) -> str:
    """Return the name of an upload's column in a table: its own, unless the table has another column of that name."""
    return f"upload_{name}" if name == "line" or name.startswith((_PREFIX, "upload_")) else name
