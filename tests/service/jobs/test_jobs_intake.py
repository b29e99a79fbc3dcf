"""Uploads: how lines may come, every kind of bad one, how many bytes there may be; what is refused leaves nothing."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import pytest
from job_calls import ServedJobs, callers, lines, refused, rows, serve
from serving import FakePredictor, settings

from service.errors import TooManyJobsError
from service.jobs.store.memory import Quota

pytestmark = pytest.mark.anyio

OCTETS = {"content-type": "application/octet-stream"}


async def repeated(part: bytes, most: int = 2**40) -> AsyncIterator[bytes]:
    sent = 0
    while sent < most:
        sent += len(part)
        yield part


async def unmoved(served: ServedJobs) -> None:
    """Check that nothing of an upload was kept and that the server answers."""
    assert (served.jobs(), served.uploads()) == ([], [])
    assert served.state.jobs.quota.held_bytes == 0
    assert (await served.predict("row 7")).status_code == 200


async def test_lines_are_found_however_they_end_and_however_the_bytes_come(served: ServedJobs) -> None:
    item = b'{"text": "row 5",\r"label": "positive"}'
    for ends in (item, item + b"\n", item + b"\r\n", item + b"\n" + item, b" " + item + b"\r\n" + item + b"\r\n"):
        response = await served.post(ends, **OCTETS)
        assert (response.status_code, response.json()["rows"]) == (202, ends.count(b"}"))
    await served.ended(response.json()["id"])
    got = (await served.client.get(f"{response.headers['location']}/results")).content
    assert (b"\r" in got, got.count(b"\n")) == (False, 2), "one line each in the file that is kept"

    # A rendered prompt may stand in place of the fields, beside columns that the template does not know.
    rendered = {"prompt": "row 9", "label": "positive", "question": "why?"}
    body = b"\n" + lines([*({**row, "note": 1} for row in rows(4)), rendered]) + b" \t\r\n\n"
    body += '{"text": "ça 🎬", "label": "positive"}'.encode()

    async def in_parts(size: int) -> AsyncIterator[bytes]:
        # Programs that write UTF-8 with a mark put it before the first line.
        marked = b"\xef\xbb\xbf" + body if size < 1000 else body
        for i in range(0, len(marked), size):
            yield marked[i : i + size]

    sent = [(await served.post(in_parts(size))).json() for size in (1, 7, 1000)]
    done = [await served.ended(job["id"]) for job in sent]
    assert [job["rows"] for job in sent] == [6, 6, 6]
    assert done[0]["result"] == done[1]["result"] == done[2]["result"]
    # Names of columns can be long: lists are without them.
    assert all(set(job["columns"]) == {"text", "label", "note", "prompt", "question"} for job in (*sent, *done))
    assert {job["columns"] for job in (await served.client.get("/evaluate/jobs")).json()["jobs"]} == {None}


async def test_what_is_no_json_lines_is_refused_by_name(served: ServedJobs) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        for byte in b"\xef\xbb\xbf      [":
            yield bytes([byte])

    buffer, body = io.BytesIO(), lines(rows(1))
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", b"\n" * 2**26)
    for name, content in (
        ("gzip file", gzip.compress(b"\n" * 2**26)),
        ("zip file", buffer.getvalue()),
        ("Parquet file: write its rows as JSON Lines", b"PAR1" + b"\0" * 100),
        ("JSON array: send one object a line", json.dumps(rows(3)).encode()),
        ("JSON array", b"\xef\xbb\xbf \r\n\t\n  [\n"),
        ("JSON array", slowly()),
        ("UTF-16 text", body.decode().encode("utf-16")),
    ):
        error = refused(await served.post(content, **OCTETS), 415, "unsupported_media_type")
        assert name in error["message"]
    await unmoved(served)
    for headers in (
        {"content-encoding": "br"},
        {"content-type": "text/plain"},
        {"content-type": "application/jsonl; charset=latin-1"},
    ):
        refused(await served.post(body, **headers), 415, "unsupported_media_type")
    for kind in ("application/x-ndjson", "application/jsonl; charset=utf-8"):
        assert (await served.post(body, **{"content-type": kind})).status_code == 202


@pytest.mark.parametrize(
    ("line", "code", "field"),
    [
        ('{"text": 1, "label": "positive"}', "invalid_input", "lines.4.text"),
        ('{"text": "a", "label": "good"}', "invalid_input", "lines.4.label"),
        ('{"text": "a", "label": 1}', "invalid_request", "lines.4.label"),
        ('{"text": "a", "label": "positive", "id": "x"}', "invalid_request", "lines.4.id"),
        ('{"text": "' + "a " * 65 + '", "label": "positive"}', "too_many_tokens", "lines.4"),
        ('{"text": NaN, "label": "positive"}', "invalid_json", "lines.4"),
        ('{"text": "\\ud800", "label": "positive"}', "invalid_json", "lines.4"),
        ("[" * 5000, "invalid_json", "lines.4"),
        ("3", "invalid_request", "lines.4"),
        ('{"a": 1, "a": 2}', "invalid_json", "lines.4"),
        ("\udcff", "invalid_json", "lines.4"),
        ('{"question": "why?", "choices": ["a", "b"], "label": "positive"}', "invalid_input", "lines.4"),
        ('{"text": "a", "prompt": "b", "label": "positive"}', "invalid_input", "lines.4"),
    ],
)
async def test_a_bad_line_is_named_and_nothing_is_kept(line: str, code: str, field: str, served: ServedJobs) -> None:
    first, second = {"text": "private words", "label": "positive", "id": "x"}, {"text": "b", "label": "negative"}
    good = lines([first]) + b"\n" + lines([second])  # of three lines the blank one is passed over
    body = good + line.encode("utf-8", "surrogateescape") + b"\n" + good
    response = await served.post(body)
    error = refused(response, 422, code)
    assert error["field"].startswith(field)
    assert "line 4" in error["message"]
    assert "private" not in response.text
    await unmoved(served)


async def test_all_bad_lines_are_told_of_by_their_numbers(served: ServedJobs) -> None:
    items = rows(1000)
    bad = dict.fromkeys(range(5, 1001, 5), "invalid_request")
    for number in bad:
        items[number - 1]["label"] = 1
    items[8], bad[9] = {"text": "private words", "label": "good"}, "invalid_input"
    response = await served.post(lines(items))
    error = refused(response, 422, "invalid_request")
    assert (error["field"], error["lines_bad"]) == ("lines.5.label", len(bad))
    assert [(one["line"], one["code"]) for one in error["lines"]] == sorted(bad.items())[:100]
    assert all(one["message"].startswith(f"line {one['line']}: ") for one in error["lines"])
    assert "private" not in response.text
    # One of bad lines alone is looked at no further than the thousandth.
    error = refused(await served.post(repeated(b'{"text": "row 5", "label": 1}\n' * 100)), 422, "invalid_request")
    assert (error["lines_bad"], len(error["lines"])) == (1000, 100)
    await unmoved(served)


async def test_an_upload_without_a_row_with_too_many_columns_or_bad_options_is_refused(served: ServedJobs) -> None:
    for body in (b"", b"  ", b"\xef\xbb\xbf"):
        assert refused(await served.post(body), 422, "invalid_request")["field"] == "lines"
    for names, field, limit, got in (
        ([f"c{{}}_{j}" for j in range(40)], "lines.4", 128, 129),
        (["k" * 257], "lines.1", 256, 257),
        ([f"{{}}_{j:0200}" for j in range(15)], "lines.3", 8192, 8291),
    ):
        items = [{**row, **{name.format(i): 1 for name in names}} for i, row in enumerate(rows(5))]
        error = refused(await served.post(lines(items)), 422, "invalid_request")
        assert (error["field"], error["limit"], error["got"]) == (field, limit, got)
        assert "kkk" not in error["message"]
    for name, value in (("bins", 0), ("bins", "x"), ("resamples", 5), ("a", "b")):
        error = refused(await served.post(lines(rows(1)), {name: value}), 422, "invalid_request")
        assert error["field"] == f"query.{name}"
    refused(await served.post(lines(rows(1)), {"artifact": "b"}), 404, "artifact_not_found")
    await unmoved(served)


# Limits


async def test_limits_hold_without_a_content_length() -> None:
    (item,) = rows(1)
    async with serve(max_job_bytes=2048, max_job_rows=30, max_body_bytes=1024, max_jobs_bytes=10**6) as served:
        too_many = refused(await served.post(repeated(lines([item]))), 413, "batch_too_large")
        assert (too_many["limit"], too_many["got"], too_many["field"]) == (30, 31, "lines")
        blank = refused(await served.post(b"\n" * 30 + lines([item]) + b" \r\n"), 413, "batch_too_large")
        assert "more than 30 blank lines" in blank["message"]
        wide = lines([{**item, "text": "1 " * 30}])
        too_large = refused(await served.post(repeated(wide)), 413, "body_too_large")
        assert too_large["limit"] == 2048 < too_large["got"]
        announced = refused(await served.post(b" " * 4096), 413, "body_too_large")
        assert (announced["limit"], announced["got"]) == (2048, 4096)
        await unmoved(served)
    async with serve(max_job_bytes=2**31, max_body_bytes=2**20) as served:
        long_line = refused(await served.post(repeated(b"a" * 2**16, 2**30)), 413, "body_too_large")
        assert (long_line["field"], long_line["limit"]) == ("lines.1", 2**20)
        assert long_line["got"] < 2**20 + 2**17
        await unmoved(served)


@pytest.mark.parametrize("limits", [{"max_job_rows": 10}, {"max_job_bytes": 1039, "max_body_bytes": 1024}])
async def test_refused_rows_count_as_others_do(limits: dict[str, Any]) -> None:
    bad = lines([{"text": "a" * 70, "label": "good"}])
    assert len(bad) == 100
    async with serve(**limits) as served:
        # What is wrong with those within the limit is told of; nothing behind it is looked at.
        assert refused(await served.post(repeated(bad)), 422, "invalid_input")["lines_bad"] == 10
        await unmoved(served)


@pytest.mark.parametrize("limit", ["job_upload_timeout_s", "job_upload_idle_s"])
async def test_an_upload_that_takes_too_long_is_given_up(limit: str) -> None:
    """Whatever it announces: nothing more comes of it."""

    async def slow() -> AsyncIterator[bytes]:
        yield lines(rows(1))
        await asyncio.Event().wait()

    async with serve(**{limit: 0.2}) as served:
        for announced in ({}, {"content-length": "3500"}):
            error = refused(await served.post(slow(), **announced), 504, "deadline_exceeded")
            assert limit in error["message"]
            await unmoved(served)


@pytest.mark.parametrize("how", ["shorter", "other bytes", "gone"])
async def test_an_upload_that_changes_while_it_is_read_fails_the_job_by_its_line(how: str) -> None:
    async with serve(batch_tokens=16) as served:
        served.predictor.hold()
        job_id = await served.submit(rows(200))
        job, path = served.held(job_id), served.folder() / f"{job_id}.jsonl"
        await served.until(served.predictor.entered.is_set)
        whole = path.read_bytes()
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(whole[:-100] if how == "shorter" else whole[:2000] + b"?" * (len(whole) - 2000))
        served.predictor.released.set()
        failed = await served.ended(job_id)
        assert (failed["status"], failed["error"]["code"]) == ("failed", "upload_changed")
        if how != "gone":
            assert failed["error"]["field"] == f"lines.{job.rows_done + 1}"
        # What was answered before stays, in so far as its rows do.
        if how == "other bytes":
            assert len(await served.answers(job_id)) == job.rows_done > 0
        assert served.state.jobs.quota.held_bytes == 0
        assert (await served.predict("row 7")).status_code == 200


def upload(size: int) -> bytes:
    line = b'{"text": "row 5", "label": "positive"}'
    return line + b" " * (size - len(line) - 1) + b"\n"


def test_unless_set_the_limit_is_four_of_the_largest_uploads_for_each_callers_share() -> None:
    quota = Quota(settings(max_job_bytes=1_000_000, client_share=0.25, max_inputs=64))
    quota.check_size(1_000_000)
    for job in range(4):
        quota.check_room("ann", 1_000_000)
        quota.hold(str(job), "ann", 1_000_000)
    with pytest.raises(TooManyJobsError):
        quota.check_room("ann", 1)


async def test_an_upload_that_does_not_fit_is_refused_before_it_comes_or_as_it_comes() -> None:
    async def in_parts(count: int) -> AsyncIterator[bytes]:
        """Without a Content-Length."""
        for _ in range(count):
            yield upload(5000)

    async with serve(max_jobs_bytes=80_000, max_job_bytes=60_000) as served, callers(served) as who:
        served.predictor.hold()
        error = refused(await served.post(upload(40_001)), 413, "body_too_large")
        assert (error["limit"], error["got"]) == (40_000, 40_001)
        first = (await served.post(upload(30_000))).json()
        answer = served.held(first["id"]).about.answer_bytes
        assert 500 < answer < 1500
        response = await served.post(upload(15_000))
        error = refused(response, 429, "too_many_jobs")
        assert (error["limit"], error["got"]) == (40_000, 45_000 + answer)
        assert "max_jobs_bytes" in error["message"]
        assert int(response.headers["retry-after"]) > 0
        error = refused(await served.post(in_parts(20)), 429, "too_many_jobs")
        assert error["limit"] == 40_000 < error["got"] <= 45_000
        assert (served.state.jobs.quota.held_bytes, len(served.uploads())) == (30_000 + answer, 1)
        # Another caller has its own share; with 30,000 and 37,000 of 80,000 held a third one meets everybody's limit.
        other = await who.json("ann", "POST", content=upload(37_000))
        error = refused(await who.call("bob", "POST", content=upload(20_000)), 429, "too_many_jobs")
        assert (error["limit"], error["got"]) == (80_000, 87_000 + 2 * answer)
        assert len(served.uploads()) == 2
        served.predictor.released.set()
        for job in (first, other):
            await served.ended(job["id"])
        assert served.state.jobs.quota.held_bytes == 0
        assert (await served.post(in_parts(6))).status_code == 202


async def test_an_upload_is_refused_by_what_its_answers_would_take() -> None:
    """Of many labels that is a hundred times the upload."""
    predictor = FakePredictor(labels=[f"label {i:03}" for i in range(150)])
    items = [{**row, "label": "label 007"} for row in rows(40)]
    async with serve(predictor, max_jobs_bytes=600_000) as served:
        error = refused(await served.post(lines(items)), 413, "body_too_large")
        assert error["limit"] == 300_000 < error["got"]
        assert "its answers would take" in error["message"]
        await unmoved(served)
        served.predictor.hold()
        some = served.held(await served.submit(items[:20]))
        assert served.state.jobs.quota.held_bytes == len(lines(items[:20])) + some.about.answer_bytes
        refused(await served.post(lines(items[:20])), 429, "too_many_jobs")
        served.predictor.released.set()
        await served.ended(some.id)
        assert some.about.answer_bytes / 2 < some.answer_bytes <= some.about.answer_bytes
        # What is not kept, or not measured, takes no room.
        bare = [{"text": item["text"]} for item in items[:30]]
        assert served.held(await served.done(bare)).about.answer_bytes < 300_000
        assert served.held(await served.done(items, keep_rows="false")).about.answer_bytes < 30_000


async def test_an_upload_holds_what_has_come_of_it_whatever_it_announces() -> None:
    going_on = asyncio.Event()

    async def held_up(first: bytes) -> AsyncIterator[bytes]:
        yield first
        await going_on.wait()
        yield b"not a line\n"

    async with serve(max_jobs_bytes=80_000, max_job_bytes=60_000) as served, callers(served) as who:
        quota, announced = served.state.jobs.quota, {"content-length": "3000"}
        sent = [
            asyncio.ensure_future(who.call(caller, "POST", content=held_up(first), headers=announced))
            for caller, first in (("ann", upload(100)), ("ann", b""), ("bob", b""), ("bob", b""))
        ]
        await served.until(lambda: len(quota._held) == 4 and quota.held_bytes == 100)
        third = await who.json("cid", "POST", content=upload(2000))
        # One client goes away, the others are refused.
        sent.pop().cancel()
        going_on.set()
        for response in await asyncio.gather(*sent):
            refused(response, 422, "invalid_json")
        await served.until(lambda: not quota._held and served.uploads() == [f"{third['id']}.jsonl"])
