"""States of invented rows, as a forward pass would show them."""

from __future__ import annotations

import torch

from laplora.familiarity.ood_score import fit_ood_score
from laplora.familiarity.percentile import Familiarity
from laplora.jacobians.states import States


def states_of(hidden: torch.Tensor, logits: torch.Tensor | None = None, layers: tuple[int, ...] = ()) -> States:
    """Return states (rows, layers, hidden) with their contrasts (rows, classes - 1); zeros of two classes without."""
    rows, count = hidden.shape[:2]
    contrasts = torch.zeros(rows, 1) if logits is None else logits
    return States(layers or tuple(range(count)), hidden, contrasts)


def familiarity_of(states: States, labels: torch.Tensor, calibration: States) -> Familiarity:
    """Return the familiarity by the states of training rows, with calibration rows as the reference."""
    ood_score = fit_ood_score(states, labels)
    return Familiarity(ood_score, ood_score.of(calibration).sort().values)
