"""The dense truth that peers are measured against: explicit float64 matrices over all LoRA weights of a tiny model.

Jacobians come from ``laplora.jacobians.contrasts``, which the tests compare with one autograd call per number.
Everything else here is a dense product or inverse: slow, and too short to be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.peers.subject import Subject
from laplora.jacobians.blocks import Block
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.linearised import contrast_hessian, contrasts
from laplora.prompts.rows import EncodedRow


@dataclass(frozen=True)
class Dense:
    """Jacobians of a subject's rows, float64.

    Attributes:
        logits: (rows, classes).
        jacobians: (rows, classes - 1, parameters), of the contrasts, each block's weight flattened as torch stores it.
        hessian: (rows, classes - 1, classes - 1), of the negative log-likelihood in the contrasts.
    """

    blocks: tuple[Block, ...]
    logits: torch.Tensor
    jacobians: torch.Tensor
    hessian: torch.Tensor

    def ggn(self) -> torch.Tensor:
        """Return the exact GGN summed over rows, (parameters, parameters)."""
        return torch.einsum("ncp,ncd,ndq->pq", self.jacobians, self.hessian, self.jacobians)

    def block_diagonal(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return a matrix over parameters with everything between two blocks set to 0."""
        sizes = [b.wide * b.narrow for b in self.blocks]
        rows = matrix.split(sizes)
        return torch.block_diag(*(row.split(sizes, 1)[i] for i, row in enumerate(rows)))


def dense(subject: Subject, rows: Sequence[EncodedRow]) -> Dense:
    """Return the Jacobians of rows, each taken through the model alone and without padding."""
    blocks = find_blocks(subject.model, len(subject.label_ids))
    logits, jacobians, hessians = [], [], []
    for batch in subject.batches(rows):
        result = contrast_jacobians(subject.model, batch, subject.label_ids, blocks)
        # Blocks are seen as (wide, narrow); torch stores lora_A as (narrow, wide).
        stored = [
            entry.jacobian.mT if block.group == "lora_A" else entry.jacobian
            for block, entry in zip(blocks, result.blocks, strict=True)
        ]
        logits.append(result.logits.double())
        jacobians.append(torch.cat([j.flatten(2).double() for j in stored], 2))
        hessians.append(contrast_hessian(result.logits, batch.class_mask))
    return Dense(blocks, torch.cat(logits), torch.cat(jacobians), torch.cat(hessians))


def covariance(jacobians: torch.Tensor, curvature: torch.Tensor, precision: float) -> torch.Tensor:
    """Return ``J (precision I + curvature)^-1 J^T`` per row, (rows, classes - 1, classes - 1)."""
    size = curvature.shape[0]
    inverse = torch.linalg.inv(curvature + precision * torch.eye(size, dtype=curvature.dtype))
    return jacobians @ inverse @ jacobians.mT


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
