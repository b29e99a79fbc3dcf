"""Which rows share a batch; nobody starves, shares are equal by weight, and being away earns nothing: by simulation."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.scoring.batching import Waiting, form_batch, next_batch, padded_tokens
from service.scoring.fairness import JOB_WEIGHT, MOST_AHEAD, Request, Turns, weight_of


def rows(*lengths: int) -> list[Waiting]:
    request = Request("a", "laplace")
    return [Waiting(length, request) for length in lengths]


def test_rows_of_like_length_go_with_the_seed_and_those_of_a_later_tier_take_only_the_room_that_is_left() -> None:
    assert form_batch(rows(10, 2, 11, 9, 30), seed=0, token_budget=33) == [3, 0, 2]
    assert form_batch(rows(3, 3, 3, 3, 3), seed=2, token_budget=9) == [0, 1, 2], "in order of arrival"
    waiting = rows(10, 10, 10, 8, 6)
    assert form_batch(waiting, seed=0, token_budget=30) == [0, 1, 2]
    assert form_batch(waiting, seed=0, token_budget=30, tiers=[{0, 3, 4}]) == [4, 3, 0]
    assert form_batch(waiting, seed=0, token_budget=40, tiers=[{4}, {2, 3}]) == [4, 3, 0, 2]


requests = st.builds(Request, st.sampled_from(["a", "b", "job:c"]), st.sampled_from(["map", "laplace"]))


@st.composite
def waiting_rows(draw: st.DrawFn) -> list[Waiting]:
    known = draw(st.lists(requests, min_size=1, max_size=6))
    return draw(st.lists(st.builds(Waiting, st.integers(1, 64), st.sampled_from(known)), min_size=1))


@given(waiting_rows(), st.integers(1, 200), st.data())
def test_every_batch_keeps_its_promises(waiting: list[Waiting], budget: int, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, len(waiting) - 1))
    tiers = data.draw(st.lists(st.sets(st.integers(0, len(waiting) - 1)), max_size=2))
    batch = form_batch(waiting, seed=seed, token_budget=budget, tiers=tiers)
    lengths = [waiting[i].tokens for i in batch]
    assert seed in batch
    assert len(set(batch)) == len(batch)
    assert {waiting[i].request.group for i in batch} == {waiting[seed].request.group}
    assert lengths == sorted(lengths)
    assert padded_tokens(lengths) <= budget or batch == [seed]
    # No room is left that a waiting row could use.
    for i, row in enumerate(waiting):
        if i not in batch and row.request.group == waiting[seed].request.group:
            assert padded_tokens([*lengths, row.tokens]) > budget


BUDGET = 128


class Queue:
    """What the queue does with rows, without a device: one batch after another."""

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget = budget
        self.waiting: list[Waiting] = []
        self.turns = Turns()
        self.tokens: Counter[str] = Counter()

    def add(self, request: Request, lengths: Sequence[int]) -> Request:
        self.waiting += [Waiting(length, request) for length in lengths]
        return request

    def run(self) -> list[Waiting]:
        chosen, self.turns = next_batch(self.waiting, self.turns, token_budget=self.budget)
        batch = [self.waiting[i] for i in chosen]
        self.waiting = [row for i, row in enumerate(self.waiting) if i not in set(chosen)]
        for row in batch:
            self.tokens[row.request.caller] += row.tokens
        return batch

    def batches_until(self, request: Request) -> int:
        """Return how many batches ran up to the first that holds a row of this request."""
        count = 1
        while all(row.request is not request for row in self.run()):
            count += 1
        return count

    def left(self, request: Request) -> int:
        return sum(row.request is request for row in self.waiting)


@pytest.mark.parametrize(("caller", "group"), [("b", "laplace"), ("b", "map"), ("a", "laplace"), ("a", "map")])
def test_a_long_request_keeps_a_small_one_waiting_for_the_running_batch_alone(caller: str, group: str) -> None:
    queue = Queue()
    long = queue.add(Request("a", "laplace"), [60] * 2000)
    for _ in range(20):
        queue.run()
    small = queue.add(Request(caller, group), [7])  # of another length: it fills nobody's batch
    assert queue.batches_until(small) == 1
    assert queue.left(long) > 1800


def test_kinds_of_one_caller_take_turns_and_requests_of_one_kind_go_in_order_of_arrival() -> None:
    queue = Queue(16)
    for group in ("laplace", "map"):
        queue.add(Request("a", group), [14] * 4)
    assert [queue.run()[0].request.group for _ in range(8)] == ["laplace", "map"] * 4
    queue = Queue(30)
    for _ in range(3):
        queue.add(Request("a", "map"), [10] * 3)
    rows = list(queue.waiting)
    assert [row for _ in range(3) for row in queue.run()] == rows


def test_who_has_one_row_in_each_batch_pays_for_batches() -> None:
    """Sixteen kinds of answer, a row of each, beside another's full batches; a batch costs 64 tokens by itself."""
    queue, cost = Queue(512), Counter[str]()
    for batch in range(200):
        for kind in range(16):
            if not any(row.request.group == kind for row in queue.waiting):
                queue.add(Request("a", kind), [10])
        if sum(row.request.caller == "b" for row in queue.waiting) < 100:
            queue.add(Request("b", "laplace"), [10] * 100)
        ran = queue.run()
        (caller,) = {row.request.caller for row in ran}
        assert caller == "b" or len(ran) == 1, batch
        cost[caller] += 64 + sum(row.tokens for row in ran)
    assert abs(cost["a"] - cost["b"]) <= (MOST_AHEAD + 1) * (64 + queue.budget)


def test_an_idle_caller_gains_no_credit() -> None:
    queue = Queue(100)
    away, there = Request("away", "map"), Request("there", "map")
    queue.add(away, [10] * 10)
    queue.add(there, [10] * 1000)
    for _ in range(50):
        queue.run()
    queue.add(away, [10] * 1000)
    before = queue.tokens.copy()
    for _ in range(20):
        queue.run()
    got = queue.tokens - before
    assert abs(got["away"] - got["there"]) <= 2 * 100


lengths = st.lists(st.integers(1, BUDGET // 8), min_size=4, max_size=12)


@pytest.mark.slow
@given(lengths, lengths, st.sampled_from(["b", "job:b"]), st.integers(0, 2**32))
@hypothesis_settings(max_examples=25)
def test_two_greedy_callers_share_by_weight(own: list[int], others: list[int], second: str, seed: int) -> None:
    """Tokens over weight differ by what one can be ahead of the clock and the batch under way, whatever the lengths."""
    rng = random.Random(seed)
    queue = Queue()
    given_to = {"a": own, second: others}
    for _ in range(60):
        for caller, pool in given_to.items():
            # New requests all the time, of one row or many: a caller gets nothing by splitting what it asks for.
            while sum(row.request.caller == caller for row in queue.waiting) < BUDGET // min(pool) + 1:
                request = Request(caller, "map")
                queue.add(request, [rng.choice(pool) for _ in range(rng.choice((1, 1, 40)))])
        queue.run()
        virtual = [queue.tokens[caller] / weight_of(caller) for caller in given_to]
        assert abs(virtual[0] - virtual[1]) <= (MOST_AHEAD + 1) * BUDGET / min(map(weight_of, given_to))


def test_a_job_gets_a_fifth_beside_one_caller_and_all_of_it_alone() -> None:
    queue = Queue()
    queue.add(Request("job:1", "map"), [8] * 2000)
    queue.add(Request("a", "map"), [8] * 800)
    while any(row.request.caller == "a" for row in queue.waiting):
        queue.run()
    fifth = queue.tokens.total() * JOB_WEIGHT / (1 + JOB_WEIGHT)
    assert abs(queue.tokens["job:1"] - fifth) <= MOST_AHEAD * BUDGET
    before = queue.tokens["job:1"]
    queue.run()
    assert queue.tokens["job:1"] - before == BUDGET


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c", "d", "job:e"]), st.sampled_from(["map", "laplace"]), lengths),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 12),
    st.sampled_from(["new", "job:new"]),
)
@hypothesis_settings(max_examples=60)
def test_a_new_caller_waits_for_a_few_batches_of_each_other_caller(
    backlog: list[tuple[str, str, list[int]]], before: int, name: str
) -> None:
    queue = Queue(64)
    for caller, group, pool in backlog:
        queue.add(Request(caller, group), pool * 20)
    for _ in range(min(before, len(queue.waiting) // 8)):
        if queue.waiting:  # one batch may hold all short rows
            queue.run()
    others = {row.request.caller for row in queue.waiting}
    new = queue.add(Request(name, "other kind"), [5])
    assert queue.batches_until(new) <= 1 + 3 * len(others)


@pytest.mark.parametrize(
    ("request_", "newcomer", "beside", "share"),
    [
        # As many people behind one address: seven requests share the device.
        (Request("a", "map"), "a", 6, 1 / 7),
        (Request("job:1", "map"), "caller {}", 4, JOB_WEIGHT / (4 + JOB_WEIGHT)),
    ],
)
def test_a_long_request_goes_on_beside_a_stream_of_newcomers(
    request_: Request, newcomer: str, beside: int, share: float
) -> None:
    """Each batch could be filled with requests that just came, of its caller or, beside a job, of new callers."""
    queue = Queue(64)
    queue.add(request_, [30] * 20)
    batches = 0
    while queue.left(request_):
        while len(queue.waiting) - queue.left(request_) < beside:
            queue.add(Request(newcomer.format((batches, len(queue.waiting))), "map"), [16])
        queue.run()
        batches += 1
        # Its share of 64 tokens a batch, and as much again for turns that come late.
        assert batches <= 2 * 20 * 30 / share / 64


def test_nothing_is_remembered_of_who_is_gone() -> None:
    queue = Queue(64)
    queue.add(Request("stays", "map"), [16] * 200)
    for i in range(100):
        queue.add(Request(f"caller {i}", f"kind {i}"), [16])
    for _ in range(80):
        queue.run()
        queue.waiting = [row for row in queue.waiting if row.request.caller != "caller 99"]  # one gives up
    while len({row.request.caller for row in queue.waiting}) > 1:
        queue.run()
    for _ in range(4):
        queue.run()
    assert set(queue.turns.given) == {"stays"}
    assert set(queue.turns.inner) == {"stays"}
