"""The posterior of two classes from whole Jacobians, without any of the library's structures."""

from __future__ import annotations

import torch

from laplora.jacobians.blocks import ContrastJacobians


def exact_variances(found: ContrastJacobians, hessian: torch.Tensor, precision: float) -> torch.Tensor:
    """Return (rows,) float64 the variance of each row's contrast when these rows have trained, in the dual form.

    Args:
        hessian: (rows,), the loss's second derivative in the contrast; precision: of the prior, one in all.
    """
    jacobian = torch.cat([one.jacobian.flatten(2) for one in found.blocks], 2).double()[:, 0]
    root = hessian.sqrt()[:, None] * jacobian
    inner = torch.linalg.inv(precision * torch.eye(len(root), dtype=torch.float64) + root @ root.T)
    across = jacobian @ root.T
    return (jacobian.square().sum(1) - ((across @ inner) * across).sum(1)) / precision
