"""The block-diagonal posteriors against explicit dense matrices."""

from __future__ import annotations

import dense_reference as dense
import pytest
import torch
from dense_reference import Problem
from fast_path import basis_by_key, close, dense_ekfac, fit_blocks, key_of
from joint_problem import held_out
from tiny_models import generator

from laplora.jacobians.contrasts import Block, BlockJacobian, ContrastJacobians, contrast_jacobians
from laplora.linearised import contrasts
from laplora.posterior.base import Prior, block_precisions
from laplora.posterior.eigen import EigenPosterior

PRIOR = Prior("group", {"lora_A": 3.0, "lora_B": 0.05})

# Eigenvectors of two Kronecker factors, each right to 1e-15 / (relative gap, here above 1e-5), and sums of some
# hundred products; relative to the largest covariance.
EXACT = 1e-9


def assert_agree(problem: Problem, found: EigenPosterior, bases: dict[dense.Key, dense.Basis]) -> None:
    """Assert that both sides' covariance of the contrasts and log determinant agree, the dense side in ``bases``."""
    task = held_out(problem)
    precisions = block_precisions(PRIOR, found.blocks)
    projected = found.project(contrast_jacobians(problem.model, task.batch(), task.label_ids, found.blocks))
    curvature = dense_ekfac(problem.truth.ggn, bases)
    prior = {key: PRIOR.precision[f"lora_{key.side}"] for key in curvature}
    full = dense.logit_covariance(dense.jacobians(problem.model, task.batch(), task.label_ids), curvature, prior)
    q = contrasts(problem.task.classes)
    close(found.covariance(projected, precisions), q.T @ full @ q, EXACT)
    expected = dense.log_determinant(curvature, prior)
    assert float(found.log_determinant_ratio(precisions)) == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("rank", [1, 4, 1000])
def test_ekfac_matches_with_its_own_dense_eigenbasis(problem: Problem, rank: int) -> None:
    """Nothing shared: the dense side finds its eigenvectors itself; truncated ranks have the isotropic tail."""
    found = fit_blocks(problem.model, problem.task, batch_size=7, rank=rank)
    bases = {key: dense.eigenbasis(factors, rank) for key, factors in problem.truth.factors.items()}
    assert_agree(problem, found, bases)


@pytest.mark.parametrize("stored_as", [torch.float64, torch.bfloat16])
def test_ekfac_matches_in_a_sketched_basis(problem: Problem, stored_as: torch.dtype) -> None:
    """A sketched or rounded basis is only near the eigenvectors. In that basis, which the second pass used, all is
    exact."""
    found = fit_blocks(problem.model, problem.task, rank=4, sketch=8, stored_as=stored_as)
    assert_agree(problem, found, basis_by_key(found))


@pytest.mark.parametrize("rank", [2, 1000])
def test_kfac_is_the_product_of_the_factors_and_keeps_its_trace(problem: Problem, rank: int) -> None:
    found = fit_blocks(problem.model, problem.task, structure="kfac_reduce", rank=rank)
    for i, (key, basis) in enumerate(basis_by_key(found).items()):
        product = dense.kron(problem.truth.factors[key].large, problem.truth.factors[key].small)
        curvature = dense.block_curvature(basis, found.scale[i], found.tail[i])
        close(curvature.trace(), product.trace())
        if rank == 1000:
            # Eigenvectors are right to the shift that keeps the sketch's Cholesky factor stable, near 1e-15.
            close(curvature, product, 1e-10)


@pytest.mark.parametrize("kept", [1, 5, 12])
@pytest.mark.parametrize("inside", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_covariance_is_symmetric_psd_and_right(kept: int, inside: float, dtype: torch.dtype) -> None:
    """Whatever the spread of curvatures, and also where the Jacobians lie in the kept span and nothing is left out."""
    draw = generator(kept)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    u, v = torch.linalg.qr(normal(12, kept)).Q, torch.linalg.qr(normal(3, 3)).Q
    scale = 10 ** (8 * torch.rand((kept, 3), generator=draw, dtype=torch.float64))
    tail = torch.rand(3, generator=draw, dtype=torch.float64) * (kept < 12)
    jacobian = normal(5, 3, 12, 3)
    jacobian = (inside * (u @ (u.T @ jacobian)) + (1 - inside) * jacobian).to(dtype)
    block = Block("m.lora_B", "lora_B", 12, 3)
    jacobians = ContrastJacobians(torch.zeros((5, 4), dtype=dtype), torch.zeros(0), (BlockJacobian(jacobian),))
    state = EigenPosterior((block,), (u,), (v,), (scale,), (tail,), 5, "ekfac").to("cpu", dtype)
    curvature = {key_of(block): dense.block_curvature(dense.Basis(u, v), scale, tail)}
    for precision in (1e-4, 1.0, 1e6):
        found = state.covariance_of(jacobians, torch.tensor([precision]).double())
        assert torch.equal(found, found.mT)
        expected = dense.logit_covariance({key_of(block): jacobian.double()}, curvature, {key_of(block): precision})
        largest = torch.linalg.eigvalsh(expected)[:, -1]
        # float32 Jacobians and basis: the parts of a sum of up to 36 squares of size |J|^2 are off by 1e-7 of it, and
        # at worst carry the weight of the softest direction.
        softest = precision + float(torch.cat([scale.flatten(), tail if kept < 12 else scale[0]]).min())
        rounding = 1e-5 * jacobian.double().square().sum((1, 2, 3)) / softest
        assert (torch.linalg.eigvalsh(found)[:, 0] >= -1e-6 * largest).all()
        assert ((found - expected).abs().amax((1, 2)) <= rounding + 1e-9 * largest).all()
