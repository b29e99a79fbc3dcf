"""How many bytes uploads may have together: checked before they come, held as they come, free at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from job_calls import callers, ended, held, lines, post, refused, rows, stopped_job, submit, uploads
from serving import FakePredictor, Served, serve, settings

from service.errors import BodyTooLargeError, TooManyJobsError
from service.jobs.quota import Quota

pytestmark = pytest.mark.anyio


def upload(size: int) -> bytes:
    """Return an upload of one line and this many bytes."""
    line = b'{"text": "row 5", "label": "positive"}'
    return line + b" " * (size - len(line) - 1) + b"\n"


def test_bytes_are_counted_for_everybody_and_for_each_caller() -> None:
    quota = Quota(settings(max_jobs_bytes=10_000, client_share=0.4, max_job_bytes=5000))
    quota.check_size(4000)
    with pytest.raises(BodyTooLargeError, match=r"share of max_jobs_bytes is 4000") as too_large:
        quota.check_size(4001)
    assert (too_large.value.limit, too_large.value.got) == (4000, 4001)
    ann = quota.hold("ann", 3000)
    quota.check_room("ann", 1000)
    with pytest.raises(TooManyJobsError, match="one caller may hold 4000") as own:
        quota.check_room("ann", 1001)
    assert (own.value.limit, own.value.got) == (4000, 4001)
    quota.hold("bob", 4000)
    quota.check_room("cid", 3000)
    with pytest.raises(TooManyJobsError, match="max_jobs_bytes is 10000") as all_of_it:
        quota.check_room("cid", 3001)
    assert (all_of_it.value.limit, all_of_it.value.got) == (10_000, 10_001)
    # What grows without having been announced is counted as it comes.
    quota.grow(ann, 3500)
    quota.grow(ann, 100)
    assert quota.held_bytes == 7500
    with pytest.raises(BodyTooLargeError):
        quota.grow(ann, 4001)
    for _ in range(2):
        quota.release(ann)
    quota.release(None)
    assert quota.held_bytes == 4000


def test_unless_set_the_limit_is_four_of_the_largest_uploads_for_each_callers_share() -> None:
    quota = Quota(settings(max_job_bytes=1_000_000, client_share=0.25, max_inputs=64))
    quota.check_size(1_000_000)
    for _ in range(4):
        quota.check_room("ann", 1_000_000)
        quota.hold("ann", 1_000_000)
    with pytest.raises(TooManyJobsError):
        quota.check_room("ann", 1)


async def test_an_upload_that_does_not_fit_is_refused_before_it_comes() -> None:
    predictor = FakePredictor()
    async with serve(predictor, max_jobs_bytes=8000, max_job_bytes=6000) as served, callers(served) as who:
        predictor.hold()
        error = refused(await post(served, upload(4001)), 413, "body_too_large")
        assert (error["limit"], error["got"]) == (4000, 4001)
        first = (await post(served, upload(3000))).json()
        response = await post(served, upload(1500))
        error = refused(response, 429, "too_many_jobs")
        assert (error["limit"], error["got"]) == (4000, 4500)
        assert "max_jobs_bytes" in error["message"]
        assert int(response.headers["retry-after"]) > 0
        # Another caller has its own share; with 3,000 and 3,900 of 8,000 held a third one meets everybody's limit.
        other = await who.json("ann", "POST", content=upload(3900))
        error = refused(await who.call("bob", "POST", content=upload(2000)), 429, "too_many_jobs")
        assert (error["limit"], error["got"]) == (8000, 8900)
        assert len(uploads(served)) == 2
        predictor.released.set()
        for job in (first, other):
            await ended(served, job["id"])
        assert served.state.jobs.quota.held_bytes == 0
        assert (await post(served, upload(4000))).status_code == 202


async def test_without_a_content_length_bytes_are_counted_as_they_come() -> None:
    predictor = FakePredictor()
    async with serve(predictor, max_jobs_bytes=8000, max_job_bytes=6000) as served:
        predictor.hold()
        assert (await post(served, upload(3000))).status_code == 202

        async def in_parts(count: int) -> AsyncIterator[bytes]:
            for _ in range(count):
                yield upload(500)

        error = refused(await post(served, in_parts(20)), 429, "too_many_jobs")
        assert error["limit"] == 4000
        assert 4000 < error["got"] <= 4500
        assert served.state.jobs.quota.held_bytes == 3000
        assert len(uploads(served)) == 1
        assert (await post(served, in_parts(2))).json()["rows"] == 2
        assert served.state.jobs.quota.held_bytes == 4000
        predictor.released.set()


async def test_an_upload_holds_what_has_come_of_it_whatever_it_announces() -> None:
    going_on = asyncio.Event()

    async def held_up() -> AsyncIterator[bytes]:
        yield upload(100)
        await going_on.wait()
        yield b"not a line\n"

    async with serve(max_jobs_bytes=8000, max_job_bytes=6000) as served:
        headers = {"content-length": "4000"}
        first = asyncio.ensure_future(post(served, held_up(), **headers))
        await served.until(lambda: served.state.jobs.quota.held_bytes == 100)
        assert (await post(served, upload(1000))).status_code == 202
        going_on.set()
        refused(await first, 422, "invalid_json")
        await served.until(lambda: served.state.jobs.quota.held_bytes == 0)
        # The same where the client goes away.
        gone = asyncio.ensure_future(post(served, endless(), **headers))
        await served.until(lambda: served.state.jobs.quota.held_bytes == 100)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await served.until(lambda: served.state.jobs.quota.held_bytes == 0)
        assert uploads(served) == []


async def test_announcing_alone_takes_no_callers_room() -> None:
    async def silent() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async with serve(max_jobs_bytes=8000, max_job_bytes=6000) as served, callers(served) as who:
        announced = {"content-length": "2000"}
        silent_ones = [
            asyncio.ensure_future(who.call(caller, "POST", content=silent(), headers=announced))
            for caller in ("ann", "ann", "bob", "bob")
        ]
        quota = served.state.jobs.quota
        await served.until(lambda: len(quota._holds) == 4)
        assert quota.held_bytes == 0
        assert (await who.call("cid", "POST", content=upload(2000))).status_code == 202
        for one in silent_ones:
            one.cancel()
        await asyncio.gather(*silent_ones, return_exceptions=True)
        await served.until(lambda: not any(hold.owner in ("ann", "bob") for hold in quota._holds))


@pytest.mark.parametrize("announced", [{}, {"content-length": "3500"}])
async def test_an_upload_that_brings_nothing_ends_and_gives_its_place_back(announced: dict[str, str]) -> None:
    async with serve(job_upload_idle_s=0.2) as served:
        error = refused(await post(served, endless(), **announced), 504, "deadline_exceeded")
        assert "job_upload_idle_s" in error["message"]
        assert (served.state.jobs.quota.held_bytes, uploads(served)) == (0, [])
        assert (await post(served, upload(200))).status_code == 202


async def endless() -> AsyncIterator[bytes]:
    yield upload(100)
    await asyncio.Event().wait()


@pytest.mark.parametrize("how", ["cancelled", "failed", "done", "removed"])
async def test_every_end_gives_the_bytes_back(how: str, served: Served) -> None:
    predictor = served.predictor
    predictor.hold()
    predictor.nan = how == "failed"
    job_id = await submit(served, rows(5))
    assert served.state.jobs.quota.held_bytes == len(lines(rows(5)))
    if how == "cancelled":
        await served.client.post(f"/evaluate/jobs/{job_id}/cancel")
    predictor.released.set()
    assert (await ended(served, job_id))["status"] == (how if how != "removed" else "done")
    if how == "removed":
        await served.client.delete(f"/evaluate/jobs/{job_id}")
    assert served.state.jobs.quota.held_bytes == 0


async def test_a_restart_counts_the_unfinished_jobs_again() -> None:
    job_id, path = await stopped_job(FakePredictor())
    slow = FakePredictor()
    slow.hold()
    async with serve(slow, wait=False, jobs_dir=path) as served:
        assert served.state.jobs.quota.held_bytes == len(lines(rows(5)))
        assert held(served, job_id).hold is not None
        slow.released.set()
        await ended(served, job_id)
        assert served.state.jobs.quota.held_bytes == 0
