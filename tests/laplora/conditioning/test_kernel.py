"""The kernel between rows and the move of the weights, against explicit matrices over all weights."""

from __future__ import annotations

import pytest
import torch

from laplora.conditioning.kernel import MEMORY_BYTES, RowKernel, check_memory
from laplora.errors import ConfigError
from laplora.jacobians.blocks import Block
from laplora.linearised import contrast_hessian
from laplora.posterior.base import Prior, block_precisions
from laplora.posterior.joint import JointPosterior
from laplora.posterior.joint_solve import joint_of, restrict
from laplora.posterior.passes import StructureSettings
from laplora.posterior.tensors import fit_jacobians

SHAPES = {"a.lora_A": (2, 9), "a.lora_B": (7, 2), "b.lora_B": (8, 2)}
ROWS, CLASSES = 6, 3
PRIORS = [Prior("scalar", {"all": 0.4}), Prior("group", {"lora_A": 3.0, "lora_B": 0.2})]


def jacobians(rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Return random Jacobians of the contrasts by weight."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(rows, CLASSES - 1, *shape, generator=draw, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }


def fitted(structure: str) -> JointPosterior:
    """Return the posterior of 40 training rows."""
    logits = torch.randn(40, CLASSES, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    settings = StructureSettings(structure=structure, rank=2, joint_rank=6, basis_dtype=torch.float64)
    return joint_of(fit_jacobians([(logits, jacobians(40, 1))], settings))


def oriented(given: dict[str, torch.Tensor], posterior: JointPosterior) -> tuple[torch.Tensor, ...]:
    """Return Jacobians as blocks, (rows, contrasts, wide, narrow)."""
    return tuple(given[b.name].mT if b.group == "lora_A" else given[b.name] for b in posterior.blocks)


def dense(posterior: JointPosterior, prior: Prior) -> torch.Tensor:
    """Return Sigma over all weights: the covariance of contrasts that are the weights themselves."""
    sizes = [b.wide * b.narrow for b in posterior.blocks]
    unit = torch.eye(sum(sizes), dtype=torch.float64)
    parts = tuple(
        part.view(len(unit), 1, b.wide, b.narrow)
        for part, b in zip(unit.split(sizes, 1), posterior.blocks, strict=True)
    )
    return RowKernel.of(posterior, parts).at(prior)[:, 0, :, 0]


@pytest.mark.parametrize("structure", ["exact", "joint", "joint_core"])
@pytest.mark.parametrize("prior", PRIORS, ids=["scalar", "group"])
def test_kernel_and_shift(structure: str, prior: Prior) -> None:
    """The kernel is ``J Sigma J^T`` and the shift ``Sigma J^T alpha``, whose effect on the rows is ``K alpha``."""
    posterior = fitted(structure)
    parts = oriented(jacobians(ROWS, 2), posterior)
    flat = torch.cat([p.flatten(2) for p in parts], 2).flatten(0, 1)
    sigma, kernel = dense(posterior, prior), RowKernel.of(posterior, parts)
    expected = (flat @ sigma @ flat.T).view(ROWS, CLASSES - 1, ROWS, CLASSES - 1)
    torch.testing.assert_close(kernel.at(prior), expected, rtol=0, atol=1e-8)
    alpha = torch.randn(ROWS, CLASSES - 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    shift = kernel.shift(alpha, prior)
    torch.testing.assert_close(
        torch.cat([s.flatten() for s in shift]), sigma @ flat.T @ alpha.flatten(), rtol=0, atol=1e-8
    )


def test_exact_sigma_is_the_inverse_precision() -> None:
    """Of the exact structure, Sigma is the inverse of prior precision and curvature."""
    posterior, prior = fitted("exact"), PRIORS[1]
    sigma = dense(posterior, prior)
    sizes = [b.wide * b.narrow for b in posterior.blocks]
    by_weight = block_precisions(prior, posterior.blocks).repeat_interleave(torch.tensor(sizes))
    logits = torch.randn(40, CLASSES, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    hessian = contrast_hessian(logits, torch.ones(40, CLASSES, dtype=torch.bool))
    flat = torch.cat([p.flatten(2) for p in oriented(jacobians(40, 1), posterior)], 2)
    curvature = torch.einsum("ncp,nce,neq->pq", flat, hessian, flat)
    torch.testing.assert_close(sigma, torch.linalg.inv(curvature + by_weight.diag()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("structure", ["exact", "joint_core"])
def test_some_blocks_alone(structure: str) -> None:
    """Restricted to some blocks, the precision is that part of the precision of all."""
    posterior, prior = fitted(structure), PRIORS[0]
    kept = tuple(b for b in posterior.blocks if b.group == "lora_B")
    whole = torch.linalg.inv(dense(posterior, prior))
    places, start = [], 0
    for block in posterior.blocks:
        size = block.wide * block.narrow
        places += range(start, start + size) if block in kept else []
        start += size
    part = dense(restrict(posterior, kept), prior)
    torch.testing.assert_close(torch.linalg.inv(part), whole[places][:, places], rtol=1e-7, atol=1e-7)
    assert restrict(posterior, posterior.blocks) is posterior
    with pytest.raises(ConfigError, match="does not cover"):
        restrict(posterior, (Block("other", "lora_B", 3, 2),))


def test_other_structures_and_too_many_rows_are_refused() -> None:
    """A structure without covariances between rows, and Jacobians beyond memory, are refused by name."""
    logits = torch.randn(40, CLASSES, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ekfac = fit_jacobians([(logits, jacobians(40, 1))], StructureSettings(structure="ekfac", rank=2))
    with pytest.raises(ConfigError, match="joint_core"):
        joint_of(ekfac)
    with pytest.raises(ConfigError, match="fewer rows"):
        check_memory(MEMORY_BYTES // 100, 2, ekfac.blocks)
    check_memory(1000, 2, ekfac.blocks)
