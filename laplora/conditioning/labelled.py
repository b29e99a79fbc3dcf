"""Rows whose labels condition others."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laplora.linearised import class_log_probs, contrast_logits
from laplora.linearised import contrast_mean as to_contrasts

#: Least probability that labels correct: an average over few draws can be 0, and no label could pull it back.
LEAST = 1e-12


@dataclass(frozen=True)
class LabelledRows:
    """Rows whose labels condition others.

    Attributes:
        mean: (rows, classes - 1) float64, what the labels correct (``log_contrasts``), nats.
        labels: (rows,) int64; class_mask: (rows, classes) bool.
        together: so many consecutive rows are of one input.
        groups: (rows,) int64, rows of one number are left out together; all rows of an input are of one.
    """

    mean: torch.Tensor
    labels: torch.Tensor
    class_mask: torch.Tensor
    together: int = 1
    groups: torch.Tensor | None = None

    @property
    def parted(self) -> torch.Tensor:
        """Number of what each row is left out with, (rows,) int64: its group, or its input."""
        return torch.arange(len(self.labels)) // self.together if self.groups is None else self.groups

    def inputs(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the numbers of the inputs that rows, all of an input's or none, are of."""
        return rows[:: self.together] // self.together

    def take(self, rows: torch.Tensor) -> LabelledRows:
        """Return some rows, all those of an input together."""
        groups = None if self.groups is None else self.groups[rows]
        return LabelledRows(self.mean[rows], self.labels[rows], self.class_mask[rows], self.together, groups)

    def loss(self, contrasts: torch.Tensor) -> float:
        """Return the mean NLL of the labels under contrasts (rows, classes - 1), nats."""
        log_probs = class_log_probs(contrast_logits(contrasts), self.class_mask)
        return -float(log_probs.gather(1, self.labels[:, None]).mean())


def log_contrasts(probs: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
    """Return ``Q^T log p`` of probabilities (rows, classes), (rows, classes - 1) float64; 0 for impossible classes."""
    logs = probs.double().clamp_min(LEAST).log().masked_fill(~class_mask, 0)
    return to_contrasts(logs).masked_fill(~class_mask[:, 1:], 0)
