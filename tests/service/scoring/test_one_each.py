"""One caller's evaluations wait for each other, and keep nobody else waiting; reports come one at a time."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving import serve

import service.http.routes.evaluate
from service.threads import OneAtATime, OneEach

pytestmark = pytest.mark.anyio


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


async def test_what_was_given_up_keeps_its_turn_until_it_ends(threads: ThreadPoolExecutor) -> None:
    one_each = OneEach(threads)
    begun: list[str] = []
    may_end = {name: threading.Event() for name in ("first", "second", "third", "other")}

    def task(caller: str, name: str) -> asyncio.Task[None]:
        def work() -> None:
            begun.append(name)
            may_end[name].wait()

        return asyncio.create_task(one_each.run(caller, work))

    async def until_begun(*names: str) -> None:
        while begun != [*names]:
            await asyncio.sleep(0.001)

    first = task("a", "first")
    await until_begun("first")
    second, third, other = task("a", "second"), task("a", "third"), task("b", "other")
    await until_begun("first", "other")
    first.cancel()
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    may_end["other"].set()
    await other
    assert begun == ["first", "other"], "a thread is free, and the turn is not"
    may_end["first"].set()
    await until_begun("first", "other", "third")
    may_end["third"].set()
    await third
    for error in (ValueError, RuntimeError):  # one ends a turn too; and of threads that are shut down
        for _ in range(2):
            with pytest.raises(error):
                await one_each.run("a", lambda: int("no"))
        threads.shutdown()
    await asyncio.sleep(0)
    del first, second, third, other
    gc.collect()
    assert not one_each._turns, "nothing is remembered of callers that have nothing waiting"


async def test_long_bootstraps_keep_no_other_caller_waiting_nor_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of one caller's than FastAPI has threads."""
    let_go = threading.Event()
    measuring: list[int] = []

    def measure(rows: Any, labels: Any, **options: Any) -> Any:
        measuring.append(len(labels))
        if len(labels) == 2:
            let_go.wait()
        return {}

    monkeypatch.setattr(service.http.routes.evaluate, "measure", measure)
    rows = [{"text": str(i), "label": "positive"} for i in range(2)]
    try:
        async with serve() as served, served.client_at("192.0.2.1") as many_times:
            many = [asyncio.create_task(many_times.post("/evaluate", json={"inputs": rows})) for _ in range(60)]
            await served.until(lambda: bool(measuring))
            answers = [await served.client.post("/evaluate", json={"inputs": rows[:1]})]
            assert measuring == [2, 1], "the other caller's was measured beside the first"
            for path in ("/metrics", "/artifacts", "/health/live", "/feedback"):
                answers.append(await served.client.get(path))
            answers.append(await served.predict("a" * 100_000))
            let_go.set()
            answers += await asyncio.gather(*many)
    finally:
        let_go.set()
    assert {answer.status_code for answer in answers} == {200}


async def test_one_at_a_time_and_nobody_waits_for_two_of_another_caller(threads: ThreadPoolExecutor) -> None:
    """One that is given up while it waits takes nobody's turn."""
    one_at_a_time = OneAtATime(threads)
    order: list[str] = []
    inside: list[str] = []

    async def piece(caller: str, name: str) -> None:
        async with one_at_a_time.turn(caller) as run:
            inside.append(name)
            order.append(await run(lambda: name))
            await asyncio.sleep(0)
            assert inside == [name]
            inside.clear()

    many = [asyncio.create_task(piece("a", f"a{i}")) for i in range(4)]
    await asyncio.sleep(0)
    other = asyncio.create_task(piece("b", "b0"))
    await asyncio.sleep(0)
    many[1].cancel()
    await asyncio.gather(*many, other, return_exceptions=True)
    assert order == ["a0", "b0", "a2", "a3"]
    with pytest.raises(ValueError, match="of this piece"):
        async with one_at_a_time.turn("a"):
            raise ValueError("of this piece")
    await piece("c", "c0")
    assert order[-1] == "c0"
