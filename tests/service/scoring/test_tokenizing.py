"""Texts become rows on threads: estimated before, bounded, in turns, and given up with their request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from counting import CountingPredictor
from hypothesis import given
from hypothesis import strategies as st
from serving import Served, code, serve

from laplora.prompts.rows import EncodedRow
from laplora.prompts.token_bounds import TokenBounds
from service.scoring.admission import NOTHING, Amount
from service.scoring.tokenizing import TOKENIZE_PART_BYTES, TokenEstimate, in_parts

pytestmark = pytest.mark.anyio


def held(served: Served) -> Amount:
    amount: Amount = served.state.queue.held
    return amount


def test_estimate_learns_what_texts_have() -> None:
    estimate = TokenEstimate()
    assert estimate.tokens(300, 1000) == 100
    assert estimate.tokens(300, 64) == 64  # a longer one is cut or refused
    for _ in range(100):
        estimate.learn(2300, 10_000)
    assert estimate.tokens_per_byte == pytest.approx(0.23, abs=0.005)
    for _ in range(1000):
        estimate.learn(7000, 10_000)
    assert estimate.tokens_per_byte == pytest.approx(0.7, abs=0.005)


def test_what_was_cut_teaches_nothing() -> None:
    estimate = TokenEstimate()
    before = estimate.tokens_per_byte
    estimate.learn_rows([EncodedRow((1,) * 4, 2, truncated=True)], [10**6])
    assert estimate.tokens_per_byte == before
    estimate.learn_rows([EncodedRow((1,) * 4, 2, truncated=True), EncodedRow((1,) * 500, 2)], [10**6, 1000])
    assert estimate.tokens_per_byte > before


@given(st.lists(st.integers(0, 50), min_size=1), st.integers(1, 100))
def test_parts_cover_in_order_and_stay_small(sizes: list[int], most: int) -> None:
    parts = in_parts(sizes, most)
    assert [i for part in parts for i in part] == list(range(len(sizes)))
    assert all(len(part) == 1 or sum(sizes[i] for i in part) <= most for part in parts)


@pytest.fixture
def counting() -> CountingPredictor:
    return CountingPredictor()


async def test_certainly_too_long_is_422_at_once_unless_cut(counting: CountingPredictor) -> None:
    counting.token_bounds = TokenBounds(8)
    async with serve(counting) as served:
        counting.encoded.clear()
        refused = await served.predict("fine", "x" * (8 * 64 + 1))
        assert counting.encoded == []
        cut = await served.predict("seven77 " * 100, options={"truncate": True})
    assert code(refused) == (422, "too_many_tokens")
    error = refused.json()["error"]
    assert (error["field"], error["limit"], error["got"]) == ("inputs.1", 64, 65)
    assert cut.json()["predictions"][0]["truncated"] is True


async def test_text_that_waits_to_be_tokenised_is_bounded(counting: CountingPredictor) -> None:
    async with serve(counting, max_body_bytes=1024, max_tokenize_bytes=2048, client_share=0.5) as served:
        counting.gate.clear()
        first = asyncio.create_task(served.predict("x" * 800))
        await served.until(lambda: len(counting.encoded) > 1)
        metrics = dict(
            line.split(" ")
            for line in (await served.client.get("/metrics")).text.splitlines()[::-1]
            if line.startswith(("laplora_reserved", "laplora_queue", "laplora_tokenize"))
        )
        refused = await served.predict("y" * 800)
        counting.gate.set()
        assert (await first).status_code == 200
        assert held(served) == NOTHING
    assert code(refused) == (429, "client_queue_full")
    assert "max_tokenize_bytes" in refused.json()["error"]["message"]
    assert (float(metrics["laplora_reserved_rows"]), float(metrics["laplora_queue_rows"])) == (1, 0)
    assert float(metrics["laplora_reserved_tokens"]) > 1
    assert float(metrics["laplora_tokenize_bytes"]) > 800


async def gone(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_while_tokenised_gives_room_back_and_stops_early(counting: CountingPredictor) -> None:
    async with serve(counting) as served:
        counting.encoded.clear()
        counting.gate.clear()
        task = asyncio.create_task(served.predict(*(f"{i} " + "x" * TOKENIZE_PART_BYTES for i in range(20))))
        await served.until(lambda: len(counting.encoded) == 1)
        await gone(task)
        await served.until(lambda: held(served) == NOTHING)
        counting.gate.set()
        assert (await served.predict("after")).status_code == 200
        assert [text[:5] for text in counting.encoded] == ["0 xxx", "after"]


async def test_cancelled_before_its_turn_to_be_tokenised_is_never_tokenised(counting: CountingPredictor) -> None:
    async with serve(counting) as served:
        counting.encoded.clear()
        counting.gate.clear()
        busy = [asyncio.create_task(served.predict(f"busy {i}")) for i in range(2)]
        await served.until(lambda: len(counting.encoded) == 2)
        task = asyncio.create_task(served.predict("doomed"))
        await served.until(lambda: held(served).rows == 3)
        await gone(task)
        await served.until(lambda: held(served).rows == 2)
        counting.gate.set()
        assert [(await one).status_code for one in busy] == [200, 200]
        assert "doomed" not in counting.encoded


async def test_a_long_request_does_not_keep_the_tokenizer_threads_from_others(counting: CountingPredictor) -> None:
    async with serve(counting) as served:
        counting.encoded.clear()
        counting.gate.clear()
        long = [asyncio.create_task(served.predict(*[f"x{i}" + "x" * TOKENIZE_PART_BYTES] * 9)) for i in range(2)]
        await served.until(lambda: len(counting.encoded) == 2)
        small = asyncio.create_task(served.predict("small"))
        await served.until(lambda: held(served).rows == 19)
        counting.gate.set()
        assert [(await one).status_code for one in (small, *long)] == [200] * 3
        assert counting.encoded.index("small") <= 3


async def test_what_is_tokenised_as_the_server_begins_to_drain_is_answered(counting: CountingPredictor) -> None:
    async with serve(counting) as served:
        counting.encoded.clear()
        counting.gate.clear()
        accepted = asyncio.create_task(served.predict("a"))
        await served.until(lambda: len(counting.encoded) == 1)
        served.state.lifecycle.drain()
        refused = await served.predict("b")
        counting.gate.set()
        assert (await accepted).status_code == 200
    assert code(refused) == (503, "draining")
