"""A plan is scored: it gets room, is tokenised off the event loop, and its ticket goes to whoever has the weights."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from service.scoring.backend import Backend
from service.scoring.entry import Entry
from service.scoring.plan import Plan
from service.scoring.ticket import Ticket
from service.scoring.tokenizing import Tokenizing

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction

#: Gives the inputs of a plan the answers of another model, which its artifact corrects.
Answered = Callable[[Plan], Awaitable[None]]


class Scorer:
    """Takes plans to the backend and back. Belongs to the event loop.

    Args:
        tokenizers: threads that render and tokenise prompts.
        answered: for artifacts that correct another model.
    """

    def __init__(self, backend: Backend, tokenizers: Executor, answered: Answered | None = None) -> None:
        self.backend, self._answered = backend, answered
        self.tokenizing = Tokenizing(tokenizers)

    async def score(self, plan: Plan) -> list[Prediction]:
        """Return the predictions of a plan's inputs, in order. Cancelling this frees the queued rows.

        Raises:
            InvalidInputError, TooManyTokensError: an input does not fit; the field names which.
            BatchTooLargeError, ClientQueueFullError, QueueFullError, DrainingError: the queue does not take it, most
                often before anything is tokenised.
            DeadlineError: the queue does not keep it.
            UpstreamError: another model has no answer that the artifact could correct.
            UnscorableInputError, DeviceMemoryError: the device has no answer for an input.
            DeviceFaultError: it has none for anybody any more.
        """
        self.backend.require_open()
        expected = self.tokenizing.expect(plan)
        entry = Entry(plan.caller, plan.deadline, plan.record.trace)
        self.backend.enter(entry, expected.amount, fewest_tokens=expected.fewest_tokens)
        try:
            if self._answered is not None and plan.model.artifact.manifest.template.answered is not None:
                await self._answered(plan)  # its rows have their room meanwhile
            rows = await self.tokenizing.encode(plan, expected)
            plan.ticket = ticket = Ticket(
                plan.model.artifact.digest,
                tuple(rows),
                plan.ask,
                plan.caller,
                plan.deadline - time.monotonic(),
            )
            return await self.backend.submit(entry, ticket)
        finally:
            plan.record.stages += entry.end(time.monotonic())
