"""A plan is scored: it gets room in the queue, is tokenised off the event loop, waits, and has its answer."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor

from service.scoring.device import Device
from service.scoring.plan import Plan, Scored
from service.scoring.queue import Queue
from service.scoring.tokenizing import Tokenizing


class Scorer:
    """Takes plans to the device and back. Belongs to the event loop.

    Args:
        tokenizers: threads that render and tokenise prompts.
    """

    def __init__(self, queue: Queue, device: Device, tokenizers: Executor) -> None:
        self.device = device
        self.tokenizing = Tokenizing(tokenizers)
        self._queue = queue

    async def score(self, plan: Plan) -> Scored:
        """Return the predictions of a plan's inputs, in order. Cancelling this frees the queued rows.

        Raises:
            InvalidInputError, TooManyTokensError: an input does not fit; the field names which.
            BatchTooLargeError, ClientQueueFullError, QueueFullError, DrainingError: the queue does not take it, most
                often before anything is tokenised.
            DeadlineError: the queue does not keep it.
            UnscorableInputError, DeviceMemoryError: the device has no answer for an input.
            DeviceFaultError: it has none for anybody any more.
        """
        self.device.require_open()
        expected = self.tokenizing.expect(plan)
        self._queue.enter(plan, expected.amount, fewest_tokens=expected.fewest_tokens, now=time.monotonic())
        try:
            encoded = await self.tokenizing.encode(plan, expected)
            self._queue.put(plan, encoded.rows, encoded.owners, now=time.monotonic())
            predictions = await asyncio.wrap_future(plan.future)
        finally:
            plan.end(time.monotonic())
        if not plan.order_average:
            return Scored(predictions)
        firsts = [k for k, owner in enumerate(plan.owners) if k == 0 or plan.owners[k - 1] != owner]
        averaged = await self.tokenizing.average(plan, encoded, predictions)
        return Scored(averaged, [predictions[k] for k in firsts])
