"""Choosing how far labels may move log probabilities: the kernel of least leave-one-out loss.

What the labels correct is a calibrated predictive, MAP with a temperature or Laplace. Its ``Q^T log p`` are their prior
mean. An overconfident one would leave labels of mistakes a long way to go, and those of right answers nothing to say
(docs/lab-notes.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from laplora.conditioning.last_layer import LastLayer
from laplora.conditioning.left_out import left_out_mean
from laplora.conditioning.mode import Mode, posterior_mode
from laplora.errors import FactorizationError
from laplora.linearised import class_log_probs, contrast_logits
from laplora.linearised import contrast_mean as to_contrasts

#: Kernels that are tried: the mean variance of a contrast under their prior, nats squared. The first one moves nothing.
VARIANCES = (1e-4, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
#: And the prior variance of a constant that is added to every row: without one, or with one of 0.7 nats.
BIASES = (0.0, 0.5)
#: Least probability that labels correct: an average over few draws can be 0, and no label could pull it back.
LEAST = 1e-12


@dataclass(frozen=True)
class LabelledRows:
    """Rows whose labels condition others.

    Attributes:
        mean: (rows, classes - 1) float64, what the labels correct (``log_contrasts``), nats.
        labels: (rows,) int64; class_mask: (rows, classes) bool.
        together: so many consecutive rows are of one input.
    """

    mean: torch.Tensor
    labels: torch.Tensor
    class_mask: torch.Tensor
    together: int = 1


@dataclass(frozen=True)
class Choice:
    """Labelled rows under the kernel of least loss.

    Attributes:
        place: of the kernel among those that were tried.
        mode: of the rows under it.
        left_out: (rows, classes - 1) float64, each row's mean under the labels of the other inputs, nats.
        losses: by kernel, mean leave-one-out NLL in nats; infinite where a row could not be left out.
    """

    place: int
    mode: Mode
    left_out: torch.Tensor
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Candidate:
    """A kernel that is tried.

    Attributes:
        precision: of the last layer's prior; bias: prior variance of the constant, nats squared.
        kernel: (rows, classes - 1, rows, classes - 1) float64, between the labelled rows, nats squared.
    """

    precision: float
    bias: float
    kernel: torch.Tensor


def candidates(
    layer: LastLayer, variances: Sequence[float] = VARIANCES, biases: Sequence[float] = BIASES
) -> list[Candidate]:
    """Return the kernels that are tried, from the narrowest to the widest, without a constant first."""
    constant = torch.eye(len(layer.curvature), dtype=torch.float64)[None, :, None]
    found = []
    for bias in biases:
        for variance in variances:
            precision = layer.variance / variance
            found.append(Candidate(precision, bias, layer.kernel(precision) + bias * constant))
    return found


def choose_kernel(tried: Sequence[Candidate], rows: LabelledRows) -> Choice:
    """Return the rows under the kernel by which each is predicted best from the labels of the others.

    Args:
        tried: of these rows, from the narrowest kernel to the widest.

    Raises:
        DataError, NonFiniteError, FactorizationError: as ``posterior_mode``.
    """
    best: Choice | None = None
    losses: list[float] = []
    start = None
    for place, kernel in enumerate(one.kernel for one in tried):
        mode = posterior_mode(kernel, rows.mean, rows.labels, rows.class_mask, start)
        start = mode.alpha
        try:
            left_out = left_out_mean(mode, kernel, rows.together)
        except FactorizationError:
            losses.append(float("inf"))
            continue
        log_probs = class_log_probs(contrast_logits(left_out), rows.class_mask)
        losses.append(-float(log_probs.gather(1, rows.labels[:, None]).mean()))
        if best is None or losses[-1] < min(losses[:-1], default=float("inf")):
            best = Choice(place, mode, left_out, ())
    if best is None:
        raise FactorizationError("no kernel leaves a row out: are rows given twice?")
    return Choice(best.place, best.mode, best.left_out, tuple(losses))


def log_contrasts(probs: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
    """Return ``Q^T log p`` of probabilities (rows, classes), (rows, classes - 1) float64; 0 for impossible classes."""
    logs = probs.double().clamp_min(LEAST).log().masked_fill(~class_mask, 0)
    return to_contrasts(logs).masked_fill(~class_mask[:, 1:], 0)
