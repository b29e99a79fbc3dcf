"""Servers that share a queue and cannot run all of it: a job is left to whoever can, and says what it waits for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from job_calls import ended, get, held, paused, rows, stopped_job, submit
from serving import FakePredictor, Served, artifacts_in, serve
from sqlalchemy import update
from stored_jobs import kept_rows

from service.jobs.store.job_tables import JobTables
from service.jobs.store.schema import JOBS
from service.jobs.store.sharing import BackOffs

pytestmark = pytest.mark.anyio
LOOK_S = 0.02

Stores = tuple[JobTables, JobTables]


@asynccontextmanager
async def two(url: str, a: dict[str, Any], b: dict[str, Any]) -> AsyncIterator[tuple[Served, Served]]:
    """Yield two servers with one database."""
    shared = {"jobs_url": url, "batch_tokens": 40, "job_look_s": LOOK_S}
    async with serve(**shared, **a) as first, serve(**shared, **b) as second:
        yield first, second


async def check_whole(store: JobTables, served: Served, job_id: str, count: int) -> None:
    """Check that every row was answered once."""
    done = await ended(served, job_id)
    assert (done["status"], done["rows_done"], done["result"]["rows"]) == ("done", count, count)
    number = held(served, job_id).number
    assert kept_rows(store, number) == list(range(count))


@pytest.mark.parametrize("lacks", ["the version", "the artifact", "the upload"])
async def test_a_job_runs_where_it_can_and_is_failed_nowhere(
    lacks: str, url: str, stores: Stores, tmp_path: Path
) -> None:
    able, other = FakePredictor(), FakePredictor()
    a: dict[str, Any] = {"predictor": able, "jobs_dir": tmp_path / "common"}
    b: dict[str, Any] = {"predictor": other, "jobs_dir": tmp_path / "common"}
    if lacks == "the version":
        other.artifact.digest = "sha256:another"
    elif lacks == "the artifact":
        b |= {"predictor": (other := FakePredictor("other")), "artifact": "other"}
    else:
        b["jobs_dir"] = tmp_path / "own"
    store, _ = stores
    async with two(url, a, b) as (first, second):
        able.hold()
        ids = [await submit(first, rows(40, first=40 * i)) for i in range(6)]
        # All of them come to the server that can, whatever its share is.
        await second.until(lambda: {job.server for job in store.reads.jobs()} == {first.state.jobs.ledger.disk.server})
        able.released.set()
        for job_id in ids:
            await check_whole(store, first, job_id, 40)
            shown = await get(second, job_id)
            assert (shown["status"], shown["error"]) == ("done", None)
        # What it ran at its start has no numbers in it, as rows have.
        assert {token for _, batch in other.batches for row in batch for token in row.token_ids} <= {1}


async def test_a_job_that_no_server_can_run_says_why_and_goes_on_with_the_first_that_can(
    url: str, stores: Stores, tmp_path: Path
) -> None:
    job_id, path = await stopped_job(FakePredictor(), count=40, jobs_url=url, jobs_dir=tmp_path / "common")
    changed, lacking = FakePredictor(), FakePredictor("other")
    changed.artifact.digest = "sha256:another"
    a, b = {"predictor": changed, "jobs_dir": path}, {"predictor": lacking, "artifact": "other", "jobs_dir": path}
    store, _ = stores
    async with two(url, a, b) as servers:
        await servers[0].until(lambda: store.reads.jobs()[0].fence > 6)
        for served in servers:
            assert await paused(served, job_id) == "artifact_changed"
            message = (await get(served, job_id))["paused"]["message"]
            assert message == "waits for a server that has loaded artifact 'fake' of digest sha256:fake"
        assert store.reads.jobs()[0].left_at is not None
        async with serve(FakePredictor(), jobs_url=url, jobs_dir=path, job_look_s=LOOK_S) as third:
            assert (await ended(third, job_id))["result"]["rows"] == 40
        (job,) = store.reads.jobs()
        assert (job.status, job.left_at, job.paused) == ("done", None, None)


@pytest.mark.parametrize("lacks", ["artifact_changed", "upload_changed", "artifact_not_loaded"])
async def test_a_job_that_no_server_can_run_for_long_fails_by_the_reason(
    lacks: str, url: str, stores: Stores, tmp_path: Path
) -> None:
    more: dict[str, Any] = {}
    predictors = [FakePredictor()]
    if lacks == "artifact_not_loaded":
        predictors = artifacts_in(tmp_path, "fake", "other")
        more = {"artifacts_root": tmp_path}
    job_id, path = await stopped_job(*predictors, jobs_url=url, jobs_dir=tmp_path / "common", **more)
    values = {"jobs_url": url, "jobs_dir": path, "job_wait_s": 2000, "job_look_s": LOOK_S, **more}
    predictors[0].released.set()
    if lacks == "artifact_changed":
        predictors[0].artifact.digest = "sha256:another"
    elif lacks == "artifact_not_loaded":
        predictors.reverse()
        values["artifact"] = "other"
    else:
        values["jobs_dir"] = tmp_path / "own"
    store, _ = stores
    async with serve(*predictors, **values) as served:
        assert await paused(served, job_id) == lacks
        with store.database.transaction() as db:
            db.execute(update(JOBS).values(left_at=JOBS.c.left_at - 1000))
        await served.until(lambda: store.reads.jobs()[0].fence > 4)
        assert (await get(served, job_id))["status"] == "paused"
        with store.database.transaction() as db:
            db.execute(update(JOBS).values(left_at=JOBS.c.left_at - 1000))
        failed = await ended(served, job_id)
        assert (failed["status"], failed["error"]["code"]) == ("failed", lacks)
        assert failed["error"]["message"].startswith("for job_wait_s (2000 s) there was no server that has ")
        assert served.state.jobs.quota.held_bytes == 0


def test_a_server_tries_less_and_less_often_what_it_could_not_run() -> None:
    back_offs = BackOffs(5.0)
    assert [back_offs.put(1) for _ in range(8)] == [5, 10, 20, 40, 80, 160, 300, 300]
    assert back_offs.put(2) == 5
    assert back_offs.now([1, 2, 3]) == [1, 2]
    back_offs.forget(1)
    assert back_offs.now([1, 2, 3]) == [2]
    assert back_offs.put(1) == 5
    # Of one that has ended nothing is kept.
    assert back_offs.now([2]) == [2]
    assert back_offs.put(1) == 5
