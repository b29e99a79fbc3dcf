"""Two real servers with one PostgreSQL: a job is taken over while the first is at a write, which comes too late."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from job_calls import answers, cancel, delete, ended, get, held, methods, rows, submit
from serving import FakePredictor, Served, serve
from sqlalchemy import update
from stored_jobs import kept_rows

from service.errors import JobsUnavailableError
from service.jobs.store.job_tables import JobTables
from service.jobs.store.schema import SERVERS

pytestmark = pytest.mark.anyio
COUNT = 60


@asynccontextmanager
async def a_server(url: str, folder: Path) -> AsyncIterator[Served]:
    async with serve(FakePredictor(), jobs_url=url, jobs_dir=folder, batch_tokens=40, job_look_s=0.02) as served:
        yield served


async def seem_dead(served: Served, store: JobTables) -> None:
    """Let a server say no more that it lives, nor learn what others do, while its jobs go on."""
    served.state.jobs._keeper.cancel()
    with store.database.transaction() as db:
        mine = update(SERVERS).where(SERVERS.c.id == served.state.jobs.ledger.disk.server)
        db.execute(mine.values(heard_at=SERVERS.c.heard_at - 3600))


def gated(monkeypatch: pytest.MonkeyPatch, served: Served, write: str) -> tuple[threading.Event, threading.Event]:
    """Hold the first such write of a server up, before anything of it is done."""
    store, reached, go = served.state.jobs.ledger.disk.tables, threading.Event(), threading.Event()
    real = getattr(store, write)

    def late(*arguments: Any, **named: Any) -> Any:
        reached.set()
        go.wait()
        return real(*arguments, **named)

    monkeypatch.setattr(store, write, late)
    return reached, go


@pytest.mark.parametrize("write", ["set_begun", "set_paused", "add_rows", "end"])
async def test_a_write_that_comes_too_late_is_refused_and_every_row_is_answered_once(
    write: str, url: str, stores: tuple[JobTables, JobTables], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = stores
    async with a_server(url, tmp_path) as first:
        first.predictor.hold()
        items = rows(COUNT)
        job_id = await submit(first, items)
        job = held(first, job_id)
        await first.until(first.predictor.entered.is_set)
        if write in ("set_begun", "set_paused"):
            # Both come before a batch: it lets go of the job, and claims it once more.
            await first.state.jobs._runner.give_up(job)
        reached, go = gated(monkeypatch, first, write)
        if not job.mine:
            await first.state.jobs.ledger.sharing.release(job)
        first.predictor.released.set()
        await first.until(reached.is_set)
        await seem_dead(first, store)
        async with a_server(url, tmp_path) as second:
            done = await ended(second, job_id)
            go.set()
            await first.until(lambda: not first.state.jobs._runner._runs)
            await first.state.jobs.fresh()
            assert (done["status"], done["rows_done"], done["result"]["rows"]) == ("done", COUNT, COUNT)
            assert done["result"]["methods"] == await methods(second, items)
            for served in (first, second):
                assert await get(served, job_id) == done
                assert [one["input"] for one in await answers(served, job_id)] == items
    (stored,) = store.reads.jobs()
    assert kept_rows(store, stored.number) == list(range(COUNT))


async def test_any_server_cancels_a_job_and_the_one_that_runs_it_lets_go(url: str, tmp_path: Path) -> None:
    async with a_server(url, tmp_path) as first, a_server(url, tmp_path) as second:
        first.predictor.hold()
        job_id = await submit(first, rows(COUNT))
        await first.until(first.predictor.entered.is_set)
        assert (await cancel(second, job_id))["status"] == "cancelled"
        await first.until(lambda: held(first, job_id).status == "cancelled" and first.state.backend.queue.rows == 0)
        await first.until(lambda: not list((tmp_path / "laplora-jobs-shared").glob("*.jsonl")))
        first.predictor.released.set()
        assert (await first.predict("row 7")).status_code == 200
        assert await delete(second, job_id) == "removed"
        assert (await first.client.get(f"/evaluate/jobs/{job_id}")).status_code == 404


async def test_a_cancel_that_comes_after_another_servers_end_takes_no_row_away(url: str, tmp_path: Path) -> None:
    async with a_server(url, tmp_path) as first, a_server(url, tmp_path) as second:
        second.state.jobs._keeper.cancel()
        first.predictor.hold()
        job_id = await submit(first, rows(COUNT))
        await second.state.jobs.fresh()
        late = held(second, job_id)
        first.predictor.released.set()
        done = await ended(first, job_id)
        assert not late.finished, "the second one does not know of it"
        await second.state.jobs.cancel(late)
        for served in (first, second):
            assert await get(served, job_id) == done
            assert len(await answers(served, job_id)) == COUNT


async def test_an_end_is_an_end_though_the_upload_cannot_be_removed_yet(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_server(url, tmp_path) as served:
        folder, down = served.state.jobs.ledger.disk.folder, threading.Event()
        down.set()
        discard = folder.discard

        def refuse(job_id: str) -> None:
            if down.is_set():
                raise JobsUnavailableError("the store of uploads does not answer")
            discard(job_id)

        monkeypatch.setattr(folder, "discard", refuse)
        done = await submit(served, rows(4), keep_rows="false")
        assert (await ended(served, done))["status"] == "done"
        served.predictor.hold()
        other = await submit(served, rows(4))
        assert (await cancel(served, other))["status"] == "cancelled"
        assert (await get(served, done))["status"] == "done"
        assert folder.inputs(done).exists()
        down.clear()
        await served.until(lambda: not folder.inputs(done).exists() and not folder.inputs(other).exists())
