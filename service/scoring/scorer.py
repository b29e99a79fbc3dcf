"""A plan is scored: room reserved, prompts tokenised off the event loop, rows queued, the answer awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from service.scoring.admission import Amount, Reservation, TokenEstimate
from service.scoring.device_faults import DeviceHealth
from service.scoring.engine import Engine
from service.scoring.plan import Plan, Scored, order_counts
from service.scoring.tokenizing import encode_all, text_sizes
from service.telemetry.request_record import Stage

if TYPE_CHECKING:
    from laplora.answers.order_answers import OrderedRows
    from laplora.predictor import Predictor
    from laplora.prompts.rows import EncodedRow


class Scorer:
    """Takes plans to the device and back. Belongs to the event loop.

    Args:
        tokenizers: threads that render and tokenise prompts.
    """

    def __init__(self, engine: Engine, tokenizers: Executor) -> None:
        self._engine = engine
        self._tokenizers = tokenizers
        self._estimates: WeakKeyDictionary[Predictor, TokenEstimate] = WeakKeyDictionary()

    @property
    def batch_tokens(self) -> int:
        """Most padded tokens of one batch."""
        return self._engine.token_budget

    @property
    def health(self) -> DeviceHealth:
        """Whether the device answers."""
        return self._engine.health

    def token_estimate(self, predictor: Predictor) -> TokenEstimate:
        """Return what was learned of an artifact's tokens per byte."""
        return self._estimates.setdefault(predictor, TokenEstimate())

    async def score(self, plan: Plan) -> Scored:
        """Return the predictions of a plan's inputs, in order. Cancelling this frees the queued rows.

        With ``order_average`` an input is as many rows as it has orders: each takes its place in the queue, in any
        batch.

        Raises:
            InvalidInputError, TooManyTokensError: an input does not fit; the field names which.
            BatchTooLargeError, ClientQueueFullError, QueueFullError, DrainingError: the queue does not take it, most
                often before anything is tokenised.
            DeadlineError: the queue does not keep it.
            UnscorableInputError, DeviceMemoryError: the device has no answer for an input.
            DeviceFaultError: it has none for anybody any more.
        """
        predictor, inputs, record = plan.predictor, plan.inputs, plan.record
        orders = order_counts(inputs, order_average=plan.order_average)
        sizes = text_sizes(predictor, inputs, truncate=plan.truncate)
        reservation = self._reserve(plan, sizes, orders)
        begun = time.monotonic()
        try:
            asked: list[OrderedRows] = []
            try:
                if plan.order_average:

                    def orders_of(fields: Mapping[str, Any]) -> OrderedRows:
                        return predictor.encode_orders(fields, truncate=plan.truncate)

                    each = [size * count for size, count in zip(sizes, orders, strict=True)]
                    asked = await encode_all(self._tokenizers, orders_of, inputs, each, plan.deadline)
                    rows = [row for one in asked for row in one.rows]
                    owners = [i for i, one in enumerate(asked) for _ in one.rows]
                else:

                    def row_of(fields: Mapping[str, Any]) -> EncodedRow:
                        return predictor.encode(fields, truncate=plan.truncate)

                    rows = await encode_all(self._tokenizers, row_of, inputs, sizes, plan.deadline)
                    owners = list(range(len(rows)))
            finally:
                record.stages.append(Stage("tokenize", begun, time.monotonic()))
            self.token_estimate(predictor).learn_rows(rows, [sizes[owner] for owner in owners])
            ticket = self._engine.submit(
                predictor,
                rows,
                ask=plan.ask,
                deadline=plan.deadline,
                caller=plan.caller,
                inputs=owners,
                trace=record.trace,
                reservation=reservation,
            )
            try:
                predictions = await asyncio.wrap_future(ticket.future)
            finally:
                ticket.future.cancel()  # asyncio would do that too, but later
                now = time.monotonic()
                started = now if ticket.started is None else ticket.started
                record.stages.append(Stage("queue", ticket.submitted, started))
                if ticket.started is not None:
                    record.stages.append(Stage("compute", started, ticket.finished or now))
        finally:
            self._engine.admission.close(reservation)
        if not plan.order_average:
            return Scored(predictions)
        firsts = [k for k, owner in enumerate(owners) if k == 0 or owners[k - 1] != owner]
        loop = asyncio.get_running_loop()
        averaged = await loop.run_in_executor(self._tokenizers, predictor.average_orders, asked, predictions)
        return Scored(averaged, [predictions[k] for k in firsts])

    def _reserve(self, plan: Plan, sizes: Sequence[int], orders: Sequence[int]) -> Reservation:
        """Return room in the queue for prompts of these many bytes each, in these many orders each."""
        predictor = plan.predictor
        estimate, bounds, most = self.token_estimate(predictor), predictor.token_bounds, predictor.max_tokens
        prompts = list(zip(sizes, orders, strict=True))
        asked = Amount(
            rows=sum(orders),
            tokens=sum(count * estimate.tokens(size, most) for size, count in prompts),
            text_bytes=sum(count * size for size, count in prompts),
        )
        fewest = sum(count * min(most, bounds.fewest(size)) for size, count in prompts)
        return self._engine.reserve(plan.caller, asked, fewest_tokens=fewest)
