"""Messages between the ingress and a scorer. Plain values; errors come back as values, whole and of their class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.scoring.model import TokenBudget
from service.telemetry.batch_report import BatchReport

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from laplora.jacobians.contrasts import ReversePass
    from laplora.models.held_weights import HeldWeights


@dataclass(frozen=True)
class Facts:
    """Facts about a loaded artifact that a scorer knows and an encoder does not."""

    digest: str
    own_bytes: int
    weights: HeldWeights
    reverse_pass: ReversePass | None
    budget: TokenBudget


@dataclass(frozen=True)
class Reply:
    """A scorer's answer: a value, or the error in its place.

    Attributes:
        replica: which one answered.
        compute_s: seconds from the first batch that held a row of it to the last one's end.
        digests: of the artifacts that the scorer has loaded.
    """

    replica: str
    value: Any = None
    error: Exception | None = None
    compute_s: float = 0.0
    digests: frozenset[str] = frozenset()

    @property
    def predictions(self) -> list[Prediction]:
        """The value of a ticket's reply."""
        predictions: list[Prediction] = self.value
        return predictions


@dataclass(frozen=True)
class Status:
    """How a scorer is.

    Attributes:
        digests: of the artifacts that it has loaded.
        rows, tokens, oldest_wait_s: what waits there, as of ``Backlog``.
        batch_tokens: most padded tokens of a batch.
        batches: that ran since those that the ingress had, the newest at most; batches_to: the number of the last one.
        stalled: its device does not answer, though it does.
    """

    replica: str
    digests: frozenset[str]
    rows: int
    tokens: int
    oldest_wait_s: float
    batch_tokens: int
    batches: tuple[BatchReport, ...] = ()
    batches_to: int = 0
    stalled: bool = False
