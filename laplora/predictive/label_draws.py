"""The probability of labels among many classes, where it is wanted for hundreds of priors or temperatures.

The same integral as ``laplora.predictive.gaussian``'s, with fewer points, of the label's probability alone, and with
the points drawn once for all temperatures. It serves the choice of a prior and of a temperature, never an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from laplora.linearised import class_counts, contrast_logits
from laplora.predictive.gaussian import normal_points, symmetric_root

#: Above so many classes the searches use these draws. Up to it they use the answers' own points.
MANY_CLASSES = 16
#: Points of a search. Where logits have a standard deviation of 1.4, the precision that they choose is right to 1%;
#: where it is 4, a quarter to a third too low, which costs 0.003 nats (docs/lab-notes.md). 512 take thrice as long.
_POINTS = 128
#: Added to a covariance's diagonal before its Cholesky factor, relative to its mean.
_RIDGE = 1e-10
#: Rows whose points are held at a time where they are used once.
_ROWS = 64


@dataclass(frozen=True)
class LabelDraws:
    """Points of the class logits of labelled rows.

    Attributes:
        parts: of the rows with as many possible classes: their places, logits (rows, points, classes) float32, nats,
            and labels (rows,).
        rows: in all.
    """

    parts: tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], ...]
    rows: int

    @classmethod
    def of(
        cls, contrast_mean: torch.Tensor, covariance: torch.Tensor, labels: torch.Tensor, class_mask: torch.Tensor
    ) -> Self:
        """Return the points of a Gaussian a row; arguments and errors as ``prior.search.predictive_nll``."""
        mean, spread = contrast_mean.double().cpu(), covariance.double().cpu()
        counts = class_counts(class_mask.cpu())
        parts = []
        for count in sorted(set(counts.tolist())):
            rows = (counts == count).nonzero()[:, 0]
            root = _root(spread[rows, : count - 1, : count - 1])
            half = contrast_logits(normal_points(count - 1, _POINTS)[: _POINTS // 2] @ root.mT)
            centre = contrast_logits(mean[rows, : count - 1])[:, None]
            parts.append((rows, torch.cat([centre + half, centre - half], 1).float(), labels.cpu()[rows]))
        return cls(tuple(parts), len(mean))

    def probs(self, temperature: float = 1.0) -> torch.Tensor:
        """Return (rows,) float64 the mean probability of each row's label at a temperature."""
        result = torch.zeros(self.rows, dtype=torch.float64)
        for rows, logits, labels in self.parts:
            scaled = logits / temperature
            of_label = scaled.gather(2, labels[:, None, None].expand(-1, scaled.shape[1], 1))[:, :, 0]
            result[rows] = (of_label - scaled.logsumexp(2)).double().exp().mean(1)
        return result


def label_probs(
    contrast_mean: torch.Tensor, covariance: torch.Tensor, labels: torch.Tensor, class_mask: torch.Tensor
) -> torch.Tensor:
    """Return (rows,) float64 the mean probability of each row's label, with the points of few rows held at a time."""
    parts = [slice(start, start + _ROWS) for start in range(0, len(labels), _ROWS)]
    return torch.cat([LabelDraws.of(contrast_mean[p], covariance[p], labels[p], class_mask[p]).probs() for p in parts])


def _root(covariance: torch.Tensor) -> torch.Tensor:
    """Return R (batch, d, d) with R R^T = covariance: the Cholesky factor, or the symmetric root where there is none.

    Raises FactorizationError for a covariance that is not positive semi-definite beyond rounding.
    """
    ridge = _RIDGE * covariance.diagonal(dim1=1, dim2=2).mean(1)
    shifted = covariance + torch.diag_embed(ridge[:, None].expand(-1, covariance.shape[1]))
    factor, failed = torch.linalg.cholesky_ex(shifted)
    bad = (failed != 0) | ~factor.isfinite().all(2).all(1)
    if bool(bad.any()):
        factor[bad] = symmetric_root(covariance[bad])
    result: torch.Tensor = factor
    return result
