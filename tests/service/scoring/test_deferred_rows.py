"""Rows that fast defers: in the queue again, as rows of laplace, and in no hurry while others can fill their batch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import pytest
from device_rig import Rig, rig
from serving import FakePredictor

from laplora.errors import NonFiniteError
from laplora.prompts.rows import EncodedRow
from service.errors import DeadlineError, UnscorableInputError
from service.scoring.admission import NOTHING, Amount
from service.scoring.batching import Waiting, next_batch
from service.scoring.entry import Entry
from service.scoring.fairness import Request, Turns
from service.scoring.queue import PATIENCE, Queue
from service.scoring.ticket import Ask, Ticket

DEFERRED = 700
LIMITS = Amount(rows=320, tokens=640, text_bytes=0)


@pytest.fixture
def device() -> Iterator[Rig]:
    with rig(token_budget=8, limits=LIMITS) as device:
        device.predictor.deferred = {DEFERRED}
        yield device


def submit(device: Rig, *tokens: int, predictive: str = "fast", deadline: float = math.inf) -> Entry:
    """Submit rows of two tokens; the second is the one that is deferred where the first is negative."""
    rows = [device.predictor.row(abs(token), DEFERRED if token < 0 else 1) for token in tokens]
    return device.submit(*rows, predictive=predictive, deadline=deadline)


def released(device: Rig, *entries: Entry) -> list[str]:
    """Let the device go on; return the predictives of its batches after the first, once the requests are answered."""
    device.predictor.released.set()
    for entry in entries:
        entry.future.result()
    return [name for name, _ in device.batches[1:]]


def test_each_row_has_the_answer_of_who_answers_it(device: Rig) -> None:
    plan = submit(device, 10, -11, 12)
    assert [p.predictive for p in plan.future.result()] == ["fast", "laplace", "fast"]
    assert device.batches == [("fast", [10, 11, 12]), ("laplace", [11])]
    device.assert_empty()


def test_deferred_rows_share_a_batch_with_rows_that_laplace_was_asked_for(device: Rig) -> None:
    device.occupy("map")
    plans = [submit(device, -10), submit(device, -11), submit(device, 20, 21, predictive="laplace")]
    released(device, *plans)
    assert {p.predictive for plan in plans for p in plan.future.result()} == {"laplace"}
    assert device.batches[1:] == [("fast", [10, 11]), ("laplace", [20, 21, 10, 11])]


def test_deferred_rows_wait_until_they_fill_a_batch(device: Rig) -> None:
    """A batch has four rows, one in four is deferred."""
    device.occupy("map")
    plans = [submit(device, 100 + i, 200 + i, 300 + i, -(400 + i)) for i in range(5)]
    assert released(device, *plans) == ["fast"] * 4 + ["laplace"] + ["fast", "laplace"]
    assert device.batches[5] == ("laplace", [400, 401, 402, 403])


@pytest.mark.parametrize("time_gone_s", [0, 3600])
def test_deferred_rows_wait_for_so_many_batches_and_half_of_their_time_at_most(device: Rig, time_gone_s: float) -> None:
    device.occupy("map")
    rare = submit(device, -10, 11, 12, 13, deadline=time.monotonic() + 3600)
    assert rare.queued_at is not None
    rare.queued_at -= time_gone_s
    rest = [submit(device, 20, 21, 22, 23) for _ in range(PATIENCE + 4)]
    names = released(device, rare, *rest)
    assert names.count("laplace") == 1
    if time_gone_s:
        assert names.index("laplace") < PATIENCE
    else:
        assert names.index("laplace") == PATIENCE + 1


def test_deferred_rows_count_in_the_queue_and_leave_it_with_their_request() -> None:
    queue, entry, predictor = Queue(LIMITS), Entry("a"), FakePredictor()
    queue.enter(entry, Amount(1, 2), fewest_tokens=2, now=0.0)
    ticket = Ticket(predictor.artifact.digest, (EncodedRow((10, DEFERRED), 2),), (0,), Ask("fast"), "a")
    queue.put(entry, ticket, predictor, now=0.0)
    batch = queue.take(0.0, 8)
    assert (queue.rows, queue.held) == (0, NOTHING)
    queue.put_back(batch)
    assert (queue.rows, queue.tokens, queue.held) == (1, 2, Amount(1, 2))
    assert entry.future.cancel()
    queue.put_back(batch)  # as of a request that is given up during its pass
    assert (queue.rows, queue.tokens, queue.held, queue.entries) == (0, 0, NOTHING, frozenset())


def test_deferred_rows_keep_their_deadline(device: Rig) -> None:
    device.predictor.hold()
    late = submit(device, -10, 11)
    device.predictor.entered.wait()
    late.deadline = time.monotonic()
    device.predictor.released.set()
    with pytest.raises(DeadlineError):
        late.future.result()
    device.assert_empty()


def test_a_deferred_row_that_has_no_answer_fails_its_request_alone(device: Rig) -> None:
    predict = device.predictor.predict

    def no_answer(rows, predictive=None, **options):  # type: ignore[no-untyped-def]
        if predictive == "laplace" and any(row.token_ids[0] == 66 for row in rows):
            raise NonFiniteError("NaN")
        return predict(rows, predictive, **options)

    device.predictor.predict = no_answer
    device.occupy("map")
    bad, good = submit(device, 5, -66), submit(device, -6)
    released(device, good)
    with pytest.raises(UnscorableInputError) as caught:
        bad.future.result()
    assert caught.value.field == "inputs.1"
    assert [p.predictive for p in good.future.result()] == ["laplace"]


def test_patient_rows_go_along_with_others_and_alone_where_nothing_else_waits() -> None:
    asked, deferred, other = Request("a", "laplace"), Request("b", "laplace"), Request("c", "map")
    rows = [Waiting(3, deferred), Waiting(3, other), Waiting(3, asked)]
    batch, turns = next_batch(rows, Turns(), token_budget=100, patient={0})
    assert batch == [1]
    batch, _ = next_batch([rows[0], rows[2]], turns, token_budget=100, patient={0})
    assert batch == [0, 1]
    assert next_batch(rows[:1], Turns(), token_budget=100, patient={0})[0] == [0]
