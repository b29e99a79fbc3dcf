"""Which of a plan's inputs to label next: answers from the queue, then Jacobians, by a call of their own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from laplora.errors import ConfigError, NonFiniteError
from service.errors import DeviceMemoryError, InvalidRequestError, UnscorableInputError
from service.scoring.device_faults import is_out_of_memory
from service.scoring.plan import Plan
from service.scoring.scorer import Scorer
from service.threads import OneAtATime

if TYPE_CHECKING:
    import torch

    from laplora.selection.suggest import Suggestion


@dataclass(frozen=True)
class Choice:
    """How to choose: at most ``count`` inputs by ``method``, none of less than ``least_familiarity``."""

    count: int
    method: Literal["information", "prediction", "entropy"]
    least_familiarity: float = 0.0


async def suggested(scorer: Scorer, plan: Plan, choice: Choice, turns: OneAtATime) -> Suggestion:
    """Return which of a plan's inputs to label next.

    Args:
        turns: for what takes memory that the queue does not count, the features of a posterior and of the inputs.

    Raises:
        InvalidRequestError: a method that the artifact's posterior does not cover.
        UnscorableInputError, DeviceMemoryError: the device has no Jacobians for an input.
        LaploraError: as ``Scorer.score``.
    """
    predictions = (await scorer.score(plan)).predictions
    from laplora.selection.suggest import (
        SuggestedRow,
        Suggestion,
        familiar_enough,
        first_of_each,
        select,
        select_by_entropy,
    )

    first = first_of_each(plan.rows)
    familiar = familiar_enough([one.familiarity for one in predictions], choice.least_familiarity)
    places = (first & familiar).nonzero()[:, 0].tolist()
    chosen: tuple[SuggestedRow, ...] = ()
    if places:
        answers = [predictions[i] for i in places]
        if choice.method == "entropy":
            found = select_by_entropy(answers, choice.count)
        else:
            async with turns.turn(plan.caller) as run:
                features = await _features(scorer, plan, places)
                found = await run(
                    partial(select, plan.model.artifact.manifest, features, answers, choice.count, choice.method)
                )
        pairs = [(places[i], gain) for i, gain in zip(found.order.tolist(), found.gains.tolist(), strict=True)]
        chosen = tuple(SuggestedRow(place, gain, predictions[place]) for place, gain in pairs)
    return Suggestion(choice.method, chosen, int((~first).sum()), int((first & ~familiar).sum()))


async def _features(scorer: Scorer, plan: Plan, places: Sequence[int]) -> torch.Tensor:
    assert plan.ticket is not None
    ticket = replace(
        plan.ticket,
        rows=tuple(plan.ticket.rows[i] for i in places),
        owners=tuple(plan.ticket.owners[i] for i in places),
        left_s=plan.deadline - time.monotonic(),
    )
    try:
        return await scorer.backend.features(ticket)
    except ConfigError as error:
        raise InvalidRequestError(str(error), field="options.method") from None
    except NonFiniteError:
        raise UnscorableInputError("the model has no finite Jacobian for one of the inputs", field="inputs") from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceMemoryError(
            "the Jacobians of the inputs do not fit the device's memory: send shorter ones", field="inputs"
        ) from None
