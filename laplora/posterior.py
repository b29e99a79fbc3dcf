"""The Laplace posterior over LoRA weights and its predictive covariance.

Each block's posterior precision is ``lambda I`` plus the GGN in the block's Kronecker eigenbasis: ``s_aj``
in the kept directions, ``tau_j`` in the rest of column j. Everything that depends on the prior precision
``lambda`` is a sum of rational functions of it, so one set of projected Jacobians serves every ``lambda``.
No matrix is inverted anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from laplora.blocks import Block, ContrastJacobians
from laplora.curvature import EigenSums, KroneckerBasis, project
from laplora.errors import PriorError
from laplora.predictive import contrasts

Granularity = Literal["scalar", "group", "module"]


@dataclass(frozen=True)
class Prior:
    """Gaussian prior N(W_init, 1/precision) on each block, centred at the initial adapter.

    Attributes:
        granularity: one precision in all (``scalar``), one per ``lora_A`` and ``lora_B`` (``group``), or one
            per block (``module``).
        precision: by ``"all"``, by group, or by block name.
    """

    granularity: Granularity
    precision: dict[str, float]


@dataclass(frozen=True)
class Posterior:
    """Curvature of every block in its eigenbasis.

    Attributes:
        blocks: which blocks, in order.
        wide: per block (wide, k), orthonormal columns.
        narrow: per block (narrow, narrow), orthonormal.
        scale: per block (k, narrow), GGN diagonal ``s_aj`` summed over the training rows.
        tail: per block (narrow,), ``tau_j``, the mean GGN diagonal of the directions left out.
        rows: training rows summed.
    """

    blocks: tuple[Block, ...]
    wide: tuple[torch.Tensor, ...]
    narrow: tuple[torch.Tensor, ...]
    scale: tuple[torch.Tensor, ...]
    tail: tuple[torch.Tensor, ...]
    rows: int

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Posterior:
        """Return the posterior on a device in a number format."""
        wide, narrow, scale, tail = (
            tuple(t.to(device, dtype) for t in ts) for ts in (self.wide, self.narrow, self.scale, self.tail)
        )
        return Posterior(self.blocks, wide, narrow, scale, tail, self.rows)


@dataclass(frozen=True)
class Spectrum:
    """The posterior's eigenvalues, flat.

    Attributes:
        scale: (kept,) float64, every ``s_aj``; scale_block: (kept,) int64, its block's index.
        tail: (columns,) float64, every ``tau_j``; tail_block: (columns,) int64.
        tail_count: (columns,) float64, the multiplicity ``wide - k`` of each.
    """

    scale: torch.Tensor
    scale_block: torch.Tensor
    tail: torch.Tensor
    tail_block: torch.Tensor
    tail_count: torch.Tensor


@dataclass(frozen=True)
class ProjectedJacobians:
    """A batch's logits, and its Jacobians as far as the posterior looks at them.

    Attributes:
        contrast_mean: (batch, classes - 1), ``Q^T f``, nats.
        kept: (batch, classes - 1, kept), coordinates ``u_a^T J_c v_j`` over all blocks.
        rest: (batch, classes - 1, classes - 1, columns), inner products of what the basis leaves out.
    """

    contrast_mean: torch.Tensor
    kept: torch.Tensor
    rest: torch.Tensor


def build_posterior(blocks: Sequence[Block], bases: Sequence[KroneckerBasis], sums: EigenSums) -> Posterior:
    """Return the posterior's curvature from bases and the second pass over the rows.

    ``tau_j`` is the mean of what the basis leaves out, so each block keeps the exact GGN's trace.
    """
    tails = []
    for block, basis, rest in zip(blocks, bases, sums.rest, strict=True):
        left_out = block.wide - basis.wide.shape[1]
        tails.append(rest.clamp_min(0) / max(left_out, 1))  # a sum of squares; below zero is rounding
    return Posterior(
        blocks=tuple(blocks),
        wide=tuple(b.wide for b in bases),
        narrow=tuple(b.narrow for b in bases),
        scale=tuple(s.clamp_min(0) for s in sums.scale),
        tail=tuple(tails),
        rows=sums.rows,
    )


def spectrum(posterior: Posterior) -> Spectrum:
    """Return the posterior's eigenvalues, flat, in block order."""
    device = posterior.scale[0].device
    kept = [s.numel() for s in posterior.scale]
    columns = [t.numel() for t in posterior.tail]
    counts = [b.wide - w.shape[1] for b, w in zip(posterior.blocks, posterior.wide, strict=True)]
    index = torch.arange(len(posterior.blocks), device=device)
    repeats = torch.tensor(columns, device=device)
    return Spectrum(
        scale=torch.cat([s.double().flatten() for s in posterior.scale]),
        scale_block=index.repeat_interleave(torch.tensor(kept, device=device)),
        tail=torch.cat([t.double() for t in posterior.tail]),
        tail_block=index.repeat_interleave(repeats),
        tail_count=torch.tensor(counts, device=device, dtype=torch.float64).repeat_interleave(repeats),
    )


def block_precisions(prior: Prior, blocks: Sequence[Block]) -> torch.Tensor:
    """Return the prior precision of each block, (blocks,) float64.

    Raises:
        PriorError: a precision missing, not finite or not positive.
    """
    keys = [prior_key(prior.granularity, b) for b in blocks]
    missing = sorted({k for k in keys if k not in prior.precision})
    if missing:
        raise PriorError(f"the prior has no precision for {missing[:4]}")
    values = torch.tensor([prior.precision[k] for k in keys], dtype=torch.float64)
    if not bool((values > 0).all()) or bool(values.isnan().any()):
        raise PriorError("prior precisions must be positive numbers")
    return values


def prior_key(granularity: Granularity, block: Block) -> str:
    """Return the name under which a prior holds a block's precision."""
    return {"scalar": "all", "group": block.group, "module": block.name}[granularity]


def project_jacobians(posterior: Posterior, jacobians: ContrastJacobians) -> ProjectedJacobians:
    """Return a batch's Jacobians as far as the posterior looks at them."""
    kept, rest = [], []
    for wide, narrow, block in zip(posterior.wide, posterior.narrow, jacobians.blocks, strict=True):
        coordinates, left_out = project(block, wide, narrow)
        kept.append(coordinates.flatten(2))
        rest.append(left_out)
    logits = jacobians.logits
    transform = contrasts(logits.shape[-1], logits.dtype).to(logits.device)
    return ProjectedJacobians(logits @ transform, torch.cat(kept, 2), torch.cat(rest, 3))


def predictive_covariance(spectrum: Spectrum, precisions: torch.Tensor, projected: ProjectedJacobians) -> torch.Tensor:
    """Return the covariance of the contrasts under the linearised posterior.

    ``V_cc' = sum_blocks [sum_aj z_c,aj z_c',aj / (lambda + s_aj) + sum_j rest_cc',j / (lambda + tau_j)]``
    (Yang et al., arXiv 2308.13111, equation 12, in the eigenbasis).

    Args:
        precisions: (blocks,) float64 from ``block_precisions``, on the same device.

    Returns:
        (batch, classes - 1, classes - 1) float64, symmetric, nats squared.
    """
    kept_weight = 1 / (precisions[spectrum.scale_block] + spectrum.scale)
    rest_weight = 1 / (precisions[spectrum.tail_block] + spectrum.tail)
    kept = projected.kept.double()
    covariance = (kept * kept_weight) @ kept.transpose(1, 2)
    covariance = covariance + projected.rest.double() @ rest_weight
    return (covariance + covariance.transpose(1, 2)) / 2


def log_determinant_ratio(spectrum: Spectrum, precisions: torch.Tensor) -> torch.Tensor:
    """Return the log determinant of the posterior precision relative to the prior's, a scalar, nats."""
    kept = torch.log1p(spectrum.scale / precisions[spectrum.scale_block]).sum()
    rest = (spectrum.tail_count * torch.log1p(spectrum.tail / precisions[spectrum.tail_block])).sum()
    return kept + rest


def effective_dimension(spectrum: Spectrum, precisions: torch.Tensor) -> torch.Tensor:
    """Return ``gamma``, how many parameters the data determine, per block, (blocks,) float64 (MacKay 1992)."""
    kept = spectrum.scale / (precisions[spectrum.scale_block] + spectrum.scale)
    rest = spectrum.tail_count * spectrum.tail / (precisions[spectrum.tail_block] + spectrum.tail)
    result = torch.zeros_like(precisions)
    return result.index_add(0, spectrum.scale_block, kept).index_add(0, spectrum.tail_block, rest)
