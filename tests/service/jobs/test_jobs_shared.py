"""Servers of this process that share one PostgreSQL: jobs are taken over, left to whoever can run them, cancelled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from job_calls import rows, serve, stopped_job
from serving import FakePredictor, artifacts_in
from sqlalchemy import update
from stored_jobs import Stores, kept_rows

from service.errors import JobsUnavailableError
from service.jobs.store.schema import JOBS
from service.jobs.store.sharing import BackOffs

pytestmark = pytest.mark.anyio
COUNT = 60

Start = Callable[..., Any]


@pytest.fixture
def start(url: str, tmp_path: Path) -> Start:
    """Return what starts a server that shares jobs, and uploads unless it has another folder."""
    return partial(serve, jobs_url=url, jobs_dir=tmp_path / "common", batch_tokens=40, job_look_s=0.02)


# Cancelled, and ended


async def test_any_server_cancels_a_job_and_a_cancel_that_comes_too_late_takes_no_row_away(
    start: Start, tmp_path: Path
) -> None:
    async with start() as first, start() as second:
        second.state.jobs._keeper.cancel()  # so that it claims nothing, and learns of nothing
        first.predictor.hold()
        job_id = await first.submit(rows(COUNT))
        await first.until(first.predictor.entered.is_set)
        await second.state.jobs.fresh()
        assert (await second.cancel(job_id))["status"] == "cancelled"
        job = first.held(job_id)
        await first.until(lambda: job.status == "cancelled" and first.state.backend.queue.rows == 0)
        await first.until(lambda: not list((tmp_path / "common" / "laplora-jobs-shared").glob("*.jsonl")))
        first.predictor.released.set()
        assert await second.delete(job_id) == "removed"
        assert (await first.client.get(f"/evaluate/jobs/{job_id}")).status_code == 404

        first.predictor.hold()
        job_id = await first.submit(rows(COUNT))
        await second.state.jobs.fresh()
        late = second.held(job_id)
        first.predictor.released.set()
        done = await first.ended(job_id)
        assert (done["status"], late.finished) == ("done", False), "the second one does not know of it"
        await second.state.jobs.cancel(late)
        for served in (first, second):
            assert await served.get(job_id) == done
            assert len(await served.answers(job_id)) == COUNT
            # Both count it: whoever adds servers up has to know.
            assert 'laplora_jobs{status="done",store="shared"} 1.0' in (await served.client.get("/metrics")).text


async def test_an_end_is_an_end_though_the_upload_cannot_be_removed_yet(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start() as served:
        folder = served.state.jobs.ledger.disk.folder

        def refuse(job_id: str) -> None:
            raise JobsUnavailableError("the store of uploads does not answer")

        with monkeypatch.context() as down:
            down.setattr(folder, "discard", refuse)
            done = await served.done(rows(4), keep_rows="false")
            served.predictor.hold()
            other = await served.submit(rows(4))
            assert (await served.cancel(other))["status"] == "cancelled"
            assert (await served.get(done))["status"] == "done"
            assert folder.inputs(done).exists()
        await served.until(lambda: not folder.inputs(done).exists() and not folder.inputs(other).exists())


# Left to whoever can run it, and what it waits for

LACKS = {
    "artifact_changed": "loaded artifact 'fake' of digest sha256:fake",
    "artifact_not_loaded": "loaded artifact 'fake' of digest sha256:fake",
    "upload_changed": "its upload",
}
each_lack = pytest.mark.parametrize("lacks", LACKS)


def lacking(start: Start, lacks: str, tmp_path: Path) -> tuple[Start, list[FakePredictor]]:
    """Return what starts a server that cannot run a job of the artifact ``fake``, and the server's predictors."""
    predictors, values = artifacts_in(tmp_path, "fake", "other"), dict[str, Any](artifacts_root=tmp_path)
    if lacks == "artifact_changed":
        predictors[0].artifact.digest = "sha256:another"
    elif lacks == "artifact_not_loaded":
        values["artifact"] = "other"
        predictors.reverse()
    else:
        values["jobs_dir"] = tmp_path / "own"
    return partial(start, *predictors, **values), predictors


@each_lack
async def test_a_job_runs_where_it_can_and_is_failed_nowhere(
    lacks: str, start: Start, stores: Stores, tmp_path: Path
) -> None:
    store, _ = stores
    start_lacking, unable = lacking(start, lacks, tmp_path)
    left, _ = await stopped_job(count=40, **start.keywords)  # type: ignore[attr-defined]
    async with start_lacking() as second, start_lacking() as third:
        await second.until(lambda: store.reads.jobs()[0].fence > 6)
        for served in (second, third):
            assert await served.paused(left) == lacks
            message = (await served.get(left))["paused"]["message"]
            assert message == f"waits for a server that has {LACKS[lacks]}"
        assert store.reads.jobs()[0].left_at is not None
        async with start() as first:
            assert (await first.ended(left))["result"]["rows"] == 40
            (job,) = store.reads.jobs()
            assert (job.status, job.left_at, job.paused) == ("done", None, None)
            first.predictor.hold()
            ids = [await first.submit(rows(40, first=40 * i)) for i in range(6)]
            # All of them come to the server that can, whatever its share is.
            server = first.state.jobs.ledger.disk.server
            await first.until(lambda: {job.server for job in store.reads.jobs() if not job.finished} == {server})
            first.predictor.released.set()
            for job_id in ids:
                done = await first.ended(job_id)
                assert (done["status"], done["rows_done"], done["result"]["rows"]) == ("done", 40, 40)
                assert kept_rows(store, first.held(job_id).number) == list(range(40))
                shown = await second.get(job_id)
                assert (shown["status"], shown["error"]) == ("done", None)
    # What they ran at their start has no numbers in it, as rows have.
    ran = [row for predictor in unable for _, batch in predictor.batches for row in batch]
    assert {token for row in ran for token in row.token_ids} <= {1}


@each_lack
async def test_a_job_that_no_server_can_run_for_long_fails_by_the_reason(
    lacks: str, start: Start, stores: Stores, tmp_path: Path
) -> None:
    store, _ = stores

    def let_pass(seconds: float) -> None:
        with store.database.transaction() as db:
            db.execute(update(JOBS).values(left_at=JOBS.c.left_at - seconds))

    job_id, _ = await stopped_job(**start.keywords)  # type: ignore[attr-defined]
    async with lacking(start, lacks, tmp_path)[0](job_wait_s=2000) as served:
        assert await served.paused(job_id) == lacks
        let_pass(1000)
        await served.until(lambda: store.reads.jobs()[0].fence > 4)
        assert (await served.get(job_id))["status"] == "paused"
        let_pass(1000)
        failed = await served.ended(job_id)
        assert (failed["status"], failed["error"]["code"]) == ("failed", lacks)
        assert failed["error"]["message"].startswith("for job_wait_s (2000 s) there was no server that has ")
        assert served.state.jobs.quota.held_bytes == 0


def test_a_server_tries_less_and_less_often_what_it_could_not_run() -> None:
    back_offs = BackOffs(5.0)
    assert [back_offs.put(1) for _ in range(8)] == [5, 10, 20, 40, 80, 160, 300, 300]
    back_offs.put(2)
    assert back_offs.now([1, 2, 3]) == [1, 2]
    back_offs.forget(1)
    assert back_offs.now([2, 3]) == [2]
    assert back_offs.now([3]) == [], "of one that has ended nothing is kept"
    assert [back_offs.put(1), back_offs.put(2)] == [5, 5]
