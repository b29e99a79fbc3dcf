"""Uploads of every layout, and every kind of bad one: refused by its lines, nothing kept, the server unmoved."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_calls import ended, folder, held, jobs, lines, methods, post, refused, rows, submit, uploads
from serving import Served, serve

from service.errors import InvalidJsonError
from service.jobs import splitting
from service.jobs.splitting import Array

JSON = {"content-type": "application/json"}
OCTETS = {"content-type": "application/octet-stream"}


async def unmoved(served: Served) -> None:
    """Check that nothing of an upload was kept and that the server answers."""
    assert (jobs(served), uploads(served), list(folder(served).glob("*.parquet"))) == ([], [], [])
    assert served.state.jobs.quota.held_bytes == 0
    assert (await served.predict("row 7")).status_code == 200


# Layouts


@pytest.mark.anyio
@pytest.mark.parametrize("headers", [JSON, OCTETS])
@pytest.mark.parametrize("indent", [None, 2])
async def test_an_array_of_rows_is_an_upload(headers: dict[str, str], indent: int | None, served: Served) -> None:
    items = [{**row, "note": 'a [ { , ] } " \\ "'} for row in rows(40)]
    body = json.dumps(items, indent=indent).encode()

    async def in_parts() -> AsyncIterator[bytes]:
        for i in range(0, len(body), 7):
            yield body[i : i + 7]

    response = await post(served, in_parts(), **headers)
    assert response.status_code == 202, response.text
    done = await ended(served, response.json()["id"])
    assert (done["rows"], done["columns"]) == (40, ["text", "label", "note"])
    assert done["result"]["methods"] == await methods(served, rows(40))


@given(
    st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text()) | st.none())), st.integers(1, 9)
)
def test_the_members_of_an_array_are_found_however_the_bytes_come(value: list[Any], size: int) -> None:
    body = json.dumps(value, ensure_ascii=False, indent=size % 3 or None).encode()
    array, found = Array(), []
    for i in range(0, len(body), size):
        found += array.feed(body[i : i + size])
    found += array.finish()
    assert [json.loads(member) for member in found] == value


def test_each_byte_of_an_array_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0

    class Counting:
        def __init__(self, pattern: Any, method: str) -> None:
            self._find = getattr(pattern, method)

        def search(self, text: bytes, position: int) -> Any:
            nonlocal looked
            looked += len(text) - position
            return self._find(text, position)

        match = search

    for name, method in (("_MARKS", "search"), ("_IN_STRING", "match")):
        monkeypatch.setattr(splitting, name, Counting(getattr(splitting, name), method))
    array = Array()
    array.feed(b'[{"text":"')
    for _ in range(5000):
        array.feed(b'a\\"')
    assert looked < 20_000
    (member,) = array.feed(b'"}]')
    assert json.loads(member) == {"text": 'a"' * 5000}


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_string_is_one_wherever_its_escapes_are_cut(cut: int) -> None:
    value = [{"a": '\\"', "b": "\\\\", "c": '[{,"'}, {"d": '"\\'}]
    body, array, found = json.dumps(value).encode(), Array(), []
    for i in range(0, len(body), cut):
        found += array.feed(body[i : i + cut])
    assert [json.loads(member) for member in [*found, *array.finish()]] == value


@pytest.mark.anyio
async def test_line_breaks_are_between_parts_of_a_row_and_in_no_string(served: Served) -> None:
    good = b'[{"text":\r\n"row 5",\r"label":"positive"}\r,\r\n{"text": "row 6", "label": "negative"}]'
    response = await post(served, good, **JSON)
    assert response.status_code == 202, response.text
    job_id = response.json()["id"]
    await ended(served, job_id)
    got = await served.client.get(f"/evaluate/jobs/{job_id}/results")
    assert (b"\r" in got.content, got.content.count(b"\n")) == (False, 2)
    bad = good.replace(b"row 6", b"row\n6")
    error = refused(await post(served, bad, **JSON), 422, "invalid_json")
    assert [one["line"] for one in error["lines"]] == [2]
    line = b'{"text": "row 5",\r"label": "positive"}\r\n'
    job_id = (await post(served, line)).json()["id"]
    await ended(served, job_id)
    assert b"\r" not in (await served.client.get(f"/evaluate/jobs/{job_id}/results")).content


@pytest.mark.anyio
async def test_white_space_without_end_is_refused(served: Served) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 2**24:
            sent += 16
            yield b" " * 16

    refused(await post(served, endless(), **JSON), 422, "invalid_json")
    await unmoved(served)
    assert (await post(served, b" \n" * 500 + lines(rows(1)))).status_code == 422  # lines without a row
    assert (await post(served, b" \n" * 500 + json.dumps(rows(1)).encode(), **JSON)).status_code == 202


@pytest.mark.parametrize("text", ["[1", "[1}", "[1] [2]", '["a', "[[1]"])
def test_what_is_no_whole_array_is_refused(text: str) -> None:
    array = Array()

    def read() -> None:
        array.feed(text.encode())
        array.finish()

    with pytest.raises(InvalidJsonError):
        read()


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
async def test_bad_members_of_an_array_have_numbers_too(served: Served) -> None:
    items = [*rows(3), {"text": None, "label": "positive"}, *rows(2), {"text": "a", "label": "good"}]
    error = refused(await post(served, json.dumps(items).encode(), **JSON), 422, "invalid_input")
    assert [(one["line"], one["code"]) for one in error["lines"]] == [(4, "invalid_input"), (7, "invalid_input")]
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
async def test_lists_and_events_are_without_the_names_of_columns(served: Served) -> None:
    response = await post(served, lines([{**row, "note": 1} for row in rows(5)]))
    job_id = response.json()["id"]
    assert response.json()["columns"] == (await ended(served, job_id))["columns"] == ["text", "label", "note"]
    (listed,) = (await served.client.get("/evaluate/jobs")).json()["jobs"]
    assert listed["columns"] is None
    events = (await served.client.get(f"/evaluate/jobs/{job_id}/events", params={"after": 0})).text
    assert "note" not in events
    assert '"columns":null' in events


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
@pytest.mark.parametrize(
    ("body", "headers", "field"),
    [
        (b"", JSON, "lines"),
        (b"[]", JSON, "lines"),
    ],
)
async def test_an_upload_without_a_row_is_refused(
    body: bytes, headers: dict[str, str], field: str, served: Served
) -> None:
    assert refused(await post(served, body, **headers), 422, "invalid_request")["field"] == field
    await unmoved(served)


@pytest.mark.anyio
@pytest.mark.parametrize("headers", [{}, JSON])
async def test_a_line_of_a_gigabyte_is_refused_once_it_is_too_long(headers: dict[str, str]) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'[{"text": "' if headers else b'{"text": "'
        while sent < 2**30:
            sent += 2**16
            yield b"a" * 2**16

    async with serve(max_job_bytes=2**31, max_body_bytes=2**20) as served:
        error = refused(await post(served, endless(), **headers), 413, "body_too_large")
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
async def test_what_is_compressed_is_refused_before_it_is_unpacked(served: Served) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", b"\n" * 2**26)
    for name, body in (("gzip", gzip.compress(b"\n" * 2**26)), ("zip", buffer.getvalue())):
        for headers in ({}, OCTETS):
            error = refused(await post(served, body, **headers), 415, "unsupported_media_type")
            assert f"{name} file" in error["message"]
    refused(await post(served, gzip.compress(b"{}"), **{"content-encoding": "gzip"}), 415, "unsupported_media_type")
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
