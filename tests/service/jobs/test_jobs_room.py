"""How many bytes uploads may have together: checked before they come, held as they come, free at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from job_calls import callers, refused, serve
from serving import settings

from service.errors import TooManyJobsError
from service.jobs.store.quota import Quota

pytestmark = pytest.mark.anyio


def upload(size: int) -> bytes:
    """Return an upload of one line and this many bytes."""
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
            yield upload(500)

    async with serve(max_jobs_bytes=8000, max_job_bytes=6000) as served, callers(served) as who:
        served.predictor.hold()
        error = refused(await served.post(upload(4001)), 413, "body_too_large")
        assert (error["limit"], error["got"]) == (4000, 4001)
        first = (await served.post(upload(3000))).json()
        response = await served.post(upload(1500))
        error = refused(response, 429, "too_many_jobs")
        assert (error["limit"], error["got"]) == (4000, 4500)
        assert "max_jobs_bytes" in error["message"]
        assert int(response.headers["retry-after"]) > 0
        error = refused(await served.post(in_parts(20)), 429, "too_many_jobs")
        assert error["limit"] == 4000 < error["got"] <= 4500
        assert (served.state.jobs.quota.held_bytes, len(served.uploads())) == (3000, 1)
        # Another caller has its own share; with 3,000 and 3,900 of 8,000 held a third one meets everybody's limit.
        other = await who.json("ann", "POST", content=upload(3900))
        error = refused(await who.call("bob", "POST", content=upload(2000)), 429, "too_many_jobs")
        assert (error["limit"], error["got"]) == (8000, 8900)
        assert len(served.uploads()) == 2
        served.predictor.released.set()
        for job in (first, other):
            await served.ended(job["id"])
        assert served.state.jobs.quota.held_bytes == 0
        assert (await served.post(in_parts(8))).status_code == 202


async def test_an_upload_holds_what_has_come_of_it_whatever_it_announces() -> None:
    going_on = asyncio.Event()

    async def held_up(first: bytes) -> AsyncIterator[bytes]:
        yield first
        await going_on.wait()
        yield b"not a line\n"

    async with serve(max_jobs_bytes=8000, max_job_bytes=6000) as served, callers(served) as who:
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
