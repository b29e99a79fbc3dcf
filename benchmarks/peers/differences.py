"""How far predictive covariances of a tiny model are apart, as a softmax sees them."""

from __future__ import annotations

import torch

from laplora.linearised import contrasts


def in_contrasts(logit_covariance: torch.Tensor) -> torch.Tensor:
    """Return ``Q^T V Q`` of covariances of the class logits: what a softmax sees of them."""
    transform = contrasts(logit_covariance.shape[-1])
    return transform.T @ logit_covariance.double() @ transform


def relative_difference(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the largest over rows of |got - wanted| / |wanted|, Frobenius norms of each row's entry."""
    gaps = (got.double() - wanted.double()).flatten(1).norm(dim=1)
    return float((gaps / wanted.double().flatten(1).norm(dim=1)).max())


def variance_ratio(got: torch.Tensor, wanted: torch.Tensor) -> dict[str, float | None]:
    """Return the median and range of the rows' total variances' ratio, and their logs' correlation, None below 0."""
    ours = got.double().diagonal(dim1=1, dim2=2).sum(1)
    truth = wanted.double().diagonal(dim1=1, dim2=2).sum(1)
    ratio = ours / truth
    logs = torch.stack([ours.log(), truth.log()])
    return {
        "median_ratio": float(ratio.median()),
        "lowest_ratio": float(ratio.min()),
        "highest_ratio": float(ratio.max()),
        "log_correlation": float(torch.corrcoef(logs)[0, 1]) if bool((ours > 0).all()) else None,
    }
