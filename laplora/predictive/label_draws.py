"""The probability of labels among many classes, where it is wanted for hundreds of priors.

The same integral as ``laplora.predictive.gaussian``'s, with fewer points, of the label's probability alone. It serves
the choice of a prior, never an answer.
"""

from __future__ import annotations

import torch

from laplora.linearised import class_counts, contrast_logits
from laplora.predictive.gaussian import normal_points, symmetric_root

#: Above so many classes the searches use these draws. Up to it they use the answers' own points.
MANY_CLASSES = 16
#: Points of a search. If logits have a standard deviation of 1.4, the precision that they choose is right to 1 %; if it
#: is 4, 25 to 33 % too low, which costs 0.003 nats (docs/lab-notes.md). 512 take thrice as long.
_POINTS = 128
#: Added to a covariance's diagonal before its Cholesky factor, relative to its mean.
_RIDGE = 1e-10
#: Rows whose points are held at a time.
_ROWS = 64


def label_probs(
    contrast_mean: torch.Tensor, covariance: torch.Tensor, labels: torch.Tensor | None, class_mask: torch.Tensor
) -> torch.Tensor:
    """Return (rows,) float64 the mean probability of each row's label, with the points of few rows held at a time.

    Without labels those of all classes, (rows, classes). Arguments and errors as of ``prior.search.predictive_nll``.
    """
    mean, spread = contrast_mean.double().cpu(), covariance.double().cpu()
    counts, wanted = class_counts(class_mask.cpu()), None if labels is None else labels.cpu()[:, None]
    result = torch.zeros(class_mask.shape if wanted is None else (len(mean), 1), dtype=torch.float64)
    for count in sorted(set(counts.tolist())):
        for rows in (counts == count).nonzero()[:, 0].split(_ROWS):
            root = _root(spread[rows, : count - 1, : count - 1])
            half = contrast_logits(normal_points(count - 1, _POINTS)[: _POINTS // 2] @ root.mT)
            centre = contrast_logits(mean[rows, : count - 1])[:, None]
            logits = torch.cat([centre + half, centre - half], 1).float()  # (rows, points, classes)
            total = logits.logsumexp(2, keepdim=True)
            if wanted is not None:
                logits = logits.gather(2, wanted[rows, :, None].expand(-1, logits.shape[1], 1))
            result[rows, : logits.shape[2]] = (logits - total).double().exp().mean(1)
    return result if wanted is None else result[:, 0]


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
