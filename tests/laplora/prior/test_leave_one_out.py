"""The prior by leave-one-out, against posteriors that really lack the row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import dense_reference as dense
import pytest
import torch
from fast_path import Rows, close, rows_of
from joint_problem import fit_joint, parameter_precisions
from tiny_models import generator, tiny_model, tiny_task

from laplora.errors import PriorError
from laplora.jacobians.blocks import Block, BlockJacobian, ContrastJacobians
from laplora.jacobians.contrasts import find_blocks
from laplora.linearised import class_probs, contrast_hessian, contrasts
from laplora.posterior.base import Granularity, Prior, ProjectedJacobians, block_precisions
from laplora.posterior.joint import JointPosterior
from laplora.prior.leave_one_out import cavities, choose_by_leave_one_out

# Against explicit inverses of matrices of condition up to 1e4.
EXACT = 1e-8


@dataclass(frozen=True)
class Linear:
    """Softmax regression, the last layer of a classifier: its loss is convex and its linearisation exact.

    Attributes:
        features: (rows, features); labels: (rows,); mask: (rows, classes).
        weights: (classes, features).
    """

    features: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor

    @property
    def classes(self) -> int:
        return self.weights.shape[0]

    @property
    def logits(self) -> torch.Tensor:
        return self.features @ self.weights.T

    @property
    def residual(self) -> torch.Tensor:
        """Gradient of each row's loss in its contrasts, (rows, classes - 1)."""
        probs = class_probs(self.logits, self.mask)
        return (probs - torch.nn.functional.one_hot(self.labels, self.classes)) @ contrasts(self.classes)

    def flat(self) -> torch.Tensor:
        """Jacobians of the contrasts (rows, classes - 1, parameters), block by block."""
        return torch.cat([b.jacobian.flatten(2) for b in self.jacobians().blocks], 2)

    def row_ggns(self) -> torch.Tensor:
        """Each row's part of the GGN, (rows, parameters, parameters)."""
        hessian = contrast_hessian(self.logits, self.mask)
        return torch.einsum("ncp,nce,neq->npq", self.flat(), hessian, self.flat())

    def jacobians(self) -> ContrastJacobians:
        empty = torch.zeros(0)
        halves = self.features.chunk(2, 1)
        q = contrasts(self.classes)
        blocks = tuple(BlockJacobian(torch.einsum("kc,nf->nckf", q, x), empty, empty) for x in halves)
        return ContrastJacobians(self.logits, self.features, blocks)

    def exact(self) -> tuple[JointPosterior, ProjectedJacobians]:
        """Half of the features are a block of each group, so that there are two precisions."""
        half = self.features.shape[1] // 2
        blocks = (Block("m.lora_A", "lora_A", self.classes, half), Block("m.lora_B", "lora_B", self.classes, half))
        posterior = fit_joint(blocks, [Rows(self.jacobians(), self.mask)], "exact")
        return posterior, posterior.project(self.jacobians())

    def without(self, row: int) -> Linear:
        keep = torch.arange(len(self.labels)) != row
        return replace(self, features=self.features[keep], labels=self.labels[keep], mask=self.mask[keep])


def linear(classes: int, rows: int = 30, *, seed: int = 0) -> Linear:
    """Return random rows, their labels drawn from random weights; of three or more classes, every fourth lacks one."""
    draw = generator(seed)
    features = torch.randn(rows, 6, generator=draw, dtype=torch.float64)
    mask = torch.ones(rows, classes, dtype=torch.bool)
    if classes > 2:
        mask[::4, -1] = False
    weights = torch.randn(classes, 6, generator=draw, dtype=torch.float64)
    probs = class_probs(features @ weights.T, mask)
    labels = torch.multinomial(probs, 1, generator=draw)[:, 0]
    return Linear(features, labels, mask, weights)


def trained(problem: Linear, precision: float) -> Linear:
    """Return the problem with its weights at the maximum of the posterior with a prior N(0, 1/precision)."""
    weights = torch.zeros_like(problem.weights)
    identity = precision * torch.eye(weights.numel(), dtype=torch.float64)
    target = torch.nn.functional.one_hot(problem.labels, problem.classes)
    for _ in range(20):
        probs = class_probs(problem.features @ weights.T, problem.mask)
        gradient = (probs - target).T @ problem.features + precision * weights
        hessian = torch.einsum(
            "ncd,nf,ng->cfdg", dense.softmax_hessian(probs), problem.features, problem.features
        ).reshape(weights.numel(), -1)
        step = torch.linalg.solve(hessian + identity, gradient.flatten())
        weights = weights - step.reshape(weights.shape)
    assert float(gradient.abs().max()) < 1e-10, "not at the maximum"
    return replace(problem, weights=weights)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("precision", [{"lora_A": 0.3, "lora_B": 0.3}, {"lora_A": 2.0, "lora_B": 0.05}])
def test_a_cavity_is_the_posterior_without_the_row(classes: int, precision: dict[str, float]) -> None:
    """One dense posterior per row, from the other rows' sites alone; mean and covariance of the row under it."""
    problem = linear(classes)
    posterior, projected = problem.exact()
    precisions = block_precisions(Prior("group", precision), posterior.blocks)
    covariance = posterior.covariance(projected, precisions)
    mean, without, proper = cavities(projected.contrast_mean, covariance, problem.labels, problem.mask)
    assert proper.all()
    flat, ggn = problem.flat(), problem.row_ggns()
    prior = parameter_precisions(precisions, posterior.blocks).diag()
    expected = flat @ torch.linalg.inv(prior + ggn.sum(0) - ggn) @ flat.mT
    close(without, expected, EXACT)
    # All sites pull at the mean together; without the row's own pull it moves by its gradient.
    moved = problem.logits @ contrasts(classes) + (expected @ problem.residual[:, :, None])[:, :, 0]
    torch.testing.assert_close(mean, moved, rtol=0, atol=EXACT)


def test_it_predicts_as_a_model_retrained_without_the_row() -> None:
    """Convex problem, 60 rows: each row's NLL under the linearised answer and under an honest retraining.

    The linearised answer misses how the other rows' curvature changes, a second-order effect.
    """
    problem = trained(linear(2, 60, seed=3), 0.3)
    posterior, projected = problem.exact()
    precisions = block_precisions(Prior("scalar", {"all": 0.3}), posterior.blocks)
    covariance = posterior.covariance(projected, precisions)
    moments = cavities(projected.contrast_mean, covariance, problem.labels, problem.mask)

    def nll(mean: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        q = contrasts(2)
        probs = dense.two_class_probs(mean @ q.T, q @ spread @ q.T)
        return -probs.gather(1, problem.labels[:, None])[:, 0].log()

    linearised, seen = nll(*moments[:2]), nll(projected.contrast_mean, covariance)
    retrained = []
    for n in range(60):
        other = trained(problem.without(n), 0.3)
        state = other.exact()[0]
        all_rows = state.project(replace(problem, weights=other.weights).jacobians())
        retrained.append(nll(all_rows.contrast_mean, state.covariance(all_rows, precisions))[n])
    honest = torch.stack(retrained)
    # Seen: the mean NLL with the row is 0.05 to 0.1 below that without it; the linearised one is right to 4 per cent
    # of that gap.
    gap = float((honest - seen).mean())
    assert gap > 0.02
    assert abs(float((linearised - honest).mean())) < 0.1 * gap
    assert float((linearised - honest).abs().max()) < 0.25 * float((honest - seen).abs().max())


@pytest.mark.parametrize("granularity", ["scalar", "group"])
def test_no_precision_on_a_grid_is_better(granularity: Granularity) -> None:
    """Every row by a dense posterior that lacks it, every precision of a grid: none has less NLL than the choice."""
    problem, trained_under = trained(linear(2, 24, seed=7), 0.4), Prior("scalar", {"all": 0.4})
    posterior, projected = problem.exact()
    choice = choose_by_leave_one_out(
        posterior, projected, problem.labels, problem.mask, granularity, trained_under=trained_under
    )
    assert choice.method == "leave_one_out"
    flat, ggn, q = problem.flat(), problem.row_ggns(), contrasts(2)

    def spread(prior: Prior) -> torch.Tensor:
        diagonal = parameter_precisions(block_precisions(prior, posterior.blocks), posterior.blocks).diag()
        return flat @ torch.linalg.inv(diagonal + ggn.sum(0) - ggn) @ flat.mT

    mean = problem.logits @ q + (spread(trained_under) @ problem.residual[:, :, None])[:, :, 0]

    def nll(prior: Prior) -> float:
        probs = dense.two_class_probs(mean @ q.T, q @ spread(prior) @ q.T)
        return -float(probs.gather(1, problem.labels[:, None]).log().mean())

    # Two integration rules, each right to 1e-9 or better.
    assert -choice.objective == pytest.approx(nll(choice.prior), abs=1e-8)
    grid: Sequence[float] = torch.logspace(-3, 6, 46, dtype=torch.float64).tolist()
    common = [nll(Prior("scalar", {"all": value})) for value in grid]
    assert max(common) > -choice.objective + 0.01, "a flat curve tests nothing"
    assert min(common) > -choice.objective - 1e-6  # the search ends where the NLL is flat to second order
    if granularity == "scalar":  # with two precisions, one of the two groups may well be left without variance
        assert choice.at_bound == ()
    else:
        a, b = (choice.prior.precision[k] for k in ("lora_A", "lora_B"))
        for other in ((1.3 * a, b), (a / 1.3, b), (a, 1.3 * b), (a, b / 1.3)):
            assert nll(Prior("group", dict(zip(("lora_A", "lora_B"), other, strict=True)))) > -choice.objective - 1e-6


@pytest.fixture(scope="module")
def tiny() -> Any:
    model, task = tiny_model("llama"), tiny_task()
    rows = rows_of(model, task, batch_size=24)
    posterior = fit_joint(find_blocks(model, 3), rows, "exact")
    return posterior, posterior.project(rows[0].jacobians), task


def test_infeasible_precisions_are_never_chosen(tiny: Any) -> None:
    """Gradients larger than were fitted have no cavity under weak priors, and labels that are all wrong want these."""
    posterior, projected, task = tiny
    mask = task.batch().class_mask
    larger = replace(projected, kept=3 * projected.kept, rest=9 * projected.rest)
    wrong = (projected.contrast_mean @ contrasts(3).T).masked_fill(~mask, torch.inf).argmin(1)

    def feasible(precision: float) -> bool:
        spread = posterior.covariance(larger, block_precisions(Prior("scalar", {"all": precision}), posterior.blocks))
        return bool(cavities(larger.contrast_mean, spread, wrong, mask)[2].all())

    assert not feasible(1e-3)
    assert feasible(1e6)
    with pytest.warns(RuntimeWarning, match=r"the choice .* lies beside \d+ infeasible precisions"):
        choice = choose_by_leave_one_out(posterior, larger, wrong, mask, trained_under=Prior("scalar", {"all": 1e9}))
    assert feasible(choice.prior.precision["all"])
    assert choice.at_bound == ("all",)
    with pytest.raises(PriorError, match=r"under the prior .* some row cannot be divided out"):
        choose_by_leave_one_out(posterior, larger, wrong, mask, trained_under=Prior("scalar", {"all": 1e-3}))


def test_what_it_does_not_take(tiny: Any) -> None:
    posterior, projected, task = tiny
    mask, prior = task.batch().class_mask, Prior("scalar", {"all": 1.0})
    joint = replace(posterior, structure="joint")
    with pytest.raises(PriorError, match=r"leave-one-out takes the exact posterior.*'joint'"):
        choose_by_leave_one_out(joint, projected, task.labels, mask, trained_under=prior)
    with pytest.raises(PriorError, match="takes the 24 rows that the posterior was fitted to, got 20"):
        choose_by_leave_one_out(posterior, projected, task.labels[:20], mask[:20], trained_under=prior)
    with pytest.raises(PriorError, match="one precision per module"):
        choose_by_leave_one_out(posterior, projected, task.labels, mask, "module", trained_under=prior)
