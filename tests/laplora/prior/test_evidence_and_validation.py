"""Evidence and its maximiser, and the validation prior, against brute force over dense matrices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import dense_reference as dense
import pytest
import torch
from fast_path import Fit, dense_curvature_of, fit, key_of
from reference_problem import Problem
from tiny_models import generator, initial_lora, tiny_model, tiny_task

from laplora.jacobians.contrasts import contrast_jacobians
from laplora.posterior.base import Prior, block_precisions
from laplora.prior.evidence import choose_by_evidence, log_evidence
from laplora.prior.validation import choose_by_validation


@dataclass(frozen=True)
class Case:
    """What the evidence needs, on both sides."""

    found: Fit
    distances: torch.Tensor
    log_likelihood: float
    dense_distances: dict[dense.Key, float]
    curvature: dict[dense.Key, torch.Tensor]


def case(problem: Problem, rank: int = 4) -> Case:
    """Return the fit of a problem, with distances from made-up initial weights."""
    found = fit(problem.model, problem.task, batch_size=16, rank=rank)
    initial = {name: value for name, value in initial_lora(problem.model).items()}
    distances = {}
    for name, weight in problem.model.named_parameters():
        if "lora_" not in name:
            continue
        moved = weight.detach() - initial[name]
        module, _, rest = name.rpartition(".lora_")
        key = dense.Key(module, rest[0])
        if module.endswith("lm_head") and key.side == "B":
            moved = moved[problem.task.label_ids]
        distances[key] = float(moved.square().sum())
    curvature = dense_curvature_of(found, problem.truth.ggn)
    mask = problem.task.batch().class_mask
    return Case(
        found,
        torch.tensor([distances[key_of(b)] for b in found.blocks], dtype=torch.float64),
        dense.log_likelihood(problem.truth.logits, problem.task.labels, mask),
        distances,
        curvature,
    )


def dense_evidence(one: Case, by_group: dict[str, float]) -> float:
    """Return the dense evidence for a precision per side."""
    prior = {key: by_group[f"lora_{key.side}"] for key in one.curvature}
    return dense.log_evidence(one.log_likelihood, one.dense_distances, one.curvature, prior)


def test_evidence_matches(problem: Problem) -> None:
    one = case(problem)
    for a, b in ((0.01, 0.3), (1.0, 1.0), (50.0, 4.0)):
        prior = Prior("group", {"lora_A": a, "lora_B": b})
        found = log_evidence(
            one.found.posterior, block_precisions(prior, one.found.blocks), one.distances, one.log_likelihood
        )
        # Log determinants of at most 144 x 144 dense matrices: some hundred roundings.
        assert found == pytest.approx(dense_evidence(one, prior.precision), rel=1e-10)


@pytest.mark.parametrize("granularity", ["scalar", "group", "module"])
def test_evidence_choice_is_the_brute_force_maximum(problem: Problem, granularity: Any) -> None:
    one = case(problem)
    choice = choose_by_evidence(one.found.posterior, one.distances, one.log_likelihood, granularity)
    names = {
        key: {"scalar": "all", "group": f"lora_{key.side}", "module": f"{key.module}.lora_{key.side}"}[granularity]
        for key in one.curvature
    }
    grid = torch.logspace(-3, 3, 61, dtype=torch.float64).tolist()
    if granularity == "module":  # each block has a precision of its own, so each is maximised alone
        best = {}
        for key, curvature in one.curvature.items():
            best |= dense.grid_best_evidence({key: names[key]}, 0.0, one.dense_distances, {key: curvature}, grid)[0]
    else:
        best, _ = dense.grid_best_evidence(names, one.log_likelihood, one.dense_distances, one.curvature, grid)
    mine = {
        names[key_of(b)]: choice.prior.precision[{"scalar": "all", "group": b.group, "module": b.name}[granularity]]
        for b in one.found.blocks
    }
    step = grid[1] / grid[0]
    for name, value in best.items():
        assert value / step < mine[name] < value * step, name
    prior = {key: mine[names[key]] for key in one.curvature}
    at_choice = dense.log_evidence(one.log_likelihood, one.dense_distances, one.curvature, prior)
    assert choice.objective == pytest.approx(at_choice, rel=1e-10)
    assert choice.at_bound == ()
    for name in mine:
        for factor in (0.9, 1.1):
            moved = {key: value * factor if names[key] == name else value for key, value in prior.items()}
            neighbour = dense.log_evidence(one.log_likelihood, one.dense_distances, one.curvature, moved)
            assert neighbour < at_choice, f"{name} x {factor} has more evidence"


def test_evidence_falls_with_the_squared_distance(problem: Problem) -> None:
    """The penalty is minus half the precision times the squared norm: twice the distance, four times the cost."""
    one = case(problem)
    precisions = block_precisions(Prior("scalar", {"all": 2.0}), one.found.blocks)
    none, near, far = (
        log_evidence(one.found.posterior, precisions, one.distances * factor, one.log_likelihood)
        for factor in (0.0, 1.0, 4.0)
    )
    assert none - near == pytest.approx(float(one.distances.sum()), rel=1e-10)
    assert none - far == pytest.approx(4 * (none - near), rel=1e-10)
    # No data and no movement: the evidence is the likelihood, not its logarithm.
    state = one.found.posterior
    nothing = replace(state, scale=tuple(s * 0 for s in state.scale), tail=tuple(t * 0 for t in state.tail))
    assert log_evidence(nothing, precisions, one.distances * 0, -12.5) == -12.5


def test_an_adapter_that_never_moved_ends_at_the_bound(problem: Problem) -> None:
    one = case(problem)
    choice = choose_by_evidence(one.found.posterior, one.distances * 0, one.log_likelihood, "scalar")
    assert choice.at_bound == ("all",)
    assert choice.prior.precision["all"] > 1e6


@pytest.mark.slow
def test_validation_choice_beats_a_fine_grid() -> None:
    """No precision on a fine grid has less held-out NLL, by dense covariance and one-dimensional integrals.

    The held-out labels are drawn from the predictive distribution at precision 3, so that the best one is no bound.
    """
    model = tiny_model("llama")
    train = tiny_task(examples=20, classes=2)
    found = fit(model, train, batch_size=8, rank=4)
    ggn = dense.truth(model, train.batch(), train.label_ids).ggn
    curvature = dense_curvature_of(found, ggn)
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

    state = found.posterior
    projected = state.project(contrast_jacobians(model, batch, task.label_ids, found.blocks))
    scalar, grouped = (
        choose_by_validation(state, projected, labels[:, 0], batch.class_mask, granularity)
        for granularity in ("scalar", "group")
    )
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


@pytest.mark.slow
def test_validation_objective_of_three_classes_is_the_held_out_nll(problem: Problem) -> None:
    one = case(problem)
    held_out = replace(tiny_task(examples=24, seed=41), label_ids=problem.task.label_ids)
    batch = held_out.batch()
    jacobians = contrast_jacobians(problem.model, batch, held_out.label_ids, one.found.blocks)
    projected = one.found.posterior.project(jacobians)
    choice = choose_by_validation(one.found.posterior, projected, held_out.labels, batch.class_mask)
    prior = dict.fromkeys(one.curvature, choice.prior.precision["all"])
    full = dense.logit_covariance(dense.jacobians(problem.model, batch, held_out.label_ids), one.curvature, prior)
    logits = dense.map_logits(problem.model, batch, held_out.label_ids)
    probs, _ = dense.monte_carlo_probs(logits, full, batch.class_mask, samples=50_000, generator=generator(0))
    nll = -float(probs.gather(1, held_out.labels[:, None]).log().mean())
    # 50,000 samples leave a mean NLL over 24 rows uncertain by about 0.001; 512 Sobol points by as much or more.
    assert -choice.objective == pytest.approx(nll, abs=0.006)
