"""A loaded artifact as the server sees it, wherever its weights are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from laplora.answers.explaining import NothingAccepted
    from laplora.answers.prediction import Prediction
    from laplora.answers.review_scores import ReviewScores
    from laplora.artifact.folder import Artifact
    from laplora.decisions.wanted import Wanted
    from laplora.jacobians.contrasts import ReversePass
    from laplora.models.held_weights import HeldWeights
    from laplora.predictive.kinds import PredictiveName
    from laplora.predictor import Predictor
    from laplora.prompts.rows import EncodedRow
    from laplora.prompts.token_bounds import TokenBounds


#: Tokens that a row counts as at least on a GPU, and those of the short rows that its budget is measured with: a row
#: has memory of its own, its Jacobians' for one, however short it is.
SHORT_ROW_TOKENS = 32


@dataclass(frozen=True)
class TokenBudget:
    """Most padded tokens of a batch, and why, in one sentence."""

    tokens: int
    reason: str


def counted_tokens(predictor: Predictor, row: EncodedRow) -> int:
    """Return what a row counts as in a batch: as the predictor says, and on a GPU at least ``SHORT_ROW_TOKENS``.

    A CPU's budget is no matter of memory: there many short rows are as good as few long ones.
    """
    tokens = predictor.device_tokens(row)
    return tokens if predictor.device.type == "cpu" else max(SHORT_ROW_TOKENS, tokens)


class Model(Protocol):
    """A loaded artifact, as the server sees it: an encoder (``laplora.encoder``), and what its weights are like.

    It stays loaded for as long as somebody holds this object: a lease on it guards it.
    """

    artifact: Artifact
    review_scores: Mapping[str, ReviewScores]

    @property
    def class_count(self) -> int:
        """Number of labels."""

    @property
    def max_tokens(self) -> int:
        """Longest prompt, in tokens."""

    @property
    def token_bounds(self) -> TokenBounds:
        """Bounds on a prompt's tokens that are known before it is tokenised."""

    @property
    def recommended(self) -> PredictiveName:
        """The predictive that answers unless a request names another."""

    @property
    def predictives(self) -> tuple[PredictiveName, ...]:
        """The predictives that a request can name."""

    @property
    def base(self) -> object:
        """Stands for the base model in memory: the same object for artifacts that share it."""

    @property
    def own_bytes(self) -> int:
        """Bytes of adapters and posteriors; the base model is not counted."""

    @property
    def weights(self) -> HeldWeights:
        """How the base's weights are held, and why."""

    @property
    def reverse_pass(self) -> ReversePass | None:
        """How Jacobians are computed, and why; None without an adapter."""

    def encode(self, inputs: Mapping[str, object], *, truncate: bool) -> EncodedRow:
        """Return one input as a row."""

    def decided(self, predictions: Sequence[Prediction], wanted: Wanted | None) -> list[Prediction]:
        """Return predictions with the decisions for what is wanted; None: for what the artifact states."""

    def nothing_accepted(self, predictive: str, wanted: Wanted | None) -> NothingAccepted | None:
        """Return that a predictive accepts nothing at what is wanted; None where it does."""
