"""Room in the queue: reserved before tokenising, corrected after, given back however a request ends."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import FakePredictor, code, serve

from laplora.prompts.rows import EncodedRow
from laplora.prompts.token_bounds import TokenBounds
from service.errors import BatchTooLargeError, ClientQueueFullError, QueueFullError
from service.scoring.admission import HERE_S, NOTHING, SPARE_SHARE, Admission, Amount, Reservation

pytestmark = pytest.mark.anyio

LIMITS = Amount(rows=8, tokens=64, text_bytes=1000)


def refused(admission: Admission, caller: str, wanted: Amount, error: type[Exception], match: str | None = None) -> Any:
    """Return the refusal of a request."""
    with pytest.raises(error, match=match) as caught:
        admission.reserve(caller, wanted, now=0.0)
    assert type(caught.value) is error
    return caught.value


@pytest.mark.parametrize("callers", [1, 3, 8])
def test_callers_who_fill_the_queue_together_hold_equal_parts(callers: int) -> None:
    """One alone all. With a share of one half each of several holds as much as is left: one in three, in nine."""
    admission = Admission(Amount(360, 10**6, 10**6), client_share=0.5)
    names = [f"caller {i}" for i in range(callers)]
    open_by: dict[str, list[Reservation]] = {name: [] for name in names}
    rng = random.Random(0)
    for _ in range(10_000):
        name = rng.choice(names)
        with suppress(QueueFullError):
            open_by[name].append(admission.reserve(name, Amount(1, 1), now=0.0))
        served = rng.choice(names)  # the device's turns are shared alike
        if open_by[served] and rng.random() < 0.5:
            admission.close(open_by[served].pop(0))
    for name in names:
        assert admission.held_by(name).rows == pytest.approx(360 / (callers + 1) if callers > 1 else 360, rel=0.1)


@pytest.mark.parametrize("callers", [1, 3, 8])
def test_the_largest_request_of_a_newcomer_gets_in_once_half_a_queue_is_answered(callers: int) -> None:
    """Beside callers that ask again whenever a row is answered; nothing of theirs is thrown out."""
    admission = Admission(Amount(256, 10**6, 10**6), client_share=0.5)
    waiting: list[Reservation] = []

    def fill(now: float = 0.0) -> int:
        for name in [f"caller {i}" for i in range(callers)] * 256:
            with suppress(QueueFullError):
                waiting.append(admission.reserve(name, Amount(1, 1), now=now))
        return admission.total.rows

    most = fill()
    assert most == 256 if callers == 1 else 256 * callers / (callers + 1) == pytest.approx(most, abs=callers)
    large, answered = [admission.reserve("small", Amount(28, 28), now=0.0)], 0  # the first is no newcomer's largest
    while len(large) < 2:
        with suppress(QueueFullError):
            large.append(admission.reserve("newcomer", Amount(128, 128), now=0.0))
        if len(large) < 2:
            admission.close(waiting.pop(0))
            answered += 1
            fill()
    assert 0 < answered <= 128
    assert admission.total.rows == len(waiting) + 28 + 128
    for reservation in large:
        admission.close(reservation)
    fill(HERE_S)
    assert callers > 1 or len(waiting) < 256
    fill(2 * HERE_S + 1)
    assert callers > 1 or len(waiting) == 256, "they have gone"


def test_who_holds_nothing_gets_in_while_there_is_room() -> None:
    admission = Admission(Amount(100, 1000, 1000), client_share=0.5)
    admission.reserve("a", Amount(50, 50), now=0.0)
    large = admission.reserve("b", Amount(45, 45), now=0.0)
    admission.learn_speed(20, 2.0)
    full = refused(admission, "b", Amount(1, 1), ClientQueueFullError, "one caller may hold 25 now")
    assert (full.limit, full.got, full.retry_after_s) == (25, 46, 9)
    admission.reserve("b", Amount(0, 1, 400), now=0.0)  # it holds no text: its first is let in
    admission.correct(large, Amount(45, 60), now=0.0)  # was let in: its tokens are no new request
    admission.close(large)
    admission.reserve("b", Amount(20, 20), now=0.0)
    admission.reserve("b", Amount(5, 5), now=0.0)


def test_what_can_never_fit_is_refused_for_good_and_nobody_by_an_estimate_alone() -> None:
    admission = Admission(LIMITS, client_share=0.5)
    for wanted, fewest, limit in ((Amount(5, 5), 5, 4), (Amount(1, 40), 33, 32), (Amount(1, 1, 501), 1, 500)):
        with pytest.raises(BatchTooLargeError, match="client_share") as caught:
            admission.reserve("a", wanted, fewest_tokens=fewest, now=0.0)
        assert (caught.value.limit, admission.total) == (limit, NOTHING)
    reservation = admission.reserve("a", Amount(1, 10_000), fewest_tokens=3, now=0.0)
    assert reservation.held.tokens == 32
    admission.correct(reservation, Amount(1, 5), now=0.0)
    assert admission.total == Amount(1, 5)


def test_correction_may_exceed_the_limit_by_an_eighth() -> None:
    admission = Admission(LIMITS)
    admission.reserve("a", Amount(1, 40), now=0.0)
    low = admission.reserve("b", Amount(1, 4), now=0.0)
    with pytest.raises(QueueFullError):
        admission.correct(low, Amount(1, 33), now=0.0)
    assert low.held.tokens == 4
    admission.correct(low, Amount(1, 32), now=0.0)
    assert admission.total.tokens == 64 * (1 + SPARE_SHARE)
    admission.correct(low, Amount(1, 20), now=0.0)  # downwards, whatever the rest holds
    with pytest.raises(BatchTooLargeError):
        admission.correct(low, Amount(1, 65), now=0.0)


def test_what_was_let_in_stays_where_the_room_shrinks() -> None:
    """A scorer goes while the queue is full: what it was let in under counts for a request, and no new one comes."""
    admission = Admission(Amount(16, 128, 1000), client_share=0.5)
    held = [admission.reserve(name, Amount(3, 24), now=0.0) for name in "abcde"]
    admission.resize(LIMITS)
    for reservation in held[:3]:
        admission.correct(reservation, Amount(3, 25), now=0.0)
    refused(admission, "f", Amount(1, 1), QueueFullError)
    with pytest.raises(BatchTooLargeError):
        admission.correct(held[3], Amount(3, 65), now=0.0)
    for reservation in held:
        admission.close(reservation)
    assert admission.total == NOTHING
    refused(admission, "a", Amount(5, 1), BatchTooLargeError)


def test_retry_after_is_the_time_of_the_backlog_that_is_in_the_way() -> None:
    admission = Admission(Amount(1000, 1000, 1000), client_share=0.5)
    admission.reserve("a", Amount(1, 500), now=0.0)
    admission.reserve("b", Amount(1, 450), now=0.0)
    own, full = ("a", Amount(1, 1), ClientQueueFullError), ("c", Amount(1, 200), QueueFullError)
    assert refused(admission, *own).retry_after_s == 1  # nobody knows how fast the device is
    admission.learn_speed(100, 1.0)
    assert refused(admission, *own).retry_after_s == 10  # 500 tokens at half the device
    assert refused(admission, *full).retry_after_s == 10  # 950 tokens at all of it
    for _ in range(40):
        admission.learn_speed(1, 1.0)
    assert refused(admission, *full).retry_after_s == 60


events = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "correct", "release", "close"]), *(st.integers(0, most) for most in (5, 6, 40, 600))
    ),
    max_size=60,
)


@given(events, st.sampled_from([0.25, 0.5, 1.0]))
def test_counters_are_the_sum_of_what_is_open_and_zero_in_the_end(
    sequence: list[tuple[str, int, int, int, int]], share: float
) -> None:
    admission = Admission(LIMITS, client_share=share)
    known: list[Reservation] = []
    for event, which, rows, tokens, text_bytes in sequence:
        reservation = known[which % len(known)] if known else None
        with suppress(QueueFullError, BatchTooLargeError):
            if event == "reserve":
                known.append(admission.reserve(f"caller {which % 3}", Amount(rows, tokens, text_bytes), now=0.0))
            elif reservation is not None and event == "correct":
                admission.correct(reservation, Amount(rows, tokens), now=0.0)
            elif reservation is not None and event == "release":
                part = Amount(min(rows, reservation.held.rows), min(tokens, reservation.held.tokens))
                admission.change(reservation, NOTHING.less(part))
            elif reservation is not None and event == "close":
                admission.close(reservation)
                known.remove(reservation)
        assert admission.total == Amount(*(sum(r.held[i] for r in known) for i in range(3)))
        for part, limit in zip(admission.total, LIMITS, strict=True):
            assert 0 <= part <= limit * (1 + SPARE_SHARE)
    for reservation in known:
        admission.close(reservation)
    assert (admission.total, admission._by_caller) == (NOTHING, {})


async def test_no_room_is_429_before_anything_is_tokenised_or_after_all_where_the_estimate_was_low(
    counting: Any,
) -> None:
    async with serve(counting, max_queue_tokens=100, client_share=1.0) as served:
        async with served.occupied():
            waiting = asyncio.create_task(served.predict("b " * 45))
            await served.until(lambda: served.state.backend.queue.rows == 1)
            before, held = list(counting.encoded), served.state.backend.queue.held
            refused = [await served.predict("c " * 100)]
            assert counting.encoded == before
            served.state.scorer.tokenizing.estimate(served.predictor).learn([EncodedRow((), 2)], [10**7])
            refused.append(await served.predict("c " * 55))
            assert len(counting.encoded) == len(before) + 1
            assert served.state.backend.queue.held == held
        assert (await waiting).status_code == 200
    assert [code(response) for response in refused] == [(429, "queue_full")] * 2
    assert int(refused[0].headers["retry-after"]) >= 1
    assert refused[0].json()["error"]["limit"] == 100


async def test_one_caller_fills_queue_and_batch_and_another_still_gets_in(counting: Any) -> None:
    limits: dict[str, Any] = {"max_queue_rows": 8, "max_inputs": 4, "max_queue_tokens": 136, "batch_tokens": 136}
    async with serve(counting, **limits) as served, served.client_at("10.0.0.2") as other:
        async with served.occupied():
            served.state.scorer.tokenizing.estimate(served.predictor).learn([EncodedRow((), 2)], [10**7])
            waiting = [asyncio.create_task(served.predict(*["b " * 9] * 2)) for _ in range(4)]
            await served.until(lambda: served.state.backend.queue.rows == 8)
            assert served.state.backend.queue.tokens == served.state.backend.batch_tokens
            admitted = asyncio.create_task(other.post("/predict", json={"inputs": [{"text": "d"}]}))
            await served.until(lambda: served.state.backend.queue.rows == 9)
            refused = await served.predict("c")
        assert [(await task).status_code for task in (*waiting, admitted)] == [200] * 5
        assert (await served.predict("c")).status_code == 200
        assert served.state.backend.queue.held == NOTHING
    assert code(refused) == (429, "client_queue_full")
    assert (refused.json()["error"]["limit"], refused.json()["error"]["got"]) == (3, 9)


async def test_more_than_one_caller_may_hold_is_413_and_names_the_limit(counting: Any) -> None:
    counting.token_bounds = TokenBounds(8)
    async with serve(counting, max_queue_tokens=60) as served:
        counting.encoded.clear()
        refused = await served.predict(*["seven77 " * 20] * 2)
        assert counting.encoded == []  # 40 tokens at least
        known = await served.predict(*["b " * 8] * 2)
        assert len(counting.encoded) == 2  # 17 each, as it turned out
        assert served.state.backend.queue.held == NOTHING
    for response in (refused, known):
        assert code(response) == (413, "batch_too_large")
        assert response.json()["error"]["limit"] == 30
        assert "max_queue_tokens is 60" in response.json()["error"]["message"]


async def test_failed_requests_give_their_room_back() -> None:
    predictor = FakePredictor()
    predictor.poison[666] = KeyError("bug")
    async with serve(predictor) as served:
        failed = [await served.predict(*texts) for texts in (["a", "a " * 100], ["666"])]
        assert [response.status_code for response in failed] == [422, 500]
        assert (served.state.backend.queue.held, served.state.backend.queue.entries) == (NOTHING, frozenset())
