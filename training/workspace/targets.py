"""The training targets of an adapter: rows with their labels, and the loss of its answers to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from laplora.linearised import cross_entropy
from laplora.prompts.examples import Example, label_tensor
from laplora.prompts.rows import EncodedRow
from training.workspace.run import Run

#: A row with its label, () int64, or in all rows soft, (classes,) float32.
Target = tuple[EncodedRow, torch.Tensor]


def target_loss(logits: torch.Tensor, labels: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over rows of the cross-entropy between labels and the softmax over possible classes, nats.

    Args:
        logits: (rows, classes); class_mask: (rows, classes) bool; labels: (rows,) int64, or soft (``cross_entropy``).
    """
    possible = logits.masked_fill(~class_mask, -torch.inf)
    if labels.is_floating_point():
        return cross_entropy(possible.log_softmax(1), labels).mean()
    return F.cross_entropy(possible, labels)


def labelled_targets(run: Run, examples: Sequence[Example]) -> list[Target]:
    """Return examples as a run encodes them, with their labels."""
    labels = label_tensor(examples, run.readout.class_count)
    return list(zip(run.encode(examples), labels.float() if labels.is_floating_point() else labels, strict=True))
