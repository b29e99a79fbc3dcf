"""Every kind of bad upload: refused by its lines, nothing kept, the server unmoved."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import pytest
from job_calls import ended, folder, held, jobs, lines, post, refused, rows, submit, uploads
from serving import Served, serve

OCTETS = {"content-type": "application/octet-stream"}


async def unmoved(served: Served) -> None:
    """Check that nothing of an upload was kept and that the server answers."""
    assert (jobs(served), uploads(served)) == ([], [])
    assert served.state.jobs.quota.held_bytes == 0
    assert (await served.predict("row 7")).status_code == 200


# What is no JSON Lines


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", b"\n" * 2**26)
    return buffer.getvalue()


@pytest.mark.anyio
@pytest.mark.parametrize("headers", [{}, OCTETS])
async def test_what_is_no_json_lines_is_refused_by_name(headers: dict[str, str], served: Served) -> None:
    for name, body in (
        ("gzip file", gzip.compress(b"\n" * 2**26)),
        ("zip file", zipped()),
        ("Parquet file: write its rows as JSON Lines", b"PAR1" + b"\0" * 100),
        ("JSON array: send one object a line", json.dumps(rows(3)).encode()),
        ("JSON array", b"[]"),
    ):
        error = refused(await post(served, body, **headers), 415, "unsupported_media_type")
        assert name in error["message"]
    refused(await post(served, lines(rows(1)), **{"content-encoding": "gzip"}), 415, "unsupported_media_type")
    await unmoved(served)


@pytest.mark.anyio
async def test_a_row_is_one_line_in_the_file_that_is_kept(served: Served) -> None:
    job_id = (await post(served, b'{"text": "row 5",\r"label": "positive"}\r\n', **OCTETS)).json()["id"]
    await ended(served, job_id)
    got = await served.client.get(f"/evaluate/jobs/{job_id}/results")
    assert (b"\r" in got.content, got.content.count(b"\n")) == (False, 1)


# All bad lines


@pytest.mark.anyio
async def test_all_bad_lines_are_told_of_by_their_numbers(served: Served) -> None:
    items = rows(1000)
    bad: dict[int, Any] = {}
    for number in range(4, 1000, 5):
        del items[number]["label"]
        bad[number + 1] = "invalid_request"
    items[8] = {"text": "private words", "label": "good"}
    bad[9] = "invalid_input"
    response = await post(served, lines(items))
    error = refused(response, 422, "invalid_request")
    assert (error["field"], error["lines_bad"]) == ("lines.5.label", len(bad))
    assert [(one["line"], one["code"]) for one in error["lines"]] == sorted(bad.items())[:100]
    assert all(one["message"].startswith(f"line {one['line']}: ") for one in error["lines"])
    assert "private" not in response.text
    await unmoved(served)


@pytest.mark.anyio
async def test_templates_are_not_mixed(served: Served) -> None:
    other = {"question": "why?", "choices": ["a", "b"], "label": "positive"}
    both = {"text": "a", "prompt": "b", "label": "positive"}
    error = refused(await post(served, lines([*rows(2), other, both])), 422, "invalid_input")
    assert [one["line"] for one in error["lines"]] == [3, 4]
    assert "missing ['text']" in error["lines"][0]["message"]
    assert "one or the other" in error["lines"][1]["message"]
    # A rendered prompt in place of the fields is none of that, nor are columns that the template does not know.
    mixed = [*rows(2), {"prompt": "row 9", "label": "positive", "question": "why?"}]
    assert (await ended(served, await submit(served, mixed)))["status"] == "done"


@pytest.mark.anyio
async def test_too_many_columns_are_refused(served: Served) -> None:
    items = [{**row, **{f"c{i}_{j}": 1 for j in range(40)}} for i, row in enumerate(rows(5))]
    error = refused(await post(served, lines(items)), 422, "invalid_request")
    assert (error["field"], error["limit"], error["got"]) == ("lines.4", 128, 129)
    long = [{**rows(1)[0], "k" * 257: 1}]
    error = refused(await post(served, lines(long)), 422, "invalid_request")
    assert (error["limit"], error["got"], "kkk" in error["message"]) == (256, 257, False)
    many = [{**row, **{f"{i}_{j:0200}": 1 for j in range(15)}} for i, row in enumerate(rows(5))]
    error = refused(await post(served, lines(many)), 422, "invalid_request")
    assert (error["field"], error["limit"]) == ("lines.3", 8192)
    await unmoved(served)


@pytest.mark.anyio
async def test_lists_are_without_the_names_of_columns(served: Served) -> None:
    response = await post(served, lines([{**row, "note": 1} for row in rows(5)]))
    job_id = response.json()["id"]
    assert response.json()["columns"] == (await ended(served, job_id))["columns"] == ["text", "label", "note"]
    (listed,) = (await served.client.get("/evaluate/jobs")).json()["jobs"]
    assert listed["columns"] is None


@pytest.mark.anyio
async def test_an_upload_of_bad_lines_alone_is_looked_at_no_further() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100_000:
            sent += 100
            yield b'{"text": "row 5"}\n' * 100

    async with serve() as served:
        error = refused(await post(served, endless()), 422, "invalid_request")
        assert (error["lines_bad"], len(error["lines"])) == (1000, 100)
        await unmoved(served)


# Hostile uploads


@pytest.mark.anyio
async def test_a_line_of_a_gigabyte_is_refused_once_it_is_too_long() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'{"text": "'
        while sent < 2**30:
            sent += 2**16
            yield b"a" * 2**16

    async with serve(max_job_bytes=2**31, max_body_bytes=2**20) as served:
        error = refused(await post(served, endless()), 413, "body_too_large")
        assert (error["field"], error["limit"]) == ("lines.1", 2**20)
        assert error["got"] < 2**20 + 2**17
        await unmoved(served)


@pytest.mark.anyio
async def test_bytes_that_are_no_utf8_are_refused_by_their_line(served: Served) -> None:
    item = b'{"text": "row 5", "label": "positive"}\n'
    error = refused(
        await post(served, item * 2 + b'{"text": "\xff\xfe", "label": "positive"}\n' + item), 422, "invalid_json"
    )
    assert [one["line"] for one in error["lines"]] == [3]
    await unmoved(served)


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["shorter", "other bytes", "gone"])
async def test_an_upload_that_changes_while_it_is_read_fails_the_job_by_its_line(how: str) -> None:
    async with serve(batch_tokens=16) as served:
        served.predictor.hold()
        job_id = await submit(served, rows(200))
        job = held(served, job_id)
        path = folder(served) / f"{job_id}.jsonl"
        await served.until(served.predictor.entered.is_set)
        whole = path.read_bytes()
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(whole[:-100] if how == "shorter" else whole[:2000] + b"?" * (len(whole) - 2000))
        served.predictor.released.set()
        failed = await ended(served, job_id)
        assert (failed["status"], failed["error"]["code"]) == ("failed", "upload_changed")
        if how != "gone":
            assert failed["error"]["field"] == f"lines.{job.rows_done + 1}"
        assert (await served.predict("row 7")).status_code == 200
        # What was answered before stays, in so far as its rows do.
        if how == "other bytes":
            got = (await served.client.get(f"/evaluate/jobs/{job_id}/results")).text.splitlines()
            assert len(got) == job.rows_done > 0
        assert served.state.jobs.quota.held_bytes == 0
