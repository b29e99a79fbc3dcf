"""The kinds of KFAC against dense factors, and the three on data where a Kronecker product is the exact GGN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dense_reference as dense
import pytest
import torch
from fast_path import by_key, close, key_of, replay, rows_of
from reference_problem import Problem
from tiny_models import Task, tiny_model, tiny_task

from benchmarks.study.structures import fit_posterior, needs_tokens
from benchmarks.study.structures.kfac import TokenSums, add_expand_batch, empty_token_sums
from laplora.errors import FactorizationError
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.linearised import contrasts
from laplora.posterior.base import Prior, block_precisions
from laplora.posterior.eigen import EigenPosterior
from laplora.posterior.passes import StructureSettings
from laplora.prompts.rows import Batch, EncodedRow

KINDS = ("reduce", "expand", "last")
PRIOR = Prior("group", {"lora_A": 3.0, "lora_B": 0.05})


def kfac_tokens(model: Any, batch: Batch, label_ids: Sequence[int], *, last: bool) -> dict[dense.Key, dense.Factors]:
    """Return the dense Kronecker factors of every block with tokens as terms of their own: KFAC-expand.

    A = 1/(tokens of all rows) sum_nt x_nt x_nt^T; S = sum_nt sum_cd Lambda_cd g_nct g_ndt^T, g_nct the gradient of
    logit c at the layer's output at token t, found as the gradient with respect to a zero bias of every token.
    lm_head is read at one token, which is then the row's only term.

    Args:
        last: with each row's last token only, and so 1/N.
    """
    keys = list(dense.block_weights(model))
    inputs: dict[dense.Key, torch.Tensor] = {}
    gradients: dict[dense.Key, torch.Tensor] = {}
    terms = dict.fromkeys(keys, 0)
    for row in dense.single_rows(batch):
        with dense.zero_biases(model, keys, tokens=row.input_ids.shape[1]) as (biases, seen):
            logits = dense.class_logits(model, row, label_ids)[0]
            hessian = dense.softmax_hessian(dense.masked_probs(logits.detach(), row.class_mask).double())[0]
            grads = [torch.autograd.grad(z, list(biases.values()), retain_graph=True) for z in logits]
        for i, key in enumerate(biases):
            lm_head = key.module.endswith("lm_head")
            for t in range(row.input_ids.shape[1]):
                if (lm_head or last) and t + 1 < row.input_ids.shape[1]:
                    continue
                x = seen[key][0, t].double()
                g = torch.stack([per_class[i][t].double() for per_class in grads])
                if lm_head and key.side == "B":
                    g = g[:, list(label_ids)]
                inputs[key] = inputs.get(key, 0) + torch.outer(x, x)
                gradients[key] = gradients.get(key, 0) + g.T @ hessian @ g
                terms[key] += 1
    return {
        key: dense.Factors(inputs[key] / terms[key], gradients[key])
        if key.side == "A"
        else dense.Factors(gradients[key], inputs[key] / terms[key])
        for key in keys
    }


def dense_factors(problem: Problem, kind: str) -> dict[dense.Key, dense.Factors]:
    if kind == "reduce":
        return problem.truth.factors
    return kfac_tokens(problem.model, problem.task.batch(), problem.task.label_ids, last=kind == "last")


def fit_kfac(model: Any, task: Task, kind: str, *, rank: int = 1000, batch_size: int = 16) -> EigenPosterior:
    blocks = find_blocks(model, task.classes)
    settings = StructureSettings(f"kfac_{kind}", rank=rank, oversampling=1000, basis_dtype=torch.float64)
    rows = rows_of(model, task, batch_size=batch_size, tokens=needs_tokens(settings.structure))
    found = fit_posterior(settings, blocks, replay(rows))
    assert isinstance(found, EigenPosterior)
    return found


def dense_blocks(posterior: EigenPosterior) -> dict[dense.Key, torch.Tensor]:
    """Return each block's curvature as one matrix."""
    parts = zip(posterior.wide, posterior.narrow, posterior.scale, posterior.tail, strict=True)
    return by_key([dense.block_curvature(dense.Basis(u, v), s, t) for u, v, s, t in parts], posterior.blocks)


@pytest.mark.parametrize("kind", KINDS)
def test_curvature_is_the_product_of_the_dense_factors(problem: Problem, kind: str) -> None:
    posterior = fit_kfac(problem.model, problem.task, kind)
    assert (posterior.structure, posterior.rows) == (f"kfac_{kind}", 60)
    factors = dense_factors(problem, kind)
    for key, found in dense_blocks(posterior).items():
        # Eigenvectors are right to the shift that keeps the sketch's Cholesky factor stable, near 1e-15 of the norm.
        close(found, dense.kron(factors[key].large, factors[key].small), 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_match_the_dense_posterior(problem: Problem, kind: str) -> None:
    """A truncated basis with its tail, at rows that were not fitted: covariance and log determinant."""
    posterior = fit_kfac(problem.model, problem.task, kind, rank=4)
    curvature_of = {}
    for key, factors in dense_factors(problem, kind).items():
        basis = dense.eigenbasis(factors, 4)
        large, small = (torch.linalg.eigvalsh(m).flip(0).clamp_min(0) for m in (factors.large, factors.small))
        rest = large[4:].mean() if len(large) > 4 else torch.zeros(()).double()
        curvature_of[key] = dense.block_curvature(basis, torch.outer(large[:4], small), rest * small)
    test = replace(tiny_task(examples=9, seed=99), label_ids=problem.task.label_ids)
    batch = test.batch()
    jacobians = contrast_jacobians(problem.model, batch, test.label_ids, posterior.blocks)
    precisions = block_precisions(PRIOR, posterior.blocks)
    prior = {key: PRIOR.precision[f"lora_{key.side}"] for key in curvature_of}
    full = dense.logit_covariance(dense.jacobians(problem.model, batch, test.label_ids), curvature_of, prior)
    q = contrasts(problem.task.classes)
    # As for EKFAC: eigenvectors of well separated eigenvalues, relative to the largest covariance.
    close(posterior.covariance_of(jacobians, precisions), q.T @ full @ q, 1e-8)
    expected = dense.log_determinant(curvature_of, prior)
    assert float(posterior.log_determinant_ratio(precisions)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_basis_keeps_the_products_trace(problem: Problem, kind: str) -> None:
    posterior = fit_kfac(problem.model, problem.task, kind, rank=2)
    factors = dense_factors(problem, kind)
    for block, scale, tail in zip(posterior.blocks, posterior.scale, posterior.tail, strict=True):
        expected = torch.trace(factors[key_of(block)].large) * torch.trace(factors[key_of(block)].small)
        close(scale.sum() + (block.wide - len(scale)) * tail.sum(), expected)


@pytest.mark.parametrize("rows", [1, 5])
def test_all_kinds_are_the_exact_ggn_where_it_factorises(rows: int) -> None:
    """Equal rows of one token: every sum is so many times one Kronecker product, of scale right in all kinds.

    A factor 1/N too many or too few, or a mean where a sum belongs, is off by the number of rows.
    """
    model = tiny_model("llama")
    task = tiny_task(examples=rows)
    task = replace(task, rows=[EncodedRow((7,), 3)] * rows)
    ggn = dense.truth(model, task.batch(), task.label_ids).ggn
    # One token has nothing to attend to: the blocks of queries and keys are zero, and rounding in the others' scale.
    rounding = 1e-9 * max(float(block.abs().max()) for block in ggn.values())
    for kind in KINDS:
        for key, block in dense_blocks(fit_kfac(model, task, kind, batch_size=2)).items():
            torch.testing.assert_close(block, ggn[key], rtol=1e-9, atol=rounding)


def test_all_kinds_agree_on_rows_of_one_token() -> None:
    model = tiny_model("phi3")
    task = tiny_task(examples=12)
    task = replace(task, rows=[EncodedRow(row.token_ids[:1], row.class_count) for row in task.rows])
    reduce, *others = (dense_blocks(fit_kfac(model, task, kind)) for kind in KINDS)
    for other in others:
        for key, expected in reduce.items():
            close(other[key], expected, 1e-9)


def test_kinds_differ_on_rows_of_several_tokens(problem: Problem) -> None:
    """So the agreement above is not that of one and the same code."""
    traces = [torch.stack([s.sum() for s in fit_kfac(problem.model, problem.task, kind).scale]) for kind in KINDS]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (traces[first] / traces[second]).log().abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_posterior_does_not_depend_on_batching(kind: str) -> None:
    """Rows of 1 to 7 tokens, alone and padded together: padding is no term of KFAC-expand's mean."""
    model, task = tiny_model("llama"), tiny_task(examples=20)
    whole, other = (dense_blocks(fit_kfac(model, task, kind, batch_size=size)) for size in (20, 1))
    for key, expected in whole.items():
        close(other[key], expected, 1e-10)


def test_the_terms_of_expand_are_its_real_tokens() -> None:
    model, task = tiny_model("llama"), tiny_task(examples=20)
    blocks = find_blocks(model, task.classes)
    empty = empty_token_sums(StructureSettings("kfac_expand"), blocks)
    sums: TokenSums = replay(rows_of(model, task, batch_size=8, tokens=True))("", empty, add_expand_batch)
    heads = torch.tensor([b.name.startswith("lm_head") for b in blocks])
    assert (sums.terms[~heads] == sum(len(row.token_ids) for row in task.rows)).all()
    assert (sums.terms[heads] == 20).all()


@pytest.mark.parametrize("kind", ["expand", "last"])
def test_kinds_of_tokens_refuse_jacobians_without_them(kind: str) -> None:
    model, task = tiny_model("llama"), tiny_task(examples=3)
    rows = rows_of(model, task, batch_size=3)
    with pytest.raises(FactorizationError, match="need Jacobians with every token"):
        fit_posterior(StructureSettings(f"kfac_{kind}"), find_blocks(model, task.classes), replay(rows))
