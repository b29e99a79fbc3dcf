"""Rows that fast defers: in the queue again, as rows of laplace, and in no hurry while others can fill their batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from serving import FakePredictor, serve

from laplora.errors import NonFiniteError
from service.errors import DeadlineError, UnscorableInputError
from service.scoring.admission import NOTHING, Amount
from service.scoring.batching import Waiting, next_batch
from service.scoring.engine import PATIENCE, Engine, Ticket
from service.scoring.fairness import Request, Turns
from service.scoring.plan import Ask
from service.telemetry.batch_report import BatchReport

FAR = float("inf")
DEFERRED = 700


@pytest.fixture
def predictor() -> Iterator[FakePredictor]:
    predictor = FakePredictor()
    predictor.deferred = {DEFERRED}
    yield predictor
    predictor.released.set()


@pytest.fixture
def reports() -> list[BatchReport]:
    return []


@pytest.fixture
def engine(predictor: FakePredictor, reports: list[BatchReport]) -> Iterator[Engine]:
    engine = Engine(token_budget=8, max_queue_tokens=640, max_queue_rows=320, on_batch=(reports.append,))
    engine.start()
    yield engine
    predictor.released.set()
    engine.stop(join_timeout_s=60)


def submit(
    engine: Engine, predictor: FakePredictor, *tokens: int, predictive: str = "fast", deadline: float = FAR
) -> Ticket:
    """Submit rows of two tokens, of which the second is 1 or the one that is deferred."""
    rows = [predictor.row(abs(token), DEFERRED if token < 0 else 1) for token in tokens]
    return engine.submit(predictor, rows, ask=Ask(predictive), deadline=deadline)  # type: ignore[arg-type]


def occupy(engine: Engine, predictor: FakePredictor) -> Ticket:
    predictor.hold()
    ticket = submit(engine, predictor, 2, predictive="map")
    predictor.entered.wait()
    return ticket


def batches(predictor: FakePredictor) -> list[tuple[str, list[int]]]:
    return [(name, [row.token_ids[0] for row in rows]) for name, rows in predictor.batches]


def test_each_row_has_the_answer_of_who_answers_it(engine: Engine, predictor: FakePredictor) -> None:
    ticket = submit(engine, predictor, 10, -11, 12)
    assert [p.predictive for p in ticket.future.result()] == ["fast", "laplace", "fast"]
    assert batches(predictor) == [("fast", [10, 11, 12]), ("laplace", [11])]
    assert ticket.queue_s >= 0
    assert (engine.queued_rows, engine.queued_tokens, engine.open_tickets) == (0, 0, 0)
    assert engine.admission.total == NOTHING


def test_deferred_rows_share_a_batch_with_rows_that_laplace_was_asked_for(
    engine: Engine, predictor: FakePredictor
) -> None:
    first = occupy(engine, predictor)
    tickets = [
        submit(engine, predictor, -10),
        submit(engine, predictor, -11),
        submit(engine, predictor, 20, 21, predictive="laplace"),
    ]
    predictor.released.set()
    for ticket in (first, *tickets):
        assert {p.predictive for p in ticket.future.result()} <= {"laplace", "map"}
    assert batches(predictor)[1:] == [("fast", [10, 11]), ("laplace", [20, 21, 10, 11])]


def test_deferred_rows_wait_until_they_fill_a_batch(engine: Engine, predictor: FakePredictor) -> None:
    """A batch has four rows, one in four is deferred."""
    first = occupy(engine, predictor)
    tickets = [submit(engine, predictor, *(100 + i, 200 + i, 300 + i, -(400 + i))) for i in range(5)]
    predictor.released.set()
    for ticket in (first, *tickets):
        ticket.future.result()
    assert [name for name, _ in batches(predictor)[1:]] == ["fast"] * 4 + ["laplace"] + ["fast", "laplace"]
    assert batches(predictor)[5] == ("laplace", [400, 401, 402, 403])


def test_deferred_rows_wait_for_so_many_batches_at_most(engine: Engine, predictor: FakePredictor) -> None:
    first = occupy(engine, predictor)
    rare = submit(engine, predictor, -10, 11, 12, 13)
    rest = [submit(engine, predictor, 20, 21, 22, 23) for _ in range(PATIENCE + 4)]
    predictor.released.set()
    for ticket in (first, rare, *rest):
        ticket.future.result()
    names = [name for name, _ in batches(predictor)[1:]]
    assert names.index("laplace") == PATIENCE + 1
    assert names.count("laplace") == 1


def test_deferred_rows_do_not_wait_past_half_of_their_time(engine: Engine, predictor: FakePredictor) -> None:
    first = occupy(engine, predictor)
    soon = submit(engine, predictor, -10, 11, 12, 13, deadline=time.monotonic() + 3600)
    soon.submitted -= 3600  # half of its time has gone
    rest = [submit(engine, predictor, 20, 21, 22, 23) for _ in range(PATIENCE)]
    predictor.released.set()
    for ticket in (first, soon, *rest):
        ticket.future.result()
    assert [name for name, _ in batches(predictor)[1:]].index("laplace") < PATIENCE


class Deferring(FakePredictor):
    """Holds the device after each pass of fast, until told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.deferred = {DEFERRED}
        self.passed, self.go_on = threading.Event(), threading.Event()

    def predict(self, rows, predictive=None, **options):  # type: ignore[no-untyped-def]
        if predictive == "laplace" and DEFERRED in {t for row in rows for t in row.token_ids}:
            self.passed.set()
            self.go_on.wait()
        return super().predict(rows, predictive, **options)


def test_deferred_rows_count_in_the_queue_and_leave_it_with_their_request(engine: Engine) -> None:
    predictor = Deferring()
    try:
        # The batch of laplace has room for four: the fifth waits.
        running = submit(engine, predictor, -10, -11, -12, -13)
        assert predictor.passed.wait(60)
        waiting = submit(engine, predictor, -20)
        assert engine.admission.total == Amount(1, 2)
        assert waiting.future.cancel()
        assert (engine.queued_rows, engine.admission.total) == (0, NOTHING)
        assert running.future.cancel()
    finally:
        predictor.go_on.set()
    assert submit(engine, predictor, 30).future.result()
    assert (engine.queued_rows, engine.open_tickets, engine.admission.total) == (0, 0, NOTHING)


def test_a_request_given_up_during_its_pass_is_not_queued_again(engine: Engine, predictor: FakePredictor) -> None:
    predictor.hold()
    gone = submit(engine, predictor, -10)
    predictor.entered.wait()
    assert gone.future.cancel()
    predictor.released.set()
    assert submit(engine, predictor, 7).future.result()
    assert [name for name, _ in batches(predictor)] == ["fast", "fast"]
    assert engine.admission.total == NOTHING


def test_deferred_rows_keep_their_deadline(engine: Engine, predictor: FakePredictor) -> None:
    original = predictor.predict_deferring

    def late(rows, **options):  # type: ignore[no-untyped-def]
        answers = original(rows, **options)
        late_ticket.deadline = time.monotonic() - 1
        return answers

    predictor.predict_deferring = late  # type: ignore[method-assign]
    predictor.hold()
    late_ticket = submit(engine, predictor, -10, 11)
    predictor.released.set()
    with pytest.raises(DeadlineError):
        late_ticket.future.result()
    assert engine.queued_rows == 0


def test_a_deferred_row_that_has_no_answer_fails_its_request_alone(engine: Engine, predictor: FakePredictor) -> None:
    original = predictor.predict

    def predict(rows, predictive=None, **options):  # type: ignore[no-untyped-def]
        if predictive == "laplace" and any(row.token_ids[0] == 66 for row in rows):
            raise NonFiniteError("NaN")
        return original(rows, predictive, **options)

    predictor.predict = predict  # type: ignore[method-assign]
    first = occupy(engine, predictor)
    bad, good = submit(engine, predictor, 5, -66), submit(engine, predictor, -6)
    predictor.released.set()
    with pytest.raises(UnscorableInputError) as caught:
        bad.future.result()
    assert caught.value.field == "inputs.1"
    assert [p.predictive for p in good.future.result()] == ["laplace"]
    assert first.future.result()


def test_a_row_of_its_own_batch_waits_for_nobody(predictor: FakePredictor) -> None:
    """With a budget of one token every row runs alone, and there is nothing to wait for."""
    engine = Engine(token_budget=1, max_queue_tokens=640, max_queue_rows=320)
    engine.start()
    first = occupy(engine, predictor)
    tickets = [submit(engine, predictor, -10), *(submit(engine, predictor, 20) for _ in range(4))]
    predictor.released.set()
    for ticket in (first, *tickets):
        ticket.future.result()
    engine.stop(join_timeout_s=60)
    assert [name for name, _ in batches(predictor)].index("laplace") <= 3


def test_patient_rows_go_along_with_others_and_alone_where_nothing_else_waits() -> None:
    asked, deferred, other = Request("a", "laplace"), Request("b", "laplace"), Request("c", "map")
    rows = [Waiting(3, deferred), Waiting(3, other), Waiting(3, asked)]
    batch, turns = next_batch(rows, Turns(), token_budget=100, patient={0})
    assert batch == [1]
    batch, _ = next_batch([rows[0], rows[2]], turns, token_budget=100, patient={0})
    assert batch == [0, 1]
    assert next_batch(rows[:1], Turns(), token_budget=100, patient={0})[0] == [0]


@pytest.mark.anyio
async def test_served_answers_say_who_answered() -> None:
    predictor = FakePredictor()
    predictor.deferred = {DEFERRED}
    async with serve(predictor) as served:
        response = await served.predict("fine 7", f"fine {DEFERRED}", options={"mode": "fast"})
        metrics = (await served.client.get("/metrics")).text.splitlines()
    assert [p["answered_by"] for p in response.json()["predictions"]] == ["fast", "laplace"]
    assert 'laplora_batches_total{outcome="ok",predictive="laplace"} 1.0' in metrics
    assert 'laplora_answers_total{answered_by="laplace",predictive="fast"} 1.0' in metrics
