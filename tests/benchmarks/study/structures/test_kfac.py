"""KFAC of single tokens against dense factors, and on data where a Kronecker product is the exact GGN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dense_reference as dense
import pytest
import torch
from fast_path import by_key, close, replay, rows_of
from reference_problem import Problem
from tiny_models import Task, tiny_model, tiny_task

from benchmarks.study.structures import fit_posterior, needs_tokens
from laplora.errors import FactorizationError
from laplora.jacobians.contrasts import find_blocks
from laplora.posterior.eigen import EigenPosterior
from laplora.posterior.passes import StructureSettings
from laplora.prompts.rows import Batch, EncodedRow

KINDS = ("expand", "last")


def kfac_tokens(model: Any, batch: Batch, label_ids: Sequence[int], *, last: bool) -> dict[dense.Key, dense.Factors]:
    """Return the dense Kronecker factors of every block with tokens as terms: KFAC-expand.

    A = 1/(tokens of all rows) sum_nt x_nt x_nt^T; S = sum_nt sum_cd Lambda_cd g_nct g_ndt^T, g_nct the gradient of
    logit c at the layer's output at token t, taken as the gradient with respect to a zero bias of every token.
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


def fit_kfac(model: Any, task: Task, kind: str, *, batch_size: int = 16) -> EigenPosterior:
    blocks = find_blocks(model, task.classes)
    settings = StructureSettings(f"kfac_{kind}", rank=1000, oversampling=1000, basis_dtype=torch.float64)
    rows = rows_of(model, task, batch_size=batch_size, tokens=needs_tokens(settings.structure))
    posterior = fit_posterior(settings, blocks, replay(rows))
    assert isinstance(posterior, EigenPosterior)
    return posterior


def dense_blocks(posterior: EigenPosterior) -> dict[dense.Key, torch.Tensor]:
    """Return each block's curvature as one matrix."""
    parts = zip(posterior.wide, posterior.narrow, posterior.scale, posterior.tail, strict=True)
    return by_key([dense.block_curvature(dense.Basis(u, v), s, t) for u, v, s, t in parts], posterior.blocks)


@pytest.mark.parametrize("kind", KINDS)
def test_curvature_is_the_product_of_the_dense_factors(problem: Problem, kind: str) -> None:
    posterior = fit_kfac(problem.model, problem.task, kind)
    assert (posterior.structure, posterior.rows) == (f"kfac_{kind}", 60)
    factors = kfac_tokens(problem.model, problem.task.batch(), problem.task.label_ids, last=kind == "last")
    for key, block in dense_blocks(posterior).items():
        # Eigenvectors are right to the shift that keeps the sketch's Cholesky factor stable, near 1e-15 of the norm.
        close(block, dense.kron(factors[key].large, factors[key].small), 1e-10)


def test_both_kinds_are_the_exact_ggn_where_it_factorises() -> None:
    """Equal rows of one token: every sum is so many times one Kronecker product, of scale right in both kinds.

    A factor 1/N too many or too few, or a mean where a sum belongs, is off by the number of rows.
    """
    model = tiny_model("llama")
    task = replace(tiny_task(examples=5), rows=[EncodedRow((7,), 3)] * 5)
    ggn = dense.truth(model, task.batch(), task.label_ids).ggn
    # One token has nothing to attend to: the blocks of queries and keys are zero, and rounding in the others' scale.
    rounding = 1e-9 * max(float(block.abs().max()) for block in ggn.values())
    for kind in KINDS:
        for key, block in dense_blocks(fit_kfac(model, task, kind, batch_size=2)).items():
            torch.testing.assert_close(block, ggn[key], rtol=1e-9, atol=rounding)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_tokens_refuse_jacobians_without_them(kind: str) -> None:
    model, task = tiny_model("llama"), tiny_task(examples=3)
    rows = rows_of(model, task, batch_size=3)
    with pytest.raises(FactorizationError, match="need Jacobians with every token"):
        fit_posterior(StructureSettings(f"kfac_{kind}"), find_blocks(model, task.classes), replay(rows))
