"""What is read of jobs: every row with its answer as JSON Lines, lists, and the report of a page of rows."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from job_calls import ServedJobs, lines, refused, rows, serve
from limits import longer_and_longer
from serving import LeavingClient, code

from laplora.answers.reporting import MeasuredRows
from service.errors import ReportNotFoundError
from service.jobs.reading import report as job_reports
from service.jobs.reading.rows import json_lines

pytestmark = pytest.mark.anyio


async def test_every_row_comes_back_as_it_was_sent_with_the_answer_of_predict(served: ServedJobs) -> None:
    """With columns of its own, of one kind and of several; and the code of why where there is none."""
    bad = {number: {"text": f"row {90_500 + number}", "label": "positive"} for number in (3, 17)}
    items = [
        {**bad.get(i, row), "id": f"r{i}", "source": ("imdb", None)[i % 2], "line": {"page": i} if i % 7 else "theirs"}
        for i, row in enumerate(rows(700))
    ]
    served.predictor.poison.update({90_500 + number: RuntimeError("CUDA out of memory") for number in bad})
    served.predictor.unfamiliar = {int(items[5]["text"].split()[1])}
    job_id = await served.done(items)
    assert (await served.get(job_id))["columns"] == list(items[0])
    got = await served.answers(job_id)
    assert [one["line"] for one in got] == list(range(1, 701))
    assert [one["input"] for one in got] == items
    assert {one["line"]: one["error"] for one in got if one["answer"] is None} == {
        4: "device_memory",
        18: "device_memory",
    }
    for number in (0, 5, 699):
        left_out = ("calibrated_probs", "logit_mean", "logit_variance", "prediction_id")
        for detail, one in (("short", got[number]), ("full", (await served.answers(job_id, detail="full"))[number])):
            asked = await served.predict(items[number]["text"], options={"detail": detail})
            (direct,) = asked.json()["predictions"]
            assert one["answer"] == {k: v for k, v in direct.items() if k not in left_out}
    assert got[5]["answer"]["flags"] == ["unfamiliar"]


async def test_a_download_is_made_a_page_at_a_time_and_goes_on_behind_any_line(served: ServedJobs) -> None:
    job_id = await served.done(rows(700))
    response = await served.client.get(f"/evaluate/jobs/{job_id}/results")
    assert response.headers["content-disposition"] == f'attachment; filename="{job_id}.jsonl"'
    whole = await served.answers(job_id)
    for after in (0, 255, 256, 257, 699, 700, 10**6):
        assert await served.answers(job_id, after=after) == whole[after:]
    parts = [part async for part in json_lines(served.state.jobs.ledger.disk, served.held(job_id))]
    assert [part.count(b"\n") for part in parts] == [256, 256, 188]


async def test_one_caller_has_its_share_of_the_downloads_reports_among_them(served: ServedJobs) -> None:
    job_id = await served.done(rows(3))
    served.state.downloads.add("127.0.0.1", 4)
    for what in ("results", "report"):
        refused(await served.client.get(f"/evaluate/jobs/{job_id}/{what}"), 429, "client_too_many_requests")
    served.state.downloads.remove("127.0.0.1", 4)
    assert len(await served.answers(job_id)) == 3
    assert served.state.downloads.total == 0


@pytest.mark.parametrize("gone", [True, False])
async def test_a_report_ends_when_its_client_goes_away_or_the_time_is_over(gone: bool) -> None:
    async with serve(**({} if gone else {"request_timeout_s": 0.05})) as served:
        job_id = await served.done(rows(3))
        path = f"/evaluate/jobs/{job_id}/report"
        async with served.state.reports.turn("ann"):  # whose takes long
            if gone:
                leaving = LeavingClient("GET", path)
                call = asyncio.ensure_future(leaving.call(served.app))
                await served.until(lambda: served.state.downloads.total == 1)
                leaving.gone.set()
                await call
            else:
                refused(await served.client.get(path), 504, "deadline_exceeded")
            assert served.state.downloads.total == 0


async def test_a_download_that_is_not_read_is_cut_off() -> None:
    for limit_s in longer_and_longer():
        async with serve(job_download_timeout_s=limit_s) as served:
            job_id = await served.done(rows(3))
            leaving = LeavingClient("GET", f"/evaluate/jobs/{job_id}/results")
            await leaving.call(served.app)
            assert served.state.downloads.total == 0
        if any(message.get("body") for message in leaving.sent):
            return


async def test_the_uploads_that_are_kept_are_bounded_and_the_oldest_goes() -> None:
    """Their answers with them, which are larger than the rows: room for two."""
    async with serve() as served:
        job = served.held(await served.done(rows(50)))
        disk = served.state.jobs.ledger.disk
        (stored,) = await disk.in_database(disk.tables.reads.jobs)
        assert stored.answer_bytes == job.answer_bytes > 50 * 100
        assert job.about.upload_bytes == len(lines(rows(50)))
    async with serve(max_kept_job_bytes=2 * job.disk_bytes + 500, job_look_s=0.02) as served:
        ids = [await served.done(rows(50)) for _ in range(3)]
        await served.until(lambda: served.jobs() == ids[:0:-1])


async def test_jobs_are_listed_a_page_at_a_time(served: ServedJobs) -> None:
    ids = [await served.done(rows(1)) for _ in range(5)]

    async def page(**query: Any) -> tuple[list[str], str | None]:
        found = (await served.client.get("/evaluate/jobs", params={"limit": 2, **query})).json()
        return [job["id"] for job in found["jobs"]], found["next"]

    first, before = await page()
    # A job that goes or comes moves none of the others to another page.
    await served.delete(ids[-1])
    await served.submit(rows(1))
    second, after = await page(before=before)
    last, end = await page(before=after)
    assert ([*first, *second, *last], end) == (ids[::-1], None)
    for query in ({"limit": 0}, {"limit": 1001}, {"before": "x"}):
        refused(await served.client.get("/evaluate/jobs", params=query), 422, "invalid_request")


async def report(served: ServedJobs, job_id: str, **query: Any) -> str:
    answer = await served.client.get(f"/evaluate/jobs/{job_id}/report", params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "sandbox"} <= set(policy)
    return answer.text


async def test_a_report_has_the_figures_of_the_result_and_the_rows_by_their_lines(served: ServedJobs) -> None:
    """With markup in a row's text and in a column of two values."""
    items = [
        {**row, "text": f"<script>alert(1)</script> {row['text']}", "source": ("<b>mail</b>", "chat")[i % 2]}
        for i, row in enumerate(rows(120))
    ]
    job_id = await served.submit(items)
    result = (await served.ended(job_id))["result"]
    page = await report(served, job_id)
    assert "120 uploaded rows" in page
    for method in ("map", "laplace"):
        assert f"{result['methods'][method]['nll']:.3f}" in page
    assert job_id in page
    assert result["artifact"]["digest"] in page
    assert "length of the prompt" not in page  # all are as long
    # What rows have in a column is a text of theirs.
    with_texts = await report(served, job_id, texts=True)
    for said in ("field source", "&lt;b&gt;mail&lt;/b&gt;", "chat", "&lt;script&gt;alert(1)&lt;/script&gt; row"):
        assert said in with_texts
        assert said not in page
    assert "<script" not in page + with_texts
    # The surest mistakes, by the answers themselves: the fake's probability of "negative" is in the text.
    chosen = [float(item["text"].split()[2]) / 100_000 for item in items]
    wrong = [i for i, item in enumerate(items) if (chosen[i] <= 0.5) != (item["label"] == "positive")]
    surest = sorted(wrong, key=lambda i: -max(chosen[i], 1 - chosen[i]))[:12]
    listed = re.findall(r"<bdi>line (\d+)</bdi>", page.partition("The most uncertain rows")[0])
    assert [int(number) - 1 for number in listed] == surest


async def test_a_large_job_is_looked_at_in_evenly_spaced_rows(
    served: ServedJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_reports, "MOST_ROWS", 100)
    job_id = await served.done(rows(600))
    page = await report(served, job_id)
    assert "of 100 of the rows, evenly spaced" in page
    assert "600 uploaded rows" in page
    ledger, job = served.state.jobs.ledger, served.held(job_id)
    taken = await job_reports.take_rows(ledger.disk, job, asyncio.to_thread)
    assert taken.references == [f"line {number + 1}" for number in range(0, 600, 6)]
    # Unfamiliar rows are counted among these: of all rows the limit would be passed or missed by another noise.
    for answer in taken.answers[:25]:
        answer["unfamiliar"] = True
    result, artifact = await ledger.result(job), served.predictor.artifact
    for share, shown in ((0.01, 0.25), (None, None)):  # None: nothing flags them
        result.unfamiliar = share
        assert job_reports.job_report(job, result, taken, artifact, texts=False).unfamiliar == shown
    with pytest.raises(ReportNotFoundError, match="no row"):
        job_reports.job_report(job, result, MeasuredRows(), artifact, texts=False)
    monkeypatch.setattr(job_reports, "MOST_NUMBERS", 4 * 20)  # of two numbers by label, two labels each
    assert len((await job_reports.take_rows(ledger.disk, job, asyncio.to_thread)).references) == 20


async def test_what_has_no_report_is_named(served: ServedJobs) -> None:
    async def refused(job_id: str) -> tuple[int, str]:
        return code(await served.client.get(f"/evaluate/jobs/{job_id}/report"))

    assert await refused("0" * 32) == (404, "job_not_found")
    served.predictor.hold()
    job_id = await served.submit(rows(40))
    assert await refused(job_id) == (404, "report_not_found")
    served.predictor.released.set()
    await served.ended(job_id)
    unkept = await served.done(rows(40), keep_rows=False)
    assert (await refused(unkept))[1] == "rows_not_kept"
    served.predictor.artifact.digest = "sha256:another"  # a new version took its place
    assert await refused(job_id) == (404, "report_not_found")
