"""Uploads that are Parquet files, which a process of its own reads: good ones, and every kind of bad one."""

from __future__ import annotations

import asyncio
import io
import json
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_calls import ended, folder, methods, post, refused, rows
from serving import FakePredictor, Served, serve
from test_job_uploads import OCTETS, unmoved

from laplora.prompts.templates import TEMPLATES
from service.errors import ClientGoneError, DeadlineError
from service.jobs import parquet_child, parquet_rows
from service.jobs.parquet_rows import ParquetRows

pytestmark = pytest.mark.process

PARQUET = {"content-type": "application/vnd.apache.parquet"}


def parquet(items: list[dict[str, Any]] | pa.Table, **options: Any) -> bytes:
    table = items if isinstance(items, pa.Table) else pa.Table.from_pylist(items)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


@pytest.mark.anyio
@pytest.mark.parametrize("headers", [PARQUET, OCTETS])
async def test_a_parquet_file_is_an_upload(headers: dict[str, str], served: Served) -> None:
    items = [
        {**row, "source": "ab"[i % 2], "day": f"2026-01-{i % 9 + 1:02}", "n": i} for i, row in enumerate(rows(250))
    ]
    table = pa.Table.from_pylist(items)
    table = table.set_column(3, "day", table["day"].cast(pa.date32()))
    table = table.set_column(2, "source", table["source"].dictionary_encode())
    response = await post(served, parquet(table, row_group_size=70), **headers)
    assert response.status_code == 202, response.text
    job_id = response.json()["id"]
    done = await ended(served, job_id)
    assert done["result"]["methods"] == await methods(served, rows(250))
    got = (await served.client.get(f"/evaluate/jobs/{job_id}/results")).text.splitlines()
    assert [json.loads(line)["input"] for line in got] == items
    assert not list(folder(served).glob("*.parquet"))


@pytest.mark.anyio
async def test_lists_of_strings_may_be_in_a_table_and_nothing_else_that_is_nested() -> None:
    predictor = FakePredictor(template=TEMPLATES["multiple_choice"], labels=("A", "B", "C"))
    items = [{"question": f"{i + 10} ?", "choices": ["20", "7"], "label": "AB"[i % 2]} for i in range(6)]
    async with serve(predictor) as served:
        response = await post(served, parquet(items), **PARQUET)
        assert (await ended(served, response.json()["id"]))["status"] == "done"
    for column in ([{"a": 1}] * 6, [[1, 2]] * 6, [[["x"]]] * 6):
        async with serve(FakePredictor()) as served:
            table = pa.Table.from_pylist(rows(6)).append_column("meta", pa.array(column))
            error = refused(await post(served, parquet(table), **PARQUET), 422, "invalid_request")
            assert error["field"] == "meta"
            assert "nested" in error["message"]
            await unmoved(served)


@pytest.mark.anyio
async def test_a_page_that_unpacks_to_much_is_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 MB in a file of some KB: one value is longer than a line may be, and a process of little memory gives up."""
    row = {"text": "a" * (300 * 2**20), "label": "positive"}
    body = parquet([row], compression="zstd", use_dictionary=False, write_statistics=False)
    assert len(body) < 2**20
    monkeypatch.setattr(parquet_rows, "MEMORY_BYTES", 2**27)
    error = refused(await post(served, body, **PARQUET), 422, "invalid_request")
    assert "pages" in error["message"]
    await unmoved(served)
    small = parquet([{"text": "a " * 2**22, "label": "positive"}], compression="zstd")
    assert refused(await post(served, small, **PARQUET), 413, "body_too_large")["field"] == "lines.1"
    await unmoved(served)


@pytest.mark.anyio
async def test_a_table_that_is_larger_as_lines_than_an_upload_may_be_is_refused() -> None:
    body = parquet([{"text": "row 5 " + "x" * 500, "label": "positive"}] * 3000)
    async with serve(max_job_bytes=200_000) as served:
        assert len(body) < 50_000
        error = refused(await post(served, body, **PARQUET), 413, "body_too_large")
        assert (error["limit"], error["got"] > 200_000) == (200_000, True)
        await unmoved(served)
    async with serve(max_job_rows=100) as served:
        refused(await post(served, body, **PARQUET), 422, "invalid_request")
        await unmoved(served)


@pytest.mark.anyio
@pytest.mark.parametrize("cut", [4, 5, 200, -1, -9])
async def test_a_damaged_table_is_refused(cut: int, served: Served) -> None:
    body = parquet(rows(50))
    error = refused(await post(served, body[:cut], **PARQUET), 422, "invalid_request")
    assert "Parquet file" in error["message"]
    await unmoved(served)


def test_the_process_that_reads_tables_needs_nothing_of_the_server() -> None:
    """It is started for a caller's file: what it imports is what can go wrong in it."""
    code = (
        "import runpy, sys; sys.argv = ['x']; runpy.run_path(sys.argv_path, run_name='x'); print(sorted(sys.modules))"
    )
    path = parquet_rows.parquet_child.__file__
    run = [sys.executable, "-I", "-c", f"import sys; sys.argv_path = {path!r}; {code}"]
    modules = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert not any(name in modules for name in ("'service", "'torch", "'fastapi", "'sqlalchemy"))


@pytest.mark.anyio
async def test_bad_rows_have_numbers_and_a_table_without_one_is_refused(served: Served) -> None:
    items = [*rows(3), {"text": None, "label": "positive"}, *rows(2), {"text": "a", "label": "good"}]
    error = refused(await post(served, parquet(items), **PARQUET), 422, "invalid_input")
    assert [(one["line"], one["code"]) for one in error["lines"]] == [(4, "invalid_input"), (7, "invalid_input")]
    await unmoved(served)
    empty = pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())})
    assert refused(await post(served, parquet(empty), **PARQUET), 422, "invalid_request")["field"] == "lines"
    await unmoved(served)


@pytest.mark.anyio
@pytest.mark.parametrize("column", [[b"a"] * 6, [{"k" * 200_000: 1}] * 6])
async def test_names_longer_than_a_pipe_hold_nothing_up(column: list[Any], served: Served) -> None:
    """More than a pipe takes: a process that waited for its reader would never end."""
    table = pa.Table.from_pylist(rows(6)).append_column("x" * 200_000, pa.array(column))
    error = refused(await post(served, parquet(table), **PARQUET), 422, "invalid_request")
    assert error["field"] == "x" * 64
    assert len(error["message"]) < 400
    await unmoved(served)


@pytest.mark.anyio
async def test_two_columns_of_one_name_are_refused(served: Served) -> None:
    table = pa.Table.from_pylist(rows(6)).append_column("text", pa.array(["b"] * 6))
    error = refused(await post(served, parquet(table), **PARQUET), 422, "invalid_request")
    assert (error["field"], "one name" in error["message"]) == ("text", True)
    await unmoved(served)


def _silent(path: Path, timeout_s: float) -> ParquetRows:
    """Return the rows of a process that writes none and never ends."""
    silent = ParquetRows(path, most_rows=10, most_line_bytes=1000, timeout_s=timeout_s)
    silent._command = [sys.executable, "-c", "import time; time.sleep(1e6)"]
    return silent


def test_a_process_that_writes_nothing_is_ended(tmp_path: Path) -> None:
    with pytest.raises(DeadlineError):
        list(_silent(tmp_path, 0.1))
    stopped = _silent(tmp_path, 1e5)
    timer = threading.Timer(0.1, stopped.stop)
    timer.start()
    with pytest.raises(ClientGoneError):
        list(stopped)
    stopped_before = _silent(tmp_path, 1e5)
    stopped_before.stop()
    with pytest.raises(ClientGoneError):
        list(stopped_before)


def test_the_process_gets_no_secret_and_can_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    shown = ParquetRows(tmp_path, most_rows=10, most_line_bytes=10**6, timeout_s=1e5)
    shown._command = [sys.executable, "-c", code]
    (environment,) = map(json.loads, shown)
    assert set(environment) <= {"LD_LIBRARY_PATH", "LC_CTYPE"}
    code = (
        "import json, resource as r, runpy, sys; found = runpy.run_path(sys.argv[1]); found['_end_first']();"
        "found['_limit'](2**30, 5); print(json.dumps([r.getrlimit(k)[1] for k in map(int, sys.argv[2:])]))"
    )
    kinds = [resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU]
    run = [sys.executable, "-I", "-c", code, parquet_child.__file__, *map(str, kinds)]
    assert json.loads(subprocess.run(run, capture_output=True, check=True).stdout) == [0, 0, 5]


@pytest.mark.anyio
async def test_refused_rows_count_as_others_do() -> None:
    """A few KB that are many MB as rows, each of which is refused: they are read up to the limit of an upload."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["a" * 50_000]))
    body = parquet(pa.table({"text": text}), compression="zstd", write_statistics=False)
    assert len(body) < 10_000
    async with serve(max_job_bytes=2**20) as served:
        error = refused(await post(served, body, **PARQUET), 422, "invalid_request")
        assert error["lines_bad"] == 2**20 // 50_000
        await unmoved(served)


class _Gone:
    """A connection that sends an upload and then closes."""

    def __init__(self, body: bytes) -> None:
        self._body, self.closed = body, asyncio.Event()
        self.sent: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        if self._body:
            body, self._body = self._body, b""
            return {"type": "http.request", "body": body, "more_body": False}
        await self.closed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)


@pytest.mark.anyio
async def test_the_process_ends_when_its_client_goes_away(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[ParquetRows] = []

    class Silent(ParquetRows):
        def __init__(self, path: Path, **limits: Any) -> None:
            super().__init__(path, **limits)
            self._command = [sys.executable, "-c", "import time; time.sleep(1e6)"]
            begun.append(self)

    monkeypatch.setattr("service.jobs.upload.ParquetRows", Silent)
    gone = _Gone(parquet(rows(6)))
    headers = [(b"content-type", PARQUET["content-type"].encode()), (b"host", b"test")]
    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/evaluate/jobs", "headers": headers}
    scope |= {"raw_path": b"/evaluate/jobs", "query_string": b"", "scheme": "http", "client": ("127.0.0.1", 1)}
    call = asyncio.ensure_future(served.app(scope | {"server": ("test", 80)}, gone.receive, gone.send))
    await served.until(lambda: bool(begun) and begun[0]._child is not None)
    gone.closed.set()
    await call
    assert begun[0]._child is not None
    assert begun[0]._child.poll() is not None
    await unmoved(served)
