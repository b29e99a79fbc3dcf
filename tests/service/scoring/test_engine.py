"""The engine with real threads and a predictor that can be held."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from serving import FakePredictor

from laplora.errors import NonFiniteError
from laplora.prompts.rows import EncodedRow
from service.errors import (
    BatchTooLargeError,
    DeadlineError,
    DeviceMemoryError,
    DrainingError,
    QueueFullError,
    UnscorableInputError,
)
from service.scoring.admission import NOTHING, Amount
from service.scoring.engine import Engine, Ticket
from service.scoring.plan import Ask
from service.telemetry.batch_report import BatchReport

FAR = float("inf")


@pytest.fixture
def predictor() -> Iterator[FakePredictor]:
    predictor = FakePredictor()
    yield predictor
    predictor.released.set()


@pytest.fixture
def reports() -> list[BatchReport]:
    return []


@pytest.fixture
def engine(predictor: FakePredictor, reports: list[BatchReport]) -> Iterator[Engine]:
    engine = Engine(token_budget=16, max_queue_tokens=64, max_queue_rows=12, on_batch=(reports.append,))
    engine.start()
    yield engine
    predictor.released.set()
    engine.stop(join_timeout_s=60)


def submit(engine: Engine, predictor: FakePredictor, *rows: EncodedRow, predictive: str = "laplace") -> Ticket:
    return engine.submit(predictor, rows, ask=Ask(predictive), deadline=FAR)  # type: ignore[arg-type]


def occupy(engine: Engine, predictor: FakePredictor) -> Ticket:
    """Put a row on the device that stays there until released."""
    predictor.hold()
    ticket = submit(engine, predictor, predictor.row(2))
    predictor.entered.wait()
    return ticket


def named(ticket: Ticket) -> list[int]:
    """Return the largest token of each answered row."""
    return [round(p.map_probs[0] * 100_000) for p in ticket.future.result()]


def test_answers_keep_the_order_of_rows_across_batches(engine: Engine, predictor: FakePredictor) -> None:
    rows = [EncodedRow((1,) * (9 - i) + (100 + i,), 2) for i in range(8)]
    assert named(submit(engine, predictor, *rows)) == [100 + i for i in range(8)]
    assert len(predictor.batches) > 1


def test_rows_of_several_requests_share_a_batch(engine: Engine, predictor: FakePredictor) -> None:
    first = occupy(engine, predictor)
    others = [submit(engine, predictor, predictor.row(10 + i)) for i in range(4)]
    predictor.released.set()
    assert [named(t) for t in (first, *others)] == [[2], [10], [11], [12], [13]]
    assert [len(rows) for _, rows in predictor.batches] == [1, 4]


def test_map_rows_go_in_their_own_batches(engine: Engine, predictor: FakePredictor) -> None:
    first = occupy(engine, predictor)
    tickets = [submit(engine, predictor, predictor.row(10 + i), predictive=("map", "laplace")[i % 2]) for i in range(4)]
    predictor.released.set()
    for ticket in (first, *tickets):
        ticket.future.result()
    assert [(name, len(rows)) for name, rows in predictor.batches] == [("laplace", 1), ("map", 2), ("laplace", 2)]


def test_map_rows_wait_for_one_laplace_batch_at_most(engine: Engine, predictor: FakePredictor) -> None:
    first = occupy(engine, predictor)
    laplace = [submit(engine, predictor, EncodedRow((1,) * 14, 2)) for _ in range(3)]
    cheap = submit(engine, predictor, predictor.row(9), predictive="map")
    predictor.released.set()
    for ticket in (first, *laplace, cheap):
        ticket.future.result()
    assert [name for name, _ in predictor.batches] == ["laplace", "map", "laplace", "laplace", "laplace"]


def test_laplace_rows_are_not_starved_by_map_rows(engine: Engine, predictor: FakePredictor) -> None:
    first = occupy(engine, predictor)
    cheap = [submit(engine, predictor, EncodedRow((1,) * 14, 2), predictive="map") for _ in range(3)]
    dear = submit(engine, predictor, predictor.row(9))
    predictor.released.set()
    for ticket in (first, *cheap, dear):
        ticket.future.result()
    assert [name for name, _ in predictor.batches] == ["laplace", "map", "laplace", "map", "map"]


def test_one_thread_runs_everything(engine: Engine, predictor: FakePredictor) -> None:
    for i in range(3):
        named(submit(engine, predictor, predictor.row(i)))
    engine.call(predictor.verify_golden).result()
    assert predictor.threads == {"laplora-device"}


def test_call_passes_errors_on(engine: Engine, predictor: FakePredictor) -> None:
    predictor.golden_error = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        engine.call(predictor.verify_golden).result()


def test_cancelled_rows_leave_the_queue_at_once(engine: Engine, predictor: FakePredictor) -> None:
    first = occupy(engine, predictor)
    doomed = submit(engine, predictor, predictor.row(50), predictor.row(51))
    kept = submit(engine, predictor, predictor.row(60))
    assert (engine.queued_rows, engine.queued_tokens) == (3, 3)
    assert doomed.future.cancel()
    assert (engine.queued_rows, engine.queued_tokens) == (1, 1)
    predictor.released.set()
    assert named(first) == [2]
    assert named(kept) == [60]
    assert all(row.token_ids[0] not in (50, 51) for _, rows in predictor.batches for row in rows)


def test_cancelling_what_runs_harms_nobody(engine: Engine, predictor: FakePredictor) -> None:
    first = occupy(engine, predictor)
    assert first.future.cancel()
    predictor.released.set()
    assert named(submit(engine, predictor, predictor.row(7))) == [7]
    assert engine.open_tickets == 0


def test_expired_rows_are_skipped(engine: Engine, predictor: FakePredictor) -> None:
    occupy(engine, predictor)
    late = engine.submit(predictor, [predictor.row(50)], ask=Ask("laplace"), deadline=time.monotonic())
    predictor.released.set()
    with pytest.raises(DeadlineError):
        late.future.result()
    assert named(submit(engine, predictor, predictor.row(7))) == [7]
    assert all(row.token_ids != (50,) for _, rows in predictor.batches for row in rows)


def test_rows_leave_at_their_deadline_however_long_the_device_is_busy(engine: Engine, predictor: FakePredictor) -> None:
    occupy(engine, predictor)
    later = engine.submit(predictor, [predictor.row(51)], ask=Ask("laplace"), deadline=time.monotonic() + 3600)
    soon = engine.submit(predictor, [predictor.row(50)], ask=Ask("laplace"), deadline=time.monotonic() + 0.02)
    with pytest.raises(DeadlineError):  # nobody lets the device go on
        soon.future.result()
    assert engine.queued_rows == 1
    assert engine.admission.total == Amount(1, 1)
    predictor.released.set()
    assert named(later) == [51]


def test_full_queue_refuses_rows_and_tokens(engine: Engine, predictor: FakePredictor) -> None:
    occupy(engine, predictor)
    submit(engine, predictor, *[predictor.row(3)] * 11)
    with pytest.raises(QueueFullError) as rows:
        submit(engine, predictor, predictor.row(3), predictor.row(3))
    assert (rows.value.limit, rows.value.got) == (12, 13)
    assert (rows.value.retry_after_s or 0) >= 1
    with pytest.raises(QueueFullError) as tokens:
        submit(engine, predictor, predictor.row(*[3] * 60))
    assert (tokens.value.limit, tokens.value.got) == (64, 71)
    assert engine.queued_rows == 11


def test_request_that_could_never_wait_is_refused_for_good(engine: Engine, predictor: FakePredictor) -> None:
    with pytest.raises(BatchTooLargeError, match="max_queue_rows"):
        submit(engine, predictor, *[predictor.row(3)] * 13)
    with pytest.raises(BatchTooLargeError, match="max_queue_tokens"):
        submit(engine, predictor, predictor.row(*[3] * 65))


@pytest.mark.parametrize("poison_position", range(5))
def test_poison_row_fails_alone(engine: Engine, predictor: FakePredictor, poison_position: int) -> None:
    predictor.poison[666] = NonFiniteError("NaN")
    first = occupy(engine, predictor)
    tickets = [submit(engine, predictor, predictor.row(666 if i == poison_position else 10 + i)) for i in range(5)]
    predictor.released.set()
    assert named(first) == [2]
    for i, ticket in enumerate(tickets):
        if i == poison_position:
            with pytest.raises(UnscorableInputError):
                ticket.future.result()
        else:
            assert named(ticket) == [10 + i]


def test_poison_row_names_its_place_in_its_request(engine: Engine, predictor: FakePredictor) -> None:
    predictor.poison[666] = NonFiniteError("NaN")
    ticket = submit(engine, predictor, predictor.row(4), predictor.row(5), predictor.row(666), predictor.row(6))
    with pytest.raises(UnscorableInputError) as caught:
        ticket.future.result()
    assert caught.value.field == "inputs.2"


def test_unknown_failure_of_one_row_comes_through_as_it_is(engine: Engine, predictor: FakePredictor) -> None:
    predictor.poison[666] = KeyError("bug")
    bad, good = submit(engine, predictor, predictor.row(666)), submit(engine, predictor, predictor.row(8))
    with pytest.raises(KeyError):
        bad.future.result()
    assert named(good) == [8]


def test_out_of_memory_splits_until_it_fits(
    engine: Engine, predictor: FakePredictor, reports: list[BatchReport]
) -> None:
    predictor.most_rows = 2
    assert named(submit(engine, predictor, *[predictor.row(10 + i) for i in range(8)])) == [10 + i for i in range(8)]
    assert {r.rows for r in reports if r.outcome == "ok"} == {2}
    assert {r.outcome for r in reports} == {"ok", "out_of_memory"}


def test_retries_in_halves_leave_out_who_gave_up(engine: Engine, predictor: FakePredictor) -> None:
    first = occupy(engine, predictor)
    tickets = [submit(engine, predictor, predictor.row(10 + i)) for i in range(4)]
    tried: list[list[int]] = []

    def predict(rows: Sequence[EncodedRow], predictive: str, **options: object) -> list[Any]:
        tried.append([row.token_ids[0] for row in rows])
        if len(rows) == 4:
            assert tickets[3].future.cancel()
        if len(rows) > 1:
            raise RuntimeError("CUDA out of memory")
        return FakePredictor.predict(predictor, rows, predictive)

    predictor.predict = predict  # type: ignore[method-assign,assignment]
    predictor.released.set()
    assert [named(ticket) for ticket in (first, *tickets[:3])] == [[2], [10], [11], [12]]
    assert tried == [[10, 11, 12, 13], [10, 11], [10], [11], [12]]


def test_a_failed_row_takes_its_request_out_and_nobody_else(engine: Engine, predictor: FakePredictor) -> None:
    predictor.poison[666] = NonFiniteError("NaN")
    first = occupy(engine, predictor)
    bad = submit(engine, predictor, predictor.row(666), *[predictor.row(1, i) for i in range(20, 27)])
    good = submit(engine, predictor, predictor.row(30))
    predictor.released.set()
    with pytest.raises(UnscorableInputError):
        bad.future.result()
    assert (named(first), named(good)) == ([2], [30])
    assert (engine.queued_rows, engine.admission.total) == (0, NOTHING)


def test_a_batch_that_nobody_waits_for_does_not_run(engine: Engine, predictor: FakePredictor) -> None:
    first = occupy(engine, predictor)
    gone = [submit(engine, predictor, predictor.row(50 + i)) for i in range(2)]
    original = engine._take_batch

    def take_and_give_up() -> Any:
        batch = original()
        for ticket in gone:
            ticket.future.cancel()
        return batch

    engine._take_batch = take_and_give_up  # type: ignore[method-assign]
    predictor.released.set()
    assert named(first) == [2]
    assert named(submit(engine, predictor, predictor.row(7))) == [7]
    assert [row.token_ids for _, rows in predictor.batches for row in rows] == [(2,), (7,)]


def test_one_row_that_does_not_fit_says_so(engine: Engine, predictor: FakePredictor) -> None:
    predictor.most_rows = 0
    ticket = submit(engine, predictor, predictor.row(4))
    with pytest.raises(DeviceMemoryError):
        ticket.future.result()


def test_wrong_number_of_answers_is_a_failure(engine: Engine, predictor: FakePredictor) -> None:
    predictor.predict = lambda rows, predictive, also, target_risk: []  # type: ignore[method-assign,assignment,misc]
    ticket = submit(engine, predictor, predictor.row(4))
    with pytest.raises(RuntimeError, match="0 answers for 1 rows"):
        ticket.future.result()


def test_draining_refuses_new_and_serves_old(engine: Engine, predictor: FakePredictor) -> None:
    first = occupy(engine, predictor)
    waiting = submit(engine, predictor, predictor.row(5))
    engine.drain()
    with pytest.raises(DrainingError):
        submit(engine, predictor, predictor.row(6))
    with pytest.raises(DrainingError):
        engine.call(lambda: None)
    predictor.released.set()
    assert named(first) == [2]
    assert named(waiting) == [5]


def test_stopping_answers_everyone(engine: Engine, predictor: FakePredictor) -> None:
    first = occupy(engine, predictor)
    waiting, call = submit(engine, predictor, predictor.row(5)), engine.call(lambda: None)
    engine.stop()
    for future in (first.future, waiting.future, call):
        with pytest.raises(DrainingError):
            future.result()


def test_two_predictors_never_share_a_batch(engine: Engine, predictor: FakePredictor) -> None:
    other = FakePredictor("other")
    first = occupy(engine, predictor)
    mine, theirs = submit(engine, predictor, predictor.row(5)), submit(engine, other, other.row(6))
    predictor.released.set()
    assert [named(t) for t in (first, mine, theirs)] == [[2], [5], [6]]
    assert len(other.batches) == 1


def test_many_threads_each_get_their_own_answers(engine: Engine, predictor: FakePredictor) -> None:
    wrong: list[int] = []

    def client(number: int) -> None:
        for i in range(20):
            token = 1000 + 100 * number + i
            while True:
                try:
                    ticket = submit(engine, predictor, predictor.row(token), predictor.row(1, token + 50))
                    break
                except QueueFullError:
                    time.sleep(0.001)
            if named(ticket) != [token, token + 50]:
                wrong.append(token)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert (engine.queued_rows, engine.queued_tokens, engine.open_tickets) == (0, 0, 0)
    assert engine.admission.total == NOTHING


def test_times_add_up(engine: Engine, predictor: FakePredictor) -> None:
    ticket = submit(engine, predictor, predictor.row(4))
    ticket.future.result()
    assert ticket.queue_s >= 0
    assert ticket.compute_s >= 0
