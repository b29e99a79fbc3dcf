"""The gain of fine-tuning over heads on the model as it is, by honest answers, and a rule that foresees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from laplora.linearised import entropy
from laplora.metrics.groups import mean_and_error

#: Share of the labels' entropy that heads leave where an adapter gained, and the fewest rows a label. Below, heads
#: know nearly everything; above, nothing does. Nine development tasks with 450 labels chose it: the three inside gained
#: .023 to .127 nats, the six outside -.032 to .011. Seven tasks that chose nothing gained nothing beyond noise: those
#: inside 0 to .033, those outside -.004 to .004 (benchmarks/evidence/RESULTS.md).
LEFT, ROWS_A_LABEL = (0.25, 0.75), 20


def worth_trying(nll: float, labels: Sequence[int]) -> tuple[bool, str]:
    """Return whether fine-tuning is likely to gain, before it, and the reason.

    Args:
        nll: of heads on the model as it is, by honest answers, nats; labels: of the labelled rows, one each.
    """
    counts = Counter(labels).values()
    if len(counts) < 2:
        return False, "no fine-tuning, by the rule of auto: it asks for rows with one label each"
    left = nll / float(entropy(torch.tensor([[count / len(labels) for count in counts]])))
    worth = LEFT[0] <= left <= LEFT[1] and len(labels) >= ROWS_A_LABEL * len(counts)
    asked = f"{LEFT[0]:.0%} to {LEFT[1]:.0%} and {ROWS_A_LABEL} are asked for"
    said = f"heads leave {left:.0%} of the labels' entropy, with {len(labels) / len(counts):.0f} rows a label ({asked})"
    return worth, f"{'' if worth else 'no '}fine-tuning, by the rule of auto: {said}"


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

    def __str__(self) -> str:
        if self.served == self.without:
            return f"Do not fine-tune: {self.served}, which needs no adapter, is what answers"
        figures = f"{self.gained:.3f} nats (standard error {self.error:.3f})"
        if self.gained > self.error:
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
