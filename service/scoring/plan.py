"""The plan of a request: the work, its artifact, its caller and its deadline. Its ticket travels."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from laplora.predictive.kinds import SPREADLESS
from service.errors import InvalidRequestError
from service.scoring.ticket import Ask, Ticket
from service.telemetry.request_record import RequestRecord

if TYPE_CHECKING:
    from laplora.prompts.rows import EncodedRow
    from service.scoring.model import Model


@dataclass(eq=False)
class Plan:
    """One request for predictions, of an endpoint or of a job. Times are ``time.monotonic`` seconds.

    Attributes:
        model: the artifact; whoever makes the plan holds a lease on it until the plan has its answer.
        inputs: the template's fields of each input.
        caller: name of who asks; a caller's plans share its part of the queue.
        truncate: whether prompts that are too long are cut.
        begun, deadline: when the request began, and when rows that still wait are dropped.
        record: where the stages are noted.
        ticket: what is sent to whoever has the weights; None until the inputs are tokenised.
        may_pass: whether answers of another model than the one that is corrected may pass; uncorrected: they do.
    """

    model: Model
    inputs: Sequence[Mapping[str, Any]]
    ask: Ask
    caller: str
    truncate: bool = False
    begun: float = field(default_factory=time.monotonic)
    deadline: float = math.inf
    record: RequestRecord = field(default_factory=RequestRecord)
    ticket: Ticket | None = None
    may_pass: bool = False
    uncorrected: bool = False

    @property
    def rows(self) -> tuple[EncodedRow, ...]:
        """The tokenised prompts; none before."""
        return () if self.ticket is None else self.ticket.rows


def choose_ask(model: Model, *, predictive: str | None, variance: bool, covariance: bool) -> Ask:
    """Return which predictive answers a request, and whether the posterior is looked at beside it.

    Without a name the recommended one answers. It runs just what it needs, and the posterior on top if the request asks
    for its covariance, or for a spread where the predictive has none.

    Raises:
        InvalidRequestError: a name that the artifact does not have; a covariance, or such a spread, without an adapter.
    """
    name: str = model.recommended if predictive is None else predictive
    if name not in model.predictives:
        message = f"the artifact has no predictive of that name: it has {list(model.predictives)}"
        if name == "laplace":
            message += ". laplace is the posterior over an adapter's weights, and it has no adapter"
        if name == "map":
            message += (
                ". map is the model's own answer: nothing is fine-tuned, and the base has none, because it is no "
                "language model or some label is more than one of its tokens"
            )
        raise InvalidRequestError(message, field="options.predictive")
    has_posterior = "laplace" in model.predictives
    if covariance and not has_posterior:
        message = "the covariance is of an adapter's logits, and the artifact has no adapter: leave it out"
        raise InvalidRequestError(message, field="options.covariance")
    spreadless = variance and name in SPREADLESS
    if spreadless and not has_posterior:
        message = f"{name} has no spread, and the artifact no adapter whose posterior has one: name another predictive"
        raise InvalidRequestError(message, field="options.variance")
    return Ask(name, ("laplace",) if (covariance or spreadless) and name != "laplace" else (), covariance)
