"""One caller's evaluations wait for each other, and keep nobody else waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving import serve

import service.http.routes.evaluate
from service.threads import OneEach

pytestmark = pytest.mark.anyio


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


class Work:
    """Pieces of work that note their beginning and wait until they are let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.let_go: dict[str, threading.Event] = {}

    def piece(self, name: str) -> Any:
        self.let_go[name] = threading.Event()

        def work() -> str:
            self.begun.append(name)
            self.let_go[name].wait()
            return name

        return work

    async def until_begun(self, *names: str) -> None:
        while not set(names) <= set(self.begun):
            await asyncio.sleep(0.001)


@pytest.fixture
def work() -> Iterator[Work]:
    work = Work()
    yield work
    for event in work.let_go.values():
        event.set()


async def test_each_caller_has_one_at_a_time(threads: ThreadPoolExecutor, work: Work) -> None:
    one_each = OneEach(threads)
    many = [asyncio.create_task(one_each.run("many", work.piece(f"many {i}"))) for i in range(50)]
    await work.until_begun("many 0")
    one = asyncio.create_task(one_each.run("one", work.piece("one")))
    await work.until_begun("one")
    assert work.begun == ["many 0", "one"]
    for event in work.let_go.values():
        event.set()
    assert await asyncio.gather(*many, one) == [*(f"many {i}" for i in range(50)), "one"]
    assert [name for name in work.begun if name != "one"] == [f"many {i}" for i in range(50)]
    threads.shutdown()  # a thread that has answered still has the caller's turn in its hands for a moment
    await asyncio.sleep(0)
    assert not one_each._turns, "nothing is remembered of callers that have nothing waiting"


async def test_what_was_given_up_keeps_its_turn_until_it_ends(threads: ThreadPoolExecutor, work: Work) -> None:
    one_each = OneEach(threads)
    first = asyncio.create_task(one_each.run("a", work.piece("first")))
    await work.until_begun("first")
    second, third = (asyncio.create_task(one_each.run("a", work.piece(name))) for name in ("second", "third"))
    other = asyncio.create_task(one_each.run("b", work.piece("other")))
    await work.until_begun("other")
    first.cancel()
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    work.let_go["other"].set()
    await other
    assert work.begun == ["first", "other"], "a thread is free, and the turn is not"
    work.let_go["first"].set()
    await work.until_begun("third")
    work.let_go["third"].set()
    assert await third == "third"
    assert work.begun == ["first", "other", "third"]


async def test_errors_end_a_turn_too(threads: ThreadPoolExecutor) -> None:
    def broken() -> None:
        raise ValueError("no")

    one_each = OneEach(threads)
    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            await one_each.run("a", broken)
    threads.shutdown()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="shutdown"):
            await one_each.run("a", broken)


@pytest.mark.slow
async def test_one_callers_evaluations_keep_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    measuring: list[int] = []
    real = service.http.routes.evaluate.measure

    def measure(rows: Any, labels: Any, **options: Any) -> Any:
        measuring.append(len(labels))
        if len(labels) == 2:
            let_go.wait()
        return real(rows, labels, **options)

    monkeypatch.setattr(service.http.routes.evaluate, "measure", measure)
    rows = [{"text": str(i), "label": "positive"} for i in range(2)]
    try:
        async with (
            serve() as served,
            served.client_at("192.0.2.1") as many_times,
            served.client_at("192.0.2.2") as once,
        ):
            many = [asyncio.create_task(many_times.post("/evaluate", json={"inputs": rows})) for _ in range(5)]
            while not measuring:
                await asyncio.sleep(0.001)
            alone = asyncio.create_task(once.post("/evaluate", json={"inputs": rows[:1]}))
            while not alone.done() and measuring != [2, 2]:
                await asyncio.sleep(0.001)
            measured = list(measuring)
            let_go.set()
            answers = [await task for task in (alone, *many)]
    finally:
        let_go.set()
    assert measured == [2, 1], "the other caller's was measured beside the first"
    assert [answer.status_code for answer in answers] == [200] * 6
