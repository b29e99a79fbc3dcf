"""No answer of the model's own: heads on its states are all that answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from laplora.errors import ModelError
from laplora.linearised import Likelihood
from laplora.prompts.rows import Batch, Side
from laplora.readouts.base import ClassScores, Record


@dataclass(frozen=True)
class NoAnswer:
    """The read-out of a model without adapter that says nothing of its labels, such as an encoder without a head.

    Attributes:
        class_count: number of labels.
        side: ``left`` of decoders, ``right`` of encoders.
    """

    class_count: int
    side: Side

    @property
    def likelihood(self) -> Likelihood:
        return "categorical"

    @property
    def trained(self) -> tuple[str, ...]:
        return ()

    @property
    def reads_last_token(self) -> bool:
        """It reads nothing."""
        return False

    def scores(self, model: Any, batch: Batch, record: Record | None = None) -> NoReturn:
        """Raise ModelError: there are no logits."""
        raise ModelError(
            f"a {type(model).__name__} has no answer of its own for these labels: laplora.fit fits heads on its states"
        )

    def label_mass(self, model: Any, hidden: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
        """Return 1, (batch,): what a head on the states answers is a label."""
        return hidden.new_ones(len(hidden), dtype=torch.float32)

    def gradient(self, model: Any, scores: ClassScores, directions: torch.Tensor) -> None:
        """Return None: there is nothing to differentiate."""
