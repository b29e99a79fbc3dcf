"""Evidence and its maximiser, and the validation prior, against brute force over dense matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import dense_reference as dense
import pytest
import torch
from conftest import Problem
from fast_path import Fit, basis_by_key, fit, key_of, unrounded
from tiny_models import initial_lora, tiny_task

from laplora.jacobians import contrast_jacobians
from laplora.posterior import Prior, Spectrum, block_precisions, project_jacobians, spectrum
from laplora.prior import choose_by_evidence, choose_by_validation, log_evidence


@dataclass(frozen=True)
class Case:
    """What the evidence needs, on both sides."""

    found: Fit
    flat: Spectrum
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
    curvature = {
        key: dense.block_curvature(basis, *dense.ekfac(problem.truth.ggn[key], basis))
        for key, basis in basis_by_key(found).items()
    }
    mask = problem.task.batch().class_mask
    return Case(
        found,
        spectrum(unrounded(found)),
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
        found = log_evidence(one.flat, block_precisions(prior, one.found.blocks), one.distances, one.log_likelihood)
        # Log determinants of at most 144 x 144 dense matrices: some hundred roundings.
        assert found == pytest.approx(dense_evidence(one, prior.precision), rel=1e-10)
    stored = spectrum(one.found.posterior)
    found = log_evidence(stored, block_precisions(prior, one.found.blocks), one.distances, one.log_likelihood)
    # The posterior as stored, in float32.
    assert found == pytest.approx(dense_evidence(one, prior.precision), rel=1e-6)


@pytest.mark.parametrize("granularity", ["scalar", "group", "module"])
def test_evidence_choice_is_the_brute_force_maximum(problem: Problem, granularity: Any) -> None:
    one = case(problem)
    choice = choose_by_evidence(one.flat, one.found.blocks, one.distances, one.log_likelihood, granularity)
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
        log_evidence(one.flat, precisions, one.distances * factor, one.log_likelihood) for factor in (0.0, 1.0, 4.0)
    )
    assert none - near == pytest.approx(float(one.distances.sum()), rel=1e-10)
    assert none - far == pytest.approx(4 * (none - near), rel=1e-10)
    # No data and no movement: the evidence is the likelihood, not its logarithm.
    nothing = replace(one.flat, scale=one.flat.scale * 0, tail=one.flat.tail * 0)
    assert log_evidence(nothing, precisions, one.distances * 0, -12.5) == -12.5


def test_an_adapter_that_never_moved_ends_at_the_bound(problem: Problem) -> None:
    one = case(problem)
    choice = choose_by_evidence(one.flat, one.found.blocks, one.distances * 0, one.log_likelihood, "scalar")
    assert choice.at_bound == ("all",)
    assert choice.prior.precision["all"] > 1e6


def test_validation_choice_beats_a_fine_grid(problem: Problem) -> None:
    """Held-out NLL by dense covariance and plain Monte-Carlo has no lower point than the choice, within sampling."""
    one = case(problem)
    held_out = replace(tiny_task(examples=24, seed=41), label_ids=problem.task.label_ids)
    batch = held_out.batch()
    jacobians = contrast_jacobians(problem.model, batch, held_out.label_ids, one.found.blocks)
    projected = project_jacobians(unrounded(one.found), jacobians)
    choice = choose_by_validation(one.flat, one.found.blocks, projected, held_out.labels, batch.class_mask)
    logits = dense.map_logits(problem.model, batch, held_out.label_ids)
    dense_jacobians = dense.jacobians(problem.model, batch, held_out.label_ids)

    def nll(precision: float) -> float:
        full = dense.logit_covariance(dense_jacobians, one.curvature, dict.fromkeys(one.curvature, precision))
        probs, _ = dense.monte_carlo_probs(
            logits, full, batch.class_mask, samples=20_000, generator=torch.Generator().manual_seed(0)
        )
        return -float(probs.gather(1, held_out.labels[:, None]).log().mean())

    # 20,000 samples leave a mean NLL over 24 rows uncertain by about 0.5 / sqrt(20,000 x 24) x 1 / p: under 0.003;
    # the fast path's 512 Sobol points by about as much.
    at_choice = nll(choice.prior.precision["all"])
    assert -choice.objective == pytest.approx(at_choice, abs=0.006)
    for exponent in range(-4, 9):
        assert nll(10.0**exponent) > at_choice - 0.006
    assert at_choice < -math.log(1 / 3) + 2.0
