"""The queue and the device with its real thread, and a predictor that can be held."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from device_rig import Rig, named, rig
from serving import FakePredictor

import service.scoring.queue
from laplora.errors import NonFiniteError
from laplora.prompts.rows import EncodedRow
from service.errors import DeadlineError, UnscorableInputError
from service.scoring.admission import Amount
from service.scoring.batching import next_batch
from service.scoring.model import SHORT_ROW_TOKENS


@pytest.fixture
def held() -> Iterator[Rig]:
    """A device that one row occupies until ``held.predictor.released`` is set."""
    with rig(limits=Amount(rows=12, tokens=64, text_bytes=1)) as held:
        held.occupy()
        yield held


def test_rows_of_several_plans_share_a_batch_where_they_are_asked_alike_and_one_thread_runs_all(held: Rig) -> None:
    other = FakePredictor("other")
    plans = [held.submit(10), held.submit(11), held.submit(12, predictive="map"), held.submit(13, predictor=other)]
    held.predictor.golden_error = ValueError("no")
    call = held.device.call(held.predictor.verify_golden)
    held.predictor.released.set()
    assert [named(plan) for plan in plans] == [[10], [11], [12], [13]]
    assert sorted(held.batches[1:]) == [("laplace", [10, 11]), ("map", [12])]
    assert len(other.batches) == 1
    with pytest.raises(ValueError, match="no"):
        call.result()
    assert held.predictor.threads | other.threads == {"laplora-device"}


@pytest.mark.parametrize(
    ("kind", "budget", "each", "batches"),
    [
        # Of labels that are texts the model runs their tokens too, of many rows far more than the budget of a batch.
        ("cpu", 16, 8, [[10, 11], [12, 13], [14]]),
        # On a GPU a row counts as the short rows that the budget was measured with.
        ("cuda", 2 * SHORT_ROW_TOKENS, 1, [[10, 11], [12, 13], [14]]),
        ("cpu", 2 * SHORT_ROW_TOKENS, 1, [[10, 11, 12, 13, 14]]),
    ],
)
def test_what_the_device_runs_for_a_row_makes_its_batch_and_its_prompt_fills_the_queue(
    held: Rig, monkeypatch: pytest.MonkeyPatch, kind: str, budget: int, each: int, batches: list[list[int]]
) -> None:
    held.device.token_budget, held.predictor.device.type = budget, kind
    monkeypatch.setattr(held.predictor, "device_tokens", lambda row: each)
    plan = held.submit(10, 11, 12, 13, 14)
    assert (held.queue.rows, held.queue.tokens, held.queue.held.tokens) == (5, 5, 5)
    held.predictor.released.set()
    assert named(plan) == [10, 11, 12, 13, 14]
    assert [rows for _, rows in held.batches[1:]] == batches
    assert [report.tokens for report in held.reports[1:]] == [len(rows) for rows in batches]
    held.assert_empty()


def test_rows_that_were_given_up_or_are_too_late_leave_at_once_never_run_and_harm_nobody(held: Rig) -> None:
    (running,) = held.queue.entries
    doomed, late, kept = held.submit(50, 51), held.submit(52, deadline=time.monotonic()), held.submit(60)
    assert running.future.cancel()
    assert (held.queue.rows, held.queue.tokens) == (4, 4)
    assert doomed.future.cancel()
    assert (held.queue.rows, held.queue.tokens) == (2, 2)
    gone, take = [held.submit(53, predictive="map"), held.submit(54, predictive="map")], held.queue.take

    def take_and_give_up(*arguments: Any) -> Any:
        batch = take(*arguments)
        for plan in gone:  # of a batch that was formed: nobody waits for it
            plan.future.cancel()
        return batch

    held.queue.take = take_and_give_up  # type: ignore[method-assign]
    held.predictor.released.set()
    with pytest.raises(DeadlineError):
        late.future.result()
    assert (named(kept), named(held.submit(7))) == ([60], [7])
    assert held.batches == [("laplace", [2]), ("laplace", [60]), ("laplace", [7])]


def test_nothing_waits_for_the_choice_of_a_batch(held: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop calls all of this. Were the batch chosen under the queue's lock, this test would not end."""
    choosing, go_on = threading.Event(), threading.Event()

    def slow(*args: Any, **options: Any) -> Any:
        choosing.set()
        go_on.wait()
        return next_batch(*args, **options)

    chosen, gone = held.submit(50), held.submit(60, 61)
    monkeypatch.setattr(service.scoring.queue, "next_batch", slow)
    held.predictor.released.set()
    choosing.wait()
    try:
        held.queue.check_room("anybody", 0.0)
        late = held.submit(70)
        assert gone.future.cancel()
        assert (held.queue.rows, held.queue.tokens, held.queue.held) == (2, 2, Amount(2, 2))
    finally:
        go_on.set()
    assert (named(chosen), named(late)) == ([50], [70])
    assert held.batches == [("laplace", [2]), ("laplace", [50]), ("laplace", [70])]
    held.assert_empty()


@pytest.mark.parametrize(
    ("error", "raised", "field"),
    [(NonFiniteError("NaN"), UnscorableInputError, "inputs.2"), (KeyError("bug"), KeyError, None)],
)
def test_a_failed_row_names_its_place_and_takes_its_plan_out_and_no_other(
    held: Rig, error: Exception, raised: type[Exception], field: str | None
) -> None:
    held.predictor.poison[666] = error
    before, bad, after = held.submit(30, 31), held.submit(4, 5, 666, 6, 7), held.submit(32)
    held.predictor.released.set()
    with pytest.raises(raised) as caught:
        bad.future.result()
    assert getattr(caught.value, "field", None) == field
    assert (named(before), named(after)) == ([30, 31], [32])
    held.assert_empty()


def test_retries_in_halves_leave_out_who_gave_up(held: Rig) -> None:
    plans = [held.submit(10 + i) for i in range(4)]
    tried: list[list[int]] = []

    def predict(rows: Sequence[EncodedRow], predictive: str, **options: object) -> list[Any]:
        tried.append([row.token_ids[0] for row in rows])
        if len(rows) == 4:
            assert plans[3].future.cancel()
        if len(rows) > 1:
            raise RuntimeError("CUDA out of memory")
        return FakePredictor.predict(held.predictor, rows, predictive)

    held.predictor.predict = predict
    held.predictor.released.set()
    assert [named(plan) for plan in plans[:3]] == [[10], [11], [12]]
    assert tried == [[10, 11, 12, 13], [10, 11], [10], [11], [12]]
