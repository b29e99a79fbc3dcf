"""Fewer directions than contrasts, for tasks of many classes: each costs a backward pass of the model.

With probabilities ``p`` of a row, ``Lambda = diag p - p p^T`` is its curvature in the class logits
(``laplora.linearised``), of rank C-1.

*Fit.* Its leading eigenvectors ``e_i`` with their eigenvalues, and of the rest k draws ``y ~ p``: with ``P`` the
projection on the rest, the directions ``P (onehot(y) - p)`` of weight 1/k each have the rest's curvature as their mean
(the Monte-Carlo Fisher; Kunstner, Balles and Hennig, arXiv 1905.12558, section 2). So the curvature of a fit is
unbiased, and exact with C-1 eigenvectors.

*Answer.* The directions S that say most of a row's probabilities. To first order these have the variance
``Lambda V Lambda``, and V, the covariance of the contrasts, is unknown before its Jacobians. With an average K of it
over rows, ``K = L L^T``, the leading eigenvectors E of ``L^T Lambda L`` give ``S = L^-T E``: of all choices of as many
directions they leave the least trace of ``Lambda V`` unknown, if V is like K.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from laplora.jacobians.blocks import Choose, Directions
from laplora.linearised import class_probs, contrasts

#: Share of a uniform distribution in the probabilities that choose an answer's directions. If all but a few are 0,
#: rounding would choose the others.
_UNIFORM = 0.01
#: Added to K's diagonal, relative to its mean: labels may share a token's direction.
_RIDGE = 1e-6


def fisher_directions(leading: int, samples: int, rows: Sequence[int], seed: int) -> Choose:
    """Return the choice of a fit's directions for a batch: ``leading`` eigenvectors, and then ``samples`` draws.

    Args:
        rows: number of each row of the batch among the training rows. Its draws depend on it and the seed alone, so
            that batching does not matter.
    """
    uniform = torch.stack(
        [torch.rand(samples, generator=torch.Generator().manual_seed(hash((seed, row)) & (2**63 - 1))) for row in rows]
    ).double()

    def choose(logits: torch.Tensor, class_mask: torch.Tensor) -> Directions:
        probs = class_probs(logits, class_mask)
        values, vectors = torch.linalg.eigh(torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :])
        kept = min(leading, probs.shape[1] - 1)
        values, vectors = values.flip(1)[:, :kept].clamp_min(0), vectors.flip(2)[:, :, :kept]
        # One draw in each of as many equal parts of [0, 1]: their mean is still that of p, and varies less.
        places = (uniform.to(probs) + torch.arange(samples).to(probs)) / max(samples, 1)
        drawn = torch.searchsorted(probs.cumsum(1), places).clamp_max(probs.shape[1] - 1)
        gradients = torch.nn.functional.one_hot(drawn, probs.shape[1]) - probs[:, None, :]
        rest = gradients - (gradients @ vectors) @ vectors.mT
        directions = torch.cat([vectors.mT, rest], 1)
        weights = torch.cat([values, torch.full_like(places, 1 / max(samples, 1))], 1)
        return Directions(directions.transpose(0, 1), torch.diag_embed(weights))

    return choose


def answer_directions(average: torch.Tensor, count: int) -> Choose:
    """Return the choice of an answer's directions, orthonormal in the average covariance.

    Args:
        average: (classes - 1, classes - 1) symmetric positive semi-definite, K in the contrasts, in any unit.
        count: how many, at most the contrasts of a row with the fewest possible classes.
    """
    full = average.double()
    ridge = _RIDGE * full.diagonal().mean() * torch.eye(len(full), dtype=full.dtype, device=full.device)

    def choose(logits: torch.Tensor, class_mask: torch.Tensor) -> Directions:
        classes = logits.shape[1]
        transform = contrasts(classes).to(logits.device)
        counts = class_mask.sum(1)
        probs = (1 - _UNIFORM) * class_probs(logits, class_mask) + _UNIFORM * class_mask / counts[:, None]
        hessian = transform.T @ (torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]) @ transform
        result = torch.zeros(len(logits), classes - 1, count, dtype=torch.float64, device=logits.device)
        for possible in sorted(set(counts.tolist())):
            rows, size = (counts == possible).nonzero()[:, 0], possible - 1
            half = torch.linalg.cholesky((full + ridge)[:size, :size].to(logits.device))
            _, vectors = torch.linalg.eigh(half.T @ hessian[rows][:, :size, :size] @ half)
            kept = vectors.flip(2)[:, :, : min(count, size)]
            result[rows, :size, : kept.shape[2]] = torch.linalg.solve_triangular(half.T, kept, upper=True)
        return Directions((transform @ result).permute(2, 0, 1))

    return choose
