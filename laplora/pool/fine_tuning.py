"""The gain of fine-tuning over heads on the model as it is, by honest answers to the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from laplora.metrics.groups import mean_and_error


@dataclass(frozen=True)
class FineTuning:
    """The gain of fine-tuning, on rows in which every answer is honest.

    Attributes:
        served: name of the answer with an adapter; without: of the best one without.
        gained: NLL of the latter less that of the former, nats, mean over rows; above 0 fine-tuning is better.
        error: its standard error, paired over groups; rows: how many.
    """

    served: str
    without: str
    gained: float
    error: float
    rows: int

    @property
    def pays(self) -> bool:
        """Whether it gained more than a standard error."""
        return self.gained > self.error

    def __str__(self) -> str:
        """Return it in a sentence."""
        if self.served == self.without:
            return f"Do not fine-tune: {self.served}, which needs no adapter, is what answers"
        figures = f"{self.gained:.3f} nats (standard error {self.error:.3f})"
        if self.pays:
            return f"Fine-tuning gained {figures} over not fine-tuning: NLL of {self.served} against {self.without}"
        return f"Do not fine-tune: {self.served} gains {figures} over {self.without}, which needs no adapter"


def fine_tuning(
    served: str, losses: torch.Tensor, without: Mapping[str, torch.Tensor], groups: torch.Tensor | None
) -> FineTuning:
    """Return what fine-tuning gained.

    Args:
        losses: (rows,) NLL of what is served, by honest answers, nats; without: by name that of answers without an
            adapter, at least one; groups: as of ``mean_and_error``.
    """
    best = min(without, key=lambda name: float(without[name].mean()))
    return FineTuning(served, best, *mean_and_error(without[best] - losses, groups), len(losses))
