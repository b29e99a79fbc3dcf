"""Held-out rows under every setting that a calibration can choose: what draws of calibration rows are dealt from.

Fitting a temperature or a prior precision is then a choice among columns, so a thousand draws cost what a few would.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laplora.linearised import PosteriorPredictive
from laplora.metrics.scores import row_nll


@dataclass(frozen=True)
class Column:
    """One predictive of all rows, at each of its settings.

    Attributes:
        probs, std: (settings, rows, classes); expected_entropy: (settings, rows), nats.
        losses: (settings, rows) NLL, nats.
    """

    probs: torch.Tensor
    std: torch.Tensor
    expected_entropy: torch.Tensor
    losses: torch.Tensor

    def fit(self, rows: torch.Tensor) -> int:
        """Return the setting of least mean NLL on some rows."""
        return int(self.losses[:, rows].mean(1).argmin())

    def at(self, setting: int, rows: torch.Tensor) -> PosteriorPredictive:
        """Return the predictive of some rows at a setting."""
        return PosteriorPredictive(
            self.probs[setting, rows], self.std[setting, rows], self.expected_entropy[setting, rows]
        )


@dataclass(frozen=True)
class Table:
    """Rows of one model.

    Attributes:
        columns: by predictive, ``map`` (one setting) among them.
        labels: (rows,) int64; class_mask: (rows, classes) bool; label_mass: (rows,).
    """

    columns: dict[str, Column]
    labels: torch.Tensor
    class_mask: torch.Tensor
    label_mass: torch.Tensor


def column_of(settings: list[PosteriorPredictive], labels: torch.Tensor) -> Column:
    """Return a predictive's column from its answers to the rows at each setting."""
    return Column(
        torch.stack([one.probs for one in settings]),
        torch.stack([one.std for one in settings]),
        torch.stack([one.expected_entropy for one in settings]),
        torch.stack([row_nll(one.probs, labels) for one in settings]),
    )
