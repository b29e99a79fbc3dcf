"""How jobs end: cancelled, removed, with rows that have no answer, or because their artifact never came."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from job_calls import ServedJobs, lines, poisoned, refused, rows, serve, stopped_job
from serving import artifacts_in, changed

pytestmark = pytest.mark.anyio

# Cancelling and removing


@pytest.mark.parametrize("how", ["cancel", "delete"])
async def test_cancel_frees_the_queue_at_once_and_keeps_the_job_listed_and_delete_deletes_it(how: str) -> None:
    async with serve(batch_tokens=40) as served:
        served.predictor.hold()
        job_id = await served.submit(rows(200))
        await served.until(lambda: served.predictor.entered.is_set() and served.state.backend.queue.rows > 0)
        if how == "cancel":
            await served.cancel(job_id)
        else:
            assert await served.delete(job_id) == "removed"
        assert (served.state.backend.queue.rows, served.uploads(), served.state.jobs.quota.held_bytes) == (0, [], 0)
        if how == "delete":
            refused(await served.client.get(f"/evaluate/jobs/{job_id}"), 404, "job_not_found")
            assert (
                await served.state.jobs.ledger.disk.in_database(served.state.jobs.ledger.disk.tables.reads.jobs) == []
            )
            return
        found = await served.get(job_id)
        assert (found["status"], found["rows_done"], found["result"]) == ("cancelled", 0, None)
        assert found["finished_at"]
        refused(await served.client.get(f"/evaluate/jobs/{job_id}/results"), 404, "rows_not_kept")
        # Again: nothing happens. It is removed by DELETE alone.
        assert await served.cancel(job_id) == {**found, "bad_rows": None, "columns": None}
        served.predictor.released.set()
        assert (await served.predict("row 9")).status_code == 200
        assert sum(len(batch) for _, batch in served.predictor.batches) < 20
        assert await served.delete(job_id) == "removed"
        refused(await served.client.post(f"/evaluate/jobs/{job_id}/cancel"), 404, "job_not_found")
        refused(await served.client.delete(f"/evaluate/jobs/{job_id}"), 404, "job_not_found")


async def test_a_cancel_loses_no_result_while_the_end_is_written_or_later(
    monkeypatch: pytest.MonkeyPatch, served: ServedJobs
) -> None:
    store, begun = served.state.jobs.ledger.disk.tables, asyncio.Event()
    end, loop = store.end, asyncio.get_running_loop()

    def slow(*args: Any, **kw: Any) -> bool:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop).result()
        return bool(end(*args, **kw))

    monkeypatch.setattr(store, "end", slow)
    job_id = await served.submit(rows(5))
    await begun.wait()
    for _ in ("while it is written", "later"):
        assert (await served.cancel(job_id))["status"] == "done"
    assert (await served.get(job_id))["result"]["rows"] == 5


# Rows without an answer


@pytest.mark.parametrize(
    ("error", "code", "batch_tokens"),
    [(RuntimeError("CUDA out of memory"), "device_memory", 64), (ValueError("secret words"), "internal_error", 20)],
)
async def test_a_row_that_cannot_be_scored_is_left_out_and_named(
    error: Exception, code: str, batch_tokens: int
) -> None:
    """Where a chunk fails, the one read after it is undone too."""
    bad = (0, 17, 41)
    items = poisoned(60, *bad)
    async with serve(batch_tokens=batch_tokens) as served:
        served.predictor.poison.update({90_500 + number: error for number in bad})
        done = await served.ended(await served.submit(items))
        assert (done["status"], done["rows_done"], done["rows_bad"], done["error"]) == ("done", 60, 3, None)
        assert done["bad_rows"] == [{"line": number + 1, "code": code} for number in bad]
        assert done["result"]["rows"] == 57
        good = [item for i, item in enumerate(items) if i not in bad]
        assert done["result"]["methods"] == await served.methods(good)
        assert "secret" not in json.dumps(done)
        (listed,) = (await served.client.get("/evaluate/jobs")).json()["jobs"]
        assert (listed["rows_bad"], listed["bad_rows"]) == (3, None)
        metrics = (await served.client.get("/metrics")).text
        assert {"laplora_job_rows_total 57.0", "laplora_job_bad_rows_total 3.0"} <= set(metrics.splitlines())


@pytest.mark.parametrize(("limit", "bad"), [(2, (3, 20, 45)), (0, (7,))])
async def test_more_than_may_be_fail_the_job_with_the_counts(limit: int, bad: tuple[int, ...]) -> None:
    async with serve(batch_tokens=64, max_job_bad_rows=limit) as served:
        served.predictor.poison.update({90_500 + number: RuntimeError("CUDA out of memory") for number in bad})
        failed = await served.ended(await served.submit(poisoned(60, *bad)))
        assert (failed["status"], failed["rows_bad"], failed["result"]) == ("failed", len(bad), None)
        error = failed["error"]
        assert (error["code"], error["limit"], error["got"]) == ("too_many_bad_rows", limit, limit + 1)
        assert f"device_memory: {limit + 1}" in error["message"]
        assert error["field"] == f"lines.{bad[-1] + 1}"
        assert failed["bad_rows"] == [{"line": n + 1, "code": "device_memory"} for n in bad]
        assert served.state.jobs.quota.held_bytes == 0
        # The next one is not held up by it.
        await served.done(rows(3))


async def test_a_job_without_one_row_that_can_be_scored_fails(served: ServedJobs) -> None:
    served.predictor.nan = True
    failed = await served.ended(await served.submit(rows(3)))
    assert (failed["status"], failed["rows_done"], failed["partial"]) == ("failed", 3, None)
    assert (failed["error"]["code"], failed["error"]["field"]) == ("too_many_bad_rows", "lines.1")
    assert "unscorable_input: 3" in failed["error"]["message"]
    assert [row["line"] for row in failed["bad_rows"]] == [1, 2, 3]
    assert (await served.cancel(failed["id"]))["status"] == "failed"


# An artifact that is not loaded


async def without_the_artifact(tmp_path: Path, **values: Any) -> tuple[Callable[..., Any], str]:
    """Return what starts a server, which has not loaded the artifact of the job that is left, and that job's id."""
    first, second = artifacts_in(tmp_path, "fake", "other")
    values = {"artifacts_root": tmp_path, **values}
    job_id, path = await stopped_job(first, second, artifact="fake", **values)
    return partial(serve, first, second, artifact="other", jobs_dir=path, **values), job_id


async def test_a_job_waits_for_its_artifact_to_be_loaded_and_holds_up_no_other(tmp_path: Path) -> None:
    start, job_id = await without_the_artifact(tmp_path)
    async with start() as served:
        assert await served.paused(job_id) == "artifact_not_loaded"
        await served.done(rows(5), artifact="other")
        job = served.held(job_id)
        await served.until(lambda: job.absent_s > 0.05)
        assert (await changed(served.client, "fake/load")).status_code == 200
        assert (await served.ended(job_id))["result"]["artifact"]["name"] == "fake"
        assert job.absent_s == 0
        disk = served.state.jobs.ledger.disk
        assert [stored.absent_s for stored in await disk.in_database(disk.tables.reads.jobs)] == [0, 0]


async def test_a_job_whose_artifact_never_comes_back_gives_its_place_back(tmp_path: Path) -> None:
    start, job_id = await without_the_artifact(tmp_path, max_jobs_per_caller=1)
    async with start(job_wait_s=1000) as served:
        waiting = served.held(job_id)
        await served.until(lambda: waiting.paused is not None and waiting.absent_s > 0.1)
        refused(await served.post(lines(rows(1))), 429, "too_many_jobs")
    # A restart does not begin anew: what it waited before counts, and the time between does not.
    async with start(job_wait_s=0.1) as served:
        failed = await served.ended(job_id)
        assert (failed["status"], failed["error"]["code"]) == ("failed", "artifact_not_loaded")
        assert "'fake' was not loaded for job_wait_s (0.1 s)" in failed["error"]["message"]
        assert (served.uploads(), served.state.jobs.quota.held_bytes) == ([], 0)
        assert (await served.post(lines(rows(1)))).status_code == 202


@pytest.mark.parametrize("shared", [False, True])
async def test_a_job_whose_end_cannot_be_written_runs_no_more(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve() as served:
        board = served.state.jobs
        disk = board.ledger.disk
        disk.shared, end = shared, disk.tables.end

        def refuse(*arguments: Any, **named: Any) -> None:
            raise RuntimeError("no try carries it out")

        monkeypatch.setattr(disk.tables, "end", refuse)
        job_id = await served.submit(rows(4))
        job = served.held(job_id)
        await served.until(lambda: job.finished)
        fence = job.fence
        for _ in range(3):
            await board.fresh()
            await board._claim()
            assert (job.status, job.mine, job.fence) == ("failed", False, fence)
        (stored,) = await disk.in_database(disk.tables.reads.jobs)
        assert (stored.status, stored.fence) == ("queued", fence)
        if shared:
            # What another server writes of it is true here, too.
            await disk.in_database(partial(end, job.number, "cancelled", finished_at=1e9))
            assert (await served.get(job_id))["status"] == "cancelled"
