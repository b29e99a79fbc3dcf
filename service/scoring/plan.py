"""The plan of a request: what is wanted of which artifact, by whom and by when. It travels to the device and back."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from service.errors import InvalidRequestError
from service.telemetry.request_record import STAGES, RequestRecord, Stage
from service.threads import settle

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from laplora.predictor import Predictor
    from laplora.prompts.option_order import OrderAverage
    from laplora.prompts.rows import EncodedRow


@dataclass(frozen=True)
class Ask:
    """What is wanted of a request's rows; only rows of one kind share a batch.

    Attributes:
        predictive: the one that answers; ``also``: those whose probabilities are wanted beside the answer.
        target_risk: that decisions will be made for, where the answer depends on it; None: the artifact's.
    """

    predictive: str
    also: tuple[str, ...] = ()
    target_risk: float | None = None


@dataclass(eq=False)
class Plan:
    """One request for predictions, of an endpoint or of a job. Times are ``time.monotonic`` seconds.

    Attributes:
        predictor: of the artifact; whoever makes the plan holds a lease on it until the plan has its answer.
        inputs: the template's fields of each input.
        caller: name of who asks; a caller's plans share its part of the queue.
        truncate: whether prompts that are too long are cut.
        order_average: whether, and in which, several orders of its choices each input is asked, each a row.
        begun, deadline: when the request began, and when rows that still wait are dropped.
        record: where the stages are noted.
        rows: one a prompt, once they are tokenised; ``owners`` the number of each row's input.
        future: holds one prediction for each row, or the first row's failure.
        predictions: those that are there, by row.
        entered_at, queued_at, started_at, finished_at: when it had room in the queue, its rows were tokenised, the
            first was on the device, and the last was answered; None before.
    """

    predictor: Predictor
    inputs: Sequence[Mapping[str, Any]]
    ask: Ask
    caller: str
    truncate: bool = False
    order_average: OrderAverage = False
    begun: float = field(default_factory=time.monotonic)
    deadline: float = math.inf
    record: RequestRecord = field(default_factory=RequestRecord)
    rows: tuple[EncodedRow, ...] = ()
    owners: tuple[int, ...] = ()
    future: Future[list[Prediction]] = field(default_factory=Future)
    predictions: dict[int, Prediction] = field(default_factory=dict)
    entered_at: float | None = None
    queued_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None

    def deliver(self, index: int, prediction: Prediction, now: float) -> None:
        """Take in a row's prediction; with the last one the future has its result."""
        self.predictions[index] = prediction
        if len(self.predictions) == len(self.rows):
            self.finished_at = now
            settle(self.future, result=[self.predictions[i] for i in range(len(self.rows))])

    def end(self, now: float) -> None:
        """Give up what has no answer yet, and note the stages that the plan came to."""
        self.future.cancel()
        times = (self.entered_at, self.queued_at, self.started_at, self.finished_at)
        for name, begun, ended in zip(STAGES, times, times[1:], strict=False):
            if begun is not None:
                self.record.stages.append(Stage(name, begun, now if ended is None else ended))


@dataclass(frozen=True)
class Scored:
    """A plan's predictions, in the order of its inputs; ``own_order``: in the user's order alone, where averaged."""

    predictions: list[Prediction]
    own_order: list[Prediction] | None = None


def order_counts(inputs: Sequence[Mapping[str, Any]], *, order_average: OrderAverage) -> list[int]:
    """Return in how many orders of its choices each input is asked; 1 for an input that is refused later on."""
    from laplora.prompts.option_order import order_count

    choices = [fields.get("choices") if order_average else None for fields in inputs]
    return [order_count(len(c), order_average) if isinstance(c, list) and len(c) > 1 else 1 for c in choices]


def choose_ask(
    predictor: Predictor,
    *,
    mode: Literal["laplace", "map", "fast"] | None,
    predictive: str | None,
    covariance: bool,
    order_average: OrderAverage,
    target_risk: float | None,
) -> Ask:
    """Return which predictive answers a request, and whether the posterior is looked at beside it.

    Without a name the recommended one answers, with the posterior's variances; modes ``map`` and ``fast`` answer by
    themselves. A named one runs just what it needs, and the posterior on top if the request says mode ``laplace`` or
    asks for the covariance.

    Raises:
        InvalidRequestError: a name that the artifact does not have, or one that the mode contradicts; several orders
            of the choices by ``fast``.
    """
    without_posterior = mode in ("map", "fast")
    name: str
    if predictive is None:
        name = mode if mode in ("map", "fast") else predictor.recommended
        posterior = not without_posterior
    else:
        name = predictive
        posterior = mode == "laplace" or (covariance and not without_posterior and name != "fast")
    if mode == "fast" and "fast" not in predictor.predictives:
        message = (
            "the artifact has no distilled variances: leave the mode out, or package it again with predictives.fast"
        )
        raise InvalidRequestError(message, field="options.mode")
    if name not in predictor.predictives:
        message = f"the artifact has no predictive of that name: it has {list(predictor.predictives)}"
        raise InvalidRequestError(message, field="options.predictive")
    if without_posterior and name != mode:
        message = f"mode {mode} is a forward pass with no other predictive: leave out the mode or the predictive"
        raise InvalidRequestError(message, field="options.predictive")
    if name == "fast" and order_average:
        message = "the orders of the choices are not averaged by fast: leave out order_average, or ask for laplace"
        raise InvalidRequestError(message, field="options.order_average")
    return Ask(name, ("laplace",) if posterior and name != "laplace" else (), target_risk if name == "fast" else None)
