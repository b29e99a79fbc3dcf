"""Whose turn it is among jobs, chunk by chunk, and rows that take the process with them at every start."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from job_calls import ServedJobs, callers, lines, rows, serve, stopped_job
from serving import FakePredictor

from laplora.prompts.rows import EncodedRow
from service.jobs.reading import measuring
from service.jobs.running.waiting import Turns
from service.jobs.store.database import Database
from service.jobs.store.job_tables import JobTables
from service.jobs.store.records import Job, RowRange

pytestmark = pytest.mark.anyio

#: Chunks of four rows, which have ten tokens each, and device batches of two.
SMALL: dict[str, Any] = {"batch_tokens": 20}


async def test_leaving_and_coming_back_earns_no_turn() -> None:
    turns, order, members = Turns(), [], ["stays", "comes and goes"]
    for _ in range(6):
        turns.meet(members[:1])
        turns.meet(members)
        order.append(turns.next(members))
        turns.take(order[-1])
    assert order.count("stays") >= 3


def chunks_kept(served: ServedJobs, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by a job's id as each of its chunks comes to disk."""
    order: list[str] = []
    keep = served.state.jobs.ledger.add_rows

    async def noting(job: Job, *args: Any, **kw: Any) -> None:
        await keep(job, *args, **kw)
        order.append(job.id)

    monkeypatch.setattr(served.state.jobs.ledger, "add_rows", noting)
    return order


async def test_a_short_job_waits_neither_for_a_long_one_nor_for_its_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    going_on, begun, measure = threading.Event(), threading.Event(), measuring.measure_scores

    def slow(scores: Any, *args: Any, **kw: Any) -> Any:
        if len(scores.nll) == 400:
            begun.set()
            going_on.wait()
        return measure(scores, *args, **kw)

    monkeypatch.setattr(measuring, "measure_scores", slow)
    async with serve(**SMALL) as served:
        order = chunks_kept(served, monkeypatch)
        served.predictor.hold()
        long = await served.submit(rows(400))
        await served.until(served.predictor.entered.is_set)
        short = [await served.submit(rows(4)) for _ in range(3)]
        served.predictor.released.set()
        for job in short:
            assert (await served.ended(job))["status"] == "done"
        assert not served.held(long).finished
        # One turn each: at most the two chunks that were under way, and one turn between two short ones.
        last = max(order.index(job) for job in short)
        assert order[: last + 1].count(long) <= 2 + len(short)
        await served.until(begun.is_set)
        await served.done(rows(5))
        assert (await served.get(long))["status"] == "running"
        going_on.set()
        assert (await served.ended(long))["result"]["rows"] == 400


async def test_callers_take_turns_however_many_jobs_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(**SMALL) as served, callers(served) as who:
        order = chunks_kept(served, monkeypatch)

        async def submit_as(caller: str) -> str:
            return str((await who.json(caller, "POST", content=lines(rows(40))))["id"])

        served.predictor.hold()
        many = [await submit_as("many")]
        await served.until(served.predictor.entered.is_set)
        many += [await submit_as("many") for _ in range(4)]
        own = served.held(await submit_as("another"))
        served.predictor.released.set()
        await served.until(lambda: own.finished)
        # Of ten chunks each its caller had every second one; those of the other were spread over the five jobs.
        at = order.index(own.id)
        between = order[at : len(order) - order[::-1].index(own.id)]
        assert between.count(own.id) == 10
        assert 8 <= len(between) - 10 <= 11
        counts = [between.count(job) for job in many]
        assert max(counts) - min(counts) <= 1
        for job in many:
            assert (await served.ended(job))["result"]["rows"] == 40


class SteppingPredictor(FakePredictor):
    """Runs a job's rows once a step is released."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = threading.Semaphore(0)

    def predict(self, rows: Sequence[Any], *arguments: Any, **options: Any) -> Any:
        if any(max(row.token_ids) > 100 for row in rows):
            self.steps.acquire()
        return super().predict(rows, *arguments, **options)


async def test_the_next_chunk_waits_behind_the_device_before_it_is_needed() -> None:
    """The device is never without rows while a job has some: seen before each of its runs."""
    predictor = SteppingPredictor()
    async with serve(predictor, **SMALL) as served:
        job = served.held(await served.submit(rows(60)))
        try:
            while job.rows_done < 40:
                await served.until(lambda: served.queued_plans == 2)
                # And no more than two chunks of four rows are ever in memory.
                assert 0 < served.state.backend.queue.rows <= 8
                predictor.steps.release()
                await asyncio.sleep(0.001)
        finally:
            predictor.steps.release(100)
        assert (await served.ended(job.id))["status"] == "done"


# Rows that end the process: servers one after the other in this process; a kill leaves what is on disk at that moment

AT_FAULT = {"text": "row 90666", "label": "positive"}
#: Unclean ends that one row may bring about: with others beside it, then alone.
MOST_ENDS = 3


class HoldingPredictor(FakePredictor):
    """Holds the device once a row with the token comes; the server's own passes go through."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token = token

    def predict(self, rows: Sequence[EncodedRow], *arguments: Any, **options: Any) -> list[Any]:
        if any(self.token in row.token_ids for row in rows):
            self.hold()
        return super().predict(rows, *arguments, **options)


def doomed(how: str) -> FakePredictor:
    if how != "fault":
        return HoldingPredictor(90_666)
    predictor = FakePredictor()
    predictor.poison[90_666] = RuntimeError("CUDA error: device-side assert triggered")
    return predictor


async def unclean_end(served: ServedJobs, how: str) -> Path:
    """Wait for the end that the row at fault brings about, and return the folder that it leaves."""
    device, jobs_dir = served.state.backend.device, Path(served.state.settings.jobs_dir)
    if how == "fault":
        await served.until(lambda: device.health.fault is not None)
        return jobs_dir
    await served.until(lambda: not served.predictor.released.is_set())
    if how == "kill":
        copy = jobs_dir.with_name(f"{jobs_dir.name}-killed")
        return Path(await served.state.jobs.ledger.disk.in_database(shutil.copytree, jobs_dir, copy))
    device.health._hang_s = 0.0
    await served.until(lambda: device.health.fault is not None)
    return jobs_dir


@pytest.mark.parametrize("how", ["fault", "hang", "kill"])
async def test_a_row_that_ends_the_process_is_left_out_after_a_few_starts(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    items = [*rows(20), AT_FAULT, *rows(19, 20)]
    ids: list[str] = []
    values: dict[str, Any] = {}
    for _ in range(MOST_ENDS):
        async with serve(doomed(how), **values) as served:
            if not ids:
                ids = [await served.submit(rows(30, 50)), await served.submit(items)]
            values["jobs_dir"] = await unclean_end(served, how)
    async with serve(doomed(how), **values) as served:
        innocent, job = [await served.ended(job_id) for job_id in ids]
        assert (innocent["rows_done"], innocent["rows_bad"]) == (30, 0)
        assert (job["rows_done"], job["rows_bad"], job["result"]["rows"]) == (40, 1, 39)
        assert job["bad_rows"] == [{"line": 21, "code": "device_fault"}]
        assert job["result"]["methods"] == await served.methods([item for item in items if item is not AT_FAULT])
    (told,) = [vars(record) for record in caplog.records if getattr(record, "event", "") == "job_row_given_up"]
    assert (told["job"], told["row"]) == (ids[1], 20)


def begun(jobs_dir: Path, become: dict[RowRange, int] | None = None) -> dict[RowRange, int]:
    """Return what the only job of a folder that no server has keeps as under way, after making it ``become`` this."""
    store = JobTables(Database.in_file(jobs_dir / "laplora-jobs" / "jobs.sqlite"))
    (job,) = store.reads.jobs()
    if become is not None:
        store.set_begun(1, become, fence=job.fence)
    (job,) = store.reads.jobs()
    store.close()
    return job.begun


async def test_a_job_that_may_have_no_bad_row_fails_and_the_server_stays() -> None:
    job_id, jobs_dir = await stopped_job()
    begun(jobs_dir, become={(0, 1): 2})
    async with serve(jobs_dir=jobs_dir, max_job_bad_rows=0) as served:
        job = await served.ended(job_id)
        assert (job["error"]["code"], job["bad_rows"]) == ("too_many_bad_rows", [{"line": 1, "code": "device_fault"}])
        assert "device_fault: 1" in job["error"]["message"]
        assert (await served.predict("a")).status_code == 200


async def test_suspect_rows_run_one_by_one_and_those_after_them_as_ever() -> None:
    job_id, jobs_dir = await stopped_job(count=40)
    assert begun(jobs_dir) == {}, "a clean stop suspects nothing"
    left = begun(jobs_dir, become={(0, 9): 0, (0, 1): 1})
    for _ in range(2):
        holding = HoldingPredictor(103)
        async with serve(holding, jobs_dir=jobs_dir) as served:
            await served.until(lambda: not holding.released.is_set())  # noqa: B023
        assert begun(jobs_dir) == left, "a clean stop among them is no try"
    async with serve(jobs_dir=jobs_dir, wait=False) as served:
        assert (await served.ended(job_id))["rows_bad"] == 0
    # The passes before these are the server's own.
    sizes = [len(batch) for name, batch in served.predictor.batches if name == "laplace"]
    assert sizes[-10:] == [1] * 9 + [31]
    assert begun(jobs_dir) == {}
