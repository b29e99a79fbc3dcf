"""Priors by evidence and by validation against brute force over dense matrices."""

from __future__ import annotations

from dataclasses import replace

import dense_reference as dense
import pytest
import torch
from dense_reference import Problem
from fast_path import basis_by_key, dense_ekfac, fit_blocks, rows_of
from joint_problem import dense_ggn, fit_joint, parameter_precisions
from tiny_models import generator, tiny_model, tiny_task

from laplora.errors import PriorError
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.posterior.base import Granularity, Posterior, Prior, block_precisions
from laplora.prior.evidence import choose_by_evidence
from laplora.prior.search import choose_by_validation


@pytest.mark.parametrize(
    ("structure", "granularity"),
    [("joint_core", "scalar"), ("joint_core", "group"), ("ekfac", "scalar"), ("ekfac", "group")],
)
def test_no_neighbour_has_more_evidence(problem: Problem, structure: str, granularity: Granularity) -> None:
    """Of a joint posterior, each group's best precision depends on the other's."""
    found: Posterior
    if structure == "joint_core":
        blocks = find_blocks(problem.model, problem.task.classes)
        found = fit_joint(blocks, rows_of(problem.model, problem.task, batch_size=16))
        curvature = dense_ggn(problem, blocks)
    else:
        found = fit_blocks(problem.model, problem.task, rank=4)
        curvature = torch.block_diag(*dense_ekfac(problem.truth.ggn, basis_by_key(found)).values())
    distances = torch.tensor([b.wide * b.narrow / (4.0 if b.group == "lora_A" else 1.0) for b in found.blocks]).double()
    choice = choose_by_evidence(found, distances, -50.0, granularity)
    assert choice.at_bound == ()

    def evidence(precision: dict[str, float]) -> float:
        precisions = block_precisions(Prior(granularity, precision), found.blocks)
        root = parameter_precisions(precisions, found.blocks).rsqrt()
        relative = torch.eye(len(curvature), dtype=torch.float64) + root[:, None] * curvature * root
        return -50.0 - 0.5 * float((precisions * distances).sum()) - 0.5 * float(torch.logdet(relative))

    best = evidence(choice.prior.precision)
    assert choice.objective == pytest.approx(best, rel=1e-10)
    for key, value in choice.prior.precision.items():
        # At a maximum; a move of 1 per cent costs about 1e-4 of gamma / 2.
        for factor in (0.5, 0.99, 1.01, 2):
            assert evidence(choice.prior.precision | {key: value * factor}) < best, f"{key} x {factor}"


def test_an_adapter_that_never_moved_ends_at_the_bound() -> None:
    found = fit_blocks(tiny_model("llama"), tiny_task(), rank=4)
    choice = choose_by_evidence(found, torch.zeros(len(found.blocks)).double(), -50.0, "scalar")
    assert choice.at_bound == ("all",)
    assert choice.prior.precision["all"] > 1e6
    with pytest.raises(PriorError, match="finite"):
        choose_by_evidence(found, torch.full((len(found.blocks),), torch.nan), -50.0)


@pytest.mark.slow
def test_validation_choice_beats_a_fine_grid() -> None:
    """No precision on a fine grid has less held-out NLL, by dense covariance and one-dimensional integrals."""
    model, train = tiny_model("llama"), tiny_task(examples=20, classes=2)
    found = fit_blocks(model, train, rank=4)
    curvature = dense_ekfac(dense.truth(model, train.batch(), train.label_ids).ggn, basis_by_key(found))
    task = replace(tiny_task(examples=60, classes=2, seed=41), label_ids=train.label_ids)
    batch = task.batch()
    logits = dense.map_logits(model, batch, task.label_ids)
    jacobians = dense.jacobians(model, batch, task.label_ids)

    def probs(a: float, b: float) -> torch.Tensor:
        prior = {key: a if key.side == "A" else b for key in curvature}
        return dense.two_class_probs(logits, dense.logit_covariance(jacobians, curvature, prior))

    labels = torch.multinomial(probs(3.0, 3.0), 1, generator=generator(1))

    def nll(a: float, b: float) -> float:
        return -float(probs(a, b).gather(1, labels).log().mean())

    projected = found.project(contrast_jacobians(model, batch, task.label_ids, found.blocks))
    scalar = choose_by_validation(found, projected, labels[:, 0], batch.class_mask, "scalar")
    grouped = choose_by_validation(found, projected, labels[:, 0], batch.class_mask, "group")
    chosen = scalar.prior.precision["all"]
    assert scalar.at_bound == ()
    assert 1e-3 < chosen < 1e5
    # Two integration rules, each right to 1e-9 or better.
    assert -scalar.objective == pytest.approx(nll(chosen, chosen), abs=1e-8)
    assert min(nll(1e-3, 1e-3), nll(1e8, 1e8)) > -scalar.objective + 0.002, "a flat curve tests nothing"
    for precision in torch.logspace(-3, 6, 46, dtype=torch.float64).tolist():
        # The search ends within 1e-3 in log precision, where the NLL is flat to second order: below 1e-6.
        assert nll(precision, precision) > -scalar.objective - 1e-6
    a, b = grouped.prior.precision["lora_A"], grouped.prior.precision["lora_B"]
    assert -grouped.objective == pytest.approx(nll(a, b), abs=1e-8)
    assert grouped.objective >= scalar.objective - 1e-9
    with pytest.raises(PriorError, match="needs held-out rows"):
        choose_by_validation(found, projected, labels[:0, 0], batch.class_mask[:0])
