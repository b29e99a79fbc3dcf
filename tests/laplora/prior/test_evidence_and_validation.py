"""Evidence and its maximiser, and the validation prior, against brute force over dense matrices."""

from __future__ import annotations

from dataclasses import dataclass, replace

import dense_reference as dense
import pytest
import torch
from fast_path import basis_by_key, by_key, dense_ekfac, fit_blocks
from reference_problem import Problem
from tiny_models import generator, initial_lora, tiny_model, tiny_task

from laplora.jacobians.contrasts import contrast_jacobians
from laplora.posterior.base import Granularity, prior_key
from laplora.posterior.eigen import EigenPosterior
from laplora.prior.evidence import choose_by_evidence
from laplora.prior.validation import choose_by_validation


@dataclass(frozen=True)
class Case:
    """What the evidence needs, on both sides."""

    found: EigenPosterior
    distances: torch.Tensor
    log_likelihood: float
    dense_distances: dict[dense.Key, float]
    curvature: dict[dense.Key, torch.Tensor]


@pytest.fixture
def case(problem: Problem) -> Case:
    """The fit of a problem, with distances from made-up initial weights."""
    found = fit_blocks(problem.model, problem.task, rank=4)
    initial = initial_lora(problem.model)
    distances = {}
    for key, weight in dense.block_weights(problem.model).items():
        moved = weight.detach() - initial[f"{key.module}.lora_{key.side}.default.weight"]
        if key.module.endswith("lm_head") and key.side == "B":
            moved = moved[problem.task.label_ids]
        distances[key] = float(moved.square().sum())
    return Case(
        found,
        torch.tensor([distances[key] for key in by_key(found.blocks, found.blocks)], dtype=torch.float64),
        dense.log_likelihood(problem.truth.logits, problem.task.labels, problem.task.batch().class_mask),
        distances,
        dense_ekfac(problem.truth.ggn, basis_by_key(found)),
    )


@pytest.mark.parametrize("granularity", ["scalar", "group", "module"])
def test_evidence_choice_is_the_brute_force_maximum(case: Case, granularity: Granularity) -> None:
    choice = choose_by_evidence(case.found, case.distances, case.log_likelihood, granularity)
    names = by_key([prior_key(granularity, b) for b in case.found.blocks], case.found.blocks)
    grid = torch.logspace(-3, 3, 61, dtype=torch.float64).tolist()
    if granularity == "module":  # each block has a precision of its own, so each is maximised alone
        best = {}
        for key, curvature in case.curvature.items():
            best |= dense.grid_best_evidence({key: names[key]}, 0.0, case.dense_distances, {key: curvature}, grid)[0]
    else:
        best, _ = dense.grid_best_evidence(names, case.log_likelihood, case.dense_distances, case.curvature, grid)
    step = grid[1] / grid[0]
    for name, value in best.items():
        assert value / step < choice.prior.precision[name] < value * step, name

    def evidence(precision: dict[str, float]) -> float:
        prior = {key: precision[names[key]] for key in case.curvature}
        return dense.log_evidence(case.log_likelihood, case.dense_distances, case.curvature, prior)

    at_choice = evidence(choice.prior.precision)
    assert choice.objective == pytest.approx(at_choice, rel=1e-10)
    assert choice.at_bound == ()
    for name, value in choice.prior.precision.items():
        for factor in (0.9, 1.1):
            assert evidence(choice.prior.precision | {name: value * factor}) < at_choice, f"{name} x {factor}"


def test_an_adapter_that_never_moved_ends_at_the_bound(case: Case) -> None:
    choice = choose_by_evidence(case.found, case.distances * 0, case.log_likelihood, "scalar")
    assert choice.at_bound == ("all",)
    assert choice.prior.precision["all"] > 1e6


@pytest.mark.slow
def test_validation_choice_beats_a_fine_grid() -> None:
    """No precision on a fine grid has less held-out NLL, by dense covariance and one-dimensional integrals.

    The held-out labels are drawn from the predictive distribution at precision 3, so that the best one is no bound.
    """
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
