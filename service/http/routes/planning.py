"""The common part of /predict, /evaluate and /suggest: a plan from the body, scored for as long as somebody waits."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Depends, Request

from service.artifacts.host import ArtifactHost
from service.errors import BatchTooLargeError, InvalidRequestError
from service.http.disconnects import while_awaited
from service.http.schemas.base import Timing
from service.http.schemas.evaluate import EvaluateRequest
from service.http.schemas.inputs import Input
from service.http.schemas.predict import PredictRequest
from service.http.schemas.suggest import SuggestRequest
from service.scoring.plan import Plan
from service.scoring.ticket import Ask
from service.security.callers import caller_of
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.request_record import note, record_of

if TYPE_CHECKING:
    from service.scoring.model import Model

T = TypeVar("T")

#: Numbers of an answer, at most: eight bytes each until it is sent. And one caller's of so many such answers at once.
MOST_NUMBERS, MOST_ANSWERS = 10_000_000, 2


class Planning:
    """Plans the scoring of one HTTP request, and says where its time went."""

    def __init__(self, request: Request) -> None:
        # Not given one by one: each part that FastAPI looks up costs every request some 15 microseconds.
        state = request.app.state
        self._request = request
        self._settings: Settings = state.settings
        self._artifacts: ArtifactHost = state.artifacts
        self._metrics: Metrics = state.metrics

    @asynccontextmanager
    async def plan(
        self, body: PredictRequest | EvaluateRequest | SuggestRequest, ask_of: Callable[[Model], Ask]
    ) -> AsyncIterator[Plan]:
        """Yield the plan for a body; inside the block its artifact stays in memory.

        Raises:
            DeviceFaultError, DrainingError, NotReadyError, ArtifactNotFoundError, ArtifactNotLoadedError: as
                ``ArtifactHost.lease``.
            TooManyRequestsError: other answers have too many numbers, which nobody has taken yet.
            BatchTooLargeError, InvalidRequestError: as ``check_answer`` and ``check_ids``, or what ``ask_of`` raises.
        """
        begun, options = time.monotonic(), body.options
        limit_s = self._settings.request_timeout_s
        timeout_s = limit_s if options.timeout_s is None else min(limit_s, options.timeout_s)
        async with self._artifacts.lease(body.artifact) as model:
            check_ids(body.inputs)
            fields, ask = [item.template_fields for item in body.inputs], ask_of(model)
            numbers = check_answer(fields, model, ask)
            self._request.state.hold_answer(numbers)
            plan = Plan(
                model,
                fields,
                ask=ask,
                caller=caller_of(self._request).name,
                truncate=options.truncate,
                begun=begun,
                deadline=begun + timeout_s,
                record=record_of(self._request),
            )
            artifact = model.artifact
            note(self._request, artifact=artifact.name, digest=artifact.digest, predictive=plan.ask.predictive)
            yield plan

    async def awaited(self, plan: Plan, work: Coroutine[Any, Any, T]) -> T:
        """Return the work's result; cancel it when the client goes away or the plan's deadline passes.

        Raises:
            ClientGoneError: the connection closed first.
            DeadlineError: the deadline passed first.
            Exception: whatever the work raises.
        """
        left_s = max(0.0, plan.deadline - time.monotonic())
        return await while_awaited(self._request, work, timeout_s=left_s)

    def timing(self, plan: Plan, *, tokens: int) -> Timing:
        """Return where the time of a scored plan went; count it, and note it for the log."""
        stages = {**plan.record.stages_ms, "total": (time.monotonic() - plan.begun) * 1000}
        self._metrics.count_stages(self._request.scope["route"].path, stages)
        note(self._request, rows=len(plan.inputs), tokens=tokens, total_ms=round(stages["total"], 3))
        return Timing(**stages)


def check_answer(inputs: Sequence[Mapping[str, Any]], model: Model, ask: Ask) -> int:
    """Return how many numbers an answer has, which are in memory until it is sent.

    Raises:
        BatchTooLargeError: more than ``MOST_NUMBERS``.
    """
    numbers = 0
    for fields in inputs:
        choices = fields.get("choices")
        labels = len(choices) if isinstance(choices, list) else model.class_count
        numbers += labels * (5 + len(model.predictives) + (labels if ask.covariance else 0))
    if numbers > MOST_NUMBERS:
        why = "classes x classes of each input are its covariance" if ask.covariance else "some for each label"
        raise BatchTooLargeError(
            f"the answer to {len(inputs)} inputs would have {numbers} numbers, {why}, and has at most {MOST_NUMBERS}: "
            "send the inputs in parts",
            field="inputs",
            limit=MOST_NUMBERS,
            got=numbers,
        )
    return numbers


async def _planning(request: Request) -> Planning:
    return Planning(request)


PlanningDep = Annotated[Planning, Depends(_planning)]


def check_ids(inputs: Sequence[Input]) -> None:
    """Raise InvalidRequestError for an id that two inputs share."""
    seen: dict[str, int] = {}
    for i, item in enumerate(inputs):
        if item.id is not None and seen.setdefault(item.id, i) != i:
            raise InvalidRequestError(
                f"inputs {seen[item.id]} and {i} have the same id: make ids unique or leave them out",
                field=f"inputs.{i}.id",
            )
