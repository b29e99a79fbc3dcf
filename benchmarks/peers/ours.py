"""laplora's posteriors of a subject's training rows, nothing cut off or rounded, and how far covariances are apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from benchmarks.peers.subject import Subject
from laplora.jacobians.blocks import ContrastJacobians
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.linearised import contrasts
from laplora.posterior.base import Posterior
from laplora.posterior.passes import StructureSettings
from laplora.posterior.structures import fit_posterior

State = TypeVar("State")


def fit_laplora(subject: Subject, structure: str, *, size: int = 1) -> Posterior:
    """Return laplora's posterior of the training rows, no rank cut and nothing rounded; ``size``: rows per batch."""
    blocks = find_blocks(subject.model, len(subject.label_ids))

    def run_pass(_title: str, empty: State, add: Callable[[State, ContrastJacobians, torch.Tensor], State]) -> State:
        state = empty
        for batch in subject.batches(subject.train, size):
            jacobians = contrast_jacobians(subject.model, batch, subject.label_ids, blocks)
            state = add(state, jacobians, batch.class_mask)
        return state

    everything = {"rank": max(b.wide for b in blocks), "joint_rank": sum(b.wide * b.narrow for b in blocks)}
    settings = StructureSettings(structure, **everything, oversampling=0, basis_dtype=torch.float64)
    return fit_posterior(settings, blocks, run_pass)


def covariances(subject: Subject, posterior: Posterior, precision: float, *, size: int = 1) -> torch.Tensor:
    """Return laplora's covariance of the test rows' contrasts, (rows, classes - 1, classes - 1)."""
    precisions = torch.full((len(posterior.blocks),), precision, dtype=torch.float64)
    return torch.cat(
        [
            posterior.covariance_of(
                contrast_jacobians(subject.model, batch, subject.label_ids, posterior.blocks), precisions
            )
            for batch in subject.batches(subject.test, size)
        ]
    )


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
