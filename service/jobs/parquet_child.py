"""A process of its own that reads a Parquet file and writes its rows as JSON lines: ``FILE MEMORY ROWS SECONDS``.

A file of a few KB can unpack to gigabytes, and whatever its pages say of their size may be a lie. Here that can end
no server: the process has so much memory and no more, and may write no file. A row is a JSON object. What is wrong
with the file is a JSON list, ``[message, column]``, in place of the next row. It imports nothing of the server.
"""

from __future__ import annotations

import ctypes
import datetime
import decimal
import json
import math
import os
import resource
import signal
import sys
from collections import Counter
from contextlib import suppress
from typing import Any, NoReturn

_BATCH_ROWS = 64
_REFUSED = 3
#: Of one string of the file's own description, and of one of its lists.
_DESCRIPTION_BYTES, _DESCRIPTION_MEMBERS = 16 * 2**20, 1_000_000
#: Most characters that are told of a name or a type in the file.
_TOLD_CHARS = 64
_FILES = 32
_PR_SET_PDEATHSIG = 1


def _refuse(message: str, column: str | None = None) -> NoReturn:
    out = sys.stdout.buffer
    out.write(json.dumps([message, None if column is None else column[:_TOLD_CHARS]]).encode() + b"\n")
    out.flush()
    os._exit(_REFUSED)


def _end_first() -> None:
    """End with the thread that started this process, and before any other process where memory gets short."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def _limit(more_bytes: int, cpu_s: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more_bytes, used + more_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    for nothing in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(nothing, (0, 0))


def _json(value: Any) -> Any:
    """Return a value as JSON has it: dates as ISO 8601, decimals as text, what is not finite as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return str(value)
    return [_json(one) for one in value] if isinstance(value, list) else value


def _check_columns(schema: Any, types: Any) -> None:
    name, count = next(iter(Counter(schema.names).most_common(1)), ("", 0))
    if count > 1:
        _refuse(f"{count} of its columns have one name: a row can have one of them", name)
    for field in schema:
        kind = field.type
        if types.is_dictionary(kind):
            kind = kind.value_type
        is_list = types.is_list(kind) or types.is_large_list(kind)
        if is_list and (types.is_string(kind.value_type) or types.is_large_string(kind.value_type)):
            continue
        if types.is_nested(kind):
            told = str(kind)[:_TOLD_CHARS]
            _refuse(f"the column is nested ({told}): flatten it; only lists of strings may be in a column", field.name)
        if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
            _refuse(f"the column holds bytes ({kind}): write it as text", field.name)


def main() -> None:
    """Write the rows of the file."""
    _end_first()
    path, (memory_bytes, most_rows, cpu_s) = sys.argv[1], map(int, sys.argv[2:])
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    import pyarrow
    import pyarrow.parquet

    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    _limit(memory_bytes, cpu_s)
    out = sys.stdout.buffer
    try:
        file = pyarrow.parquet.ParquetFile(
            path,
            memory_map=False,
            pre_buffer=False,
            thrift_string_size_limit=_DESCRIPTION_BYTES,
            thrift_container_size_limit=_DESCRIPTION_MEMBERS,
        )
        _check_columns(file.schema_arrow, pyarrow.types)
        if file.metadata.num_rows > most_rows:
            _refuse(f"the file has {file.metadata.num_rows} rows, max_job_rows is {most_rows}: send it in parts")
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
            for row in batch.to_pylist():
                values = {name: _json(value) for name, value in row.items()}
                out.write(json.dumps(values, ensure_ascii=True, allow_nan=False).encode() + b"\n")
    except BrokenPipeError:
        os._exit(0)
    except MemoryError:
        _refuse("a page of the file is too large to unpack: write it with smaller pages and row groups")
    except (pyarrow.ArrowException, OSError, ValueError, UnicodeDecodeError):
        _refuse("it cannot be read as a Parquet file: it is damaged, or of a kind that is not known here")
    out.flush()


if __name__ == "__main__":
    main()
