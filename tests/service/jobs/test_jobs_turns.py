"""Whose turn it is among jobs, chunk by chunk, and that the device has the next chunk before it needs it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from job_calls import ServedJobs, callers, lines, rows, serve
from serving import FakePredictor

from service.jobs.reading import measuring
from service.jobs.running.waiting import Turns
from service.jobs.store.records import Job

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
    going_on, begun, measure = threading.Event(), threading.Event(), measuring.measure_method

    def slow(method_rows: Any, *args: Any, **kw: Any) -> Any:
        if len(method_rows) == 400:
            begun.set()
            going_on.wait()
        return measure(method_rows, *args, **kw)

    monkeypatch.setattr(measuring, "measure_method", slow)
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
