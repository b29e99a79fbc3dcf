"""Texts become rows on threads: estimated before, bounded, in turns, and given up with their request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import Served, code, serve

from laplora.prompts.rows import EncodedRow
from laplora.prompts.token_bounds import TokenBounds
from service.scoring.admission import NOTHING
from service.scoring.tokenizing import TOKENIZE_PART_BYTES, TokenEstimate, in_parts

pytestmark = pytest.mark.anyio


def test_estimate_learns_what_texts_have() -> None:
    estimate = TokenEstimate()
    assert estimate.tokens(300, 1000) == 100
    assert estimate.tokens(300, 64) == 64  # a longer one is cut or refused
    for tokens_per_byte in (0.23, 0.7):
        for _ in range(1000):
            cut, whole = EncodedRow((1,), 2, truncated=True), EncodedRow((1,) * int(10_000 * tokens_per_byte), 2)
            estimate.learn([cut, whole], [10**6, 10_000])  # what was cut teaches nothing
        assert estimate.tokens_per_byte == pytest.approx(tokens_per_byte, abs=0.005)


@given(st.lists(st.integers(0, 50), min_size=1), st.integers(1, 100))
def test_parts_cover_in_order_and_stay_small(sizes: list[int], most: int) -> None:
    parts = in_parts(sizes, most)
    assert [i for part in parts for i in part] == list(range(len(sizes)))
    assert all(len(part) == 1 or sum(sizes[i] for i in part) <= most for part in parts)


@asynccontextmanager
async def waiting_to_tokenise(counting: Any, *requests: Sequence[str]) -> AsyncIterator[Any]:
    """Yield a server and a task of each of these requests, once as many texts wait in the tokenizer's threads."""
    async with serve(counting) as served:
        counting.encoded.clear()
        counting.gate.clear()
        tasks = [asyncio.create_task(served.predict(*texts)) for texts in requests]
        await served.until(lambda: len(counting.encoded) == len(tasks))
        yield served, tasks


async def gone(served: Served, task: asyncio.Task[Any], left: int) -> None:
    """Give a request up; its room is free at once, and so many rows are left."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert served.state.backend.queue.held.rows == left


async def test_certainly_too_long_is_422_at_once_unless_cut(counting: Any) -> None:
    counting.token_bounds = TokenBounds(8)
    async with serve(counting) as served:
        counting.encoded.clear()
        refused = await served.predict("fine", "x" * (8 * 64 + 1))
        assert counting.encoded == []
        cut = await served.predict("seven77 " * 100, options={"truncate": True, "detail": "full"})
    assert code(refused) == (422, "too_many_tokens")
    error = refused.json()["error"]
    assert (error["field"], error["limit"], error["got"]) == ("inputs.1", 64, 65)
    assert cut.json()["predictions"][0]["truncated"] is True


async def test_text_that_waits_to_be_tokenised_is_bounded(counting: Any) -> None:
    async with serve(counting, max_body_bytes=1024, max_tokenize_bytes=2048, client_share=0.5) as served:
        counting.gate.clear()
        first = [asyncio.create_task(served.predict("x" * 800)) for _ in range(2)]
        await served.until(lambda: served.state.backend.queue.held.rows == 2)
        lines = (await served.client.get("/metrics")).text.splitlines()
        metrics = {name: float(value) for name, _, value in (line.partition(" ") for line in lines) if name != "#"}
        refused = await served.predict("y" * 800)
        counting.gate.set()
        assert [answer.status_code for answer in await asyncio.gather(*first)] == [200] * 2
        assert served.state.backend.queue.held == NOTHING
    assert code(refused) == (429, "queue_full")
    assert "max_tokenize_bytes" in refused.json()["error"]["message"]
    assert (metrics["laplora_reserved_rows"], metrics["laplora_queue_rows"]) == (2, 0)
    assert metrics["laplora_reserved_tokens"] > 1
    assert metrics["laplora_tokenize_bytes"] > 1600


async def test_cancelled_while_tokenised_or_before_gives_room_back_and_is_tokenised_no_further(counting: Any) -> None:
    texts = [f"{i} " + "x" * TOKENIZE_PART_BYTES for i in range(20)]
    async with waiting_to_tokenise(counting, texts, ["busy"]) as (served, (long, busy)):
        doomed = asyncio.create_task(served.predict("doomed"))
        await served.until(lambda: served.state.backend.queue.held.rows == 22)
        await gone(served, doomed, left=21)
        await gone(served, long, left=1)
        counting.gate.set()
        assert [(await one).status_code for one in (busy, served.predict("after"))] == [200, 200]
        assert sorted(text[:5] for text in counting.encoded) == ["0 xxx", "after", "busy"]


async def test_a_long_request_does_not_keep_the_tokenizer_threads_from_others(counting: Any) -> None:
    texts = ["x" * TOKENIZE_PART_BYTES] * 9
    async with waiting_to_tokenise(counting, texts, texts) as (served, long):
        small = asyncio.create_task(served.predict("small"))
        await served.until(lambda: served.state.backend.queue.held.rows == 19)
        counting.gate.set()
        assert [(await one).status_code for one in (small, *long)] == [200] * 3
        assert counting.encoded.index("small") <= 3


async def test_what_is_tokenised_as_the_server_begins_to_drain_is_answered(counting: Any) -> None:
    async with waiting_to_tokenise(counting, ["a"]) as (served, (accepted,)):
        served.state.lifecycle.drain()
        refused = await served.predict("b")
        counting.gate.set()
        assert (await accepted).status_code == 200
    assert code(refused) == (503, "draining")
