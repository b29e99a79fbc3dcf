"""Which of a plan's inputs to label next: answers from the queue, then Jacobians in batches of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from laplora.errors import ConfigError, NonFiniteError
from service.errors import DeviceMemoryError, InvalidRequestError, UnscorableInputError
from service.scoring.device_faults import is_out_of_memory
from service.scoring.plan import Plan
from service.scoring.scorer import Scorer

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from laplora.selection.greedy import Selection

#: Rows of a batch of Jacobians. Other requests' batches run between two of them.
BATCH_ROWS = 8

#: Runs work on a thread, as ``service.threads.OneEach.run`` does for a caller.
Run = Callable[[Callable[[], Any]], Awaitable[Any]]


async def suggested(
    scorer: Scorer, plan: Plan, count: int, method: Literal["information", "prediction", "entropy"], run: Run
) -> tuple[Selection, list[Prediction], int]:
    """Return the selection among a plan's inputs, the answers to all of them, and how many inputs repeat another.

    Raises:
        InvalidRequestError: a method that the artifact's posterior does not cover.
        UnscorableInputError, DeviceMemoryError: the device has no Jacobians for an input.
        LaploraError: as ``Scorer.score``.
    """
    predictions = (await scorer.score(plan)).predictions
    rows = plan.rows
    from laplora.selection.greedy import Selection
    from laplora.selection.spread import highest
    from laplora.selection.suggest import first_of_each, select

    first = first_of_each(rows)
    places = first.nonzero()[:, 0]
    repeated = len(rows) - len(places)
    if method == "entropy":
        import torch

        found = highest(torch.tensor([one.total for one in predictions], dtype=torch.float64), count, first)
        return found, predictions, repeated
    features = await _features(scorer, plan, places.tolist())
    answers = [predictions[i] for i in places.tolist()]
    selection = await run(lambda: select(plan.predictor, features, answers, count, method))
    return Selection(places[selection.order], selection.gains), predictions, repeated


async def _features(scorer: Scorer, plan: Plan, places: Sequence[int]) -> Any:
    from laplora.classifier import batches
    from laplora.selection.pool import FeaturePass

    rows, device = [plan.rows[i] for i in places], scorer.device

    async def on_device(work: Callable[[], Any]) -> Any:
        return await asyncio.wrap_future(device.call(work))

    try:
        features = await on_device(lambda: FeaturePass(plan.predictor, rows))
        longest = max(plan.predictor.device_tokens(row) for row in rows)
        for index in batches(rows, max(1, min(BATCH_ROWS, device.token_budget // longest))):
            await on_device(partial(features.run, index))
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
    return features.features
