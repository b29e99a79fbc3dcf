"""The mode of labelled rows against a general optimiser and explicit inverses, and leave-one-out against modes anew."""

from __future__ import annotations

import pytest
import torch
from conditioning_rows import dense_left_out
from scipy.optimize import minimize

from laplora.conditioning.left_out import left_out_mean
from laplora.conditioning.mode import posterior_mode
from laplora.errors import DataError, FactorizationError, NonFiniteError
from laplora.linearised import class_log_probs, class_probs, contrast_hessian, contrast_logits, contrasts

ROWS, CLASSES, OTHERS, WEIGHTS = 12, 4, 5, 60


def problem(scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Return a linear model's rows, some with fewer possible classes."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    jacobians, others = normal(ROWS, CLASSES - 1, WEIGHTS), normal(OTHERS, CLASSES - 1, WEIGHTS)
    mask = torch.ones(ROWS, CLASSES, dtype=torch.bool)
    mask[3, 3:] = mask[7, 2:] = False
    labels = torch.randint(0, 2, (ROWS,), generator=draw)
    labels[0], labels[1] = 3, 2
    return {
        "jacobians": jacobians,
        "kernel": scale * torch.einsum("ncp,mdp->ncmd", jacobians, jacobians),
        "cross": scale * torch.einsum("ncp,mdp->ncmd", others, jacobians),
        "own": scale * torch.einsum("ncp,ndp->ncd", others, others),
        "mean": normal(ROWS, CLASSES - 1),
        "other_mean": normal(OTHERS, CLASSES - 1),
        "labels": labels,
        "mask": mask,
    }


@pytest.mark.parametrize("scale", [1e-3, 0.1, 3.0])
def test_mean_is_that_of_the_best_weights(scale: float) -> None:
    """The mode in function space is the optimum over the weights of the same linear model."""
    p = problem(scale)

    def objective(flat: object) -> tuple[float, object]:
        weights = torch.tensor(flat, dtype=torch.float64, requires_grad=True)
        logits = contrast_logits(p["mean"] + p["jacobians"] @ weights)
        picked = class_log_probs(logits, p["mask"]).gather(1, p["labels"][:, None]).sum()
        loss = weights.square().sum() / (2 * scale) - picked
        loss.backward()
        assert weights.grad is not None
        return float(loss.detach()), weights.grad.numpy()

    best = minimize(objective, torch.zeros(WEIGHTS).double().numpy(), jac=True, method="BFGS", options={"gtol": 1e-9})
    mode = posterior_mode(p["kernel"], p["mean"], p["labels"], p["mask"])
    moved = torch.tensor(best.x)
    torch.testing.assert_close(mode.contrasts, p["mean"] + p["jacobians"] @ moved, rtol=0, atol=1e-5)
    torch.testing.assert_close(scale * torch.einsum("ncp,nc->p", p["jacobians"], mode.alpha), moved, rtol=0, atol=1e-5)
    target = torch.nn.functional.one_hot(p["labels"], CLASSES) - class_probs(contrast_logits(mode.contrasts), p["mask"])
    torch.testing.assert_close(mode.alpha, target @ contrasts(CLASSES), rtol=0, atol=1e-6)


def test_covariance_is_the_inverse_of_the_precision() -> None:
    """``(K^-1 + Lambda)^-1`` for the rows, and the weights' own posterior for other rows."""
    p = problem(0.3)
    mode = posterior_mode(p["kernel"], p["mean"], p["labels"], p["mask"])
    hessian = contrast_hessian(contrast_logits(mode.contrasts), p["mask"])
    flat = p["jacobians"].flatten(0, 1)
    precision = torch.eye(WEIGHTS).double() / 0.3 + flat.T @ torch.block_diag(*hessian) @ flat
    covariance = torch.linalg.inv(precision)
    expected = p["jacobians"] @ covariance @ p["jacobians"].mT
    rows = torch.arange(ROWS)
    own = p["kernel"][rows, :, rows]
    torch.testing.assert_close(mode.covariance(own, p["kernel"]), expected, rtol=0, atol=1e-9)
    draw = torch.Generator().manual_seed(1)
    others = torch.randn(OTHERS, CLASSES - 1, WEIGHTS, generator=draw, dtype=torch.float64)
    cross = 0.3 * torch.einsum("ncp,mdp->ncmd", others, p["jacobians"])
    own = 0.3 * others @ others.mT
    torch.testing.assert_close(mode.covariance(own, cross), others @ covariance @ others.mT, rtol=0, atol=1e-9)


def test_labels_pull_whatever_the_start_and_no_kernel_leaves_everything() -> None:
    """Each label becomes more probable on its own row, also from the solution of a like problem.

    And by rows on the wrong side whose probabilities are 0 and 1 to rounding.
    """
    p = problem(1.0)
    mode = posterior_mode(p["kernel"], p["mean"], p["labels"], p["mask"])
    before, after = (
        class_log_probs(contrast_logits(z), p["mask"]).gather(1, p["labels"][:, None])
        for z in (p["mean"], mode.contrasts)
    )
    assert float(after.mean()) > float(before.mean())
    start = posterior_mode(2 * p["kernel"], p["mean"], p["labels"], p["mask"]).alpha
    near = posterior_mode(p["kernel"], p["mean"], p["labels"], p["mask"], start)
    torch.testing.assert_close(near.contrasts, mode.contrasts, rtol=0, atol=1e-5)
    still = posterior_mode(0 * p["kernel"], p["mean"], p["labels"], p["mask"])
    assert torch.equal(still.contrasts, p["mean"])
    assert not bool(still.moved(0 * p["cross"]).any())
    p["mean"][0] = 60.0
    mode = posterior_mode(p["kernel"], p["mean"], p["labels"], p["mask"])
    assert bool(mode.contrasts.isfinite().all())


def test_what_is_refused() -> None:
    """Shapes, labels and values are refused by name."""
    p = problem()
    with pytest.raises(DataError, match="the kernel"):
        posterior_mode(p["kernel"][:, :, :5], p["mean"], p["labels"], p["mask"])
    with pytest.raises(DataError):
        posterior_mode(p["kernel"], p["mean"], p["labels"] + 9, p["mask"])
    with pytest.raises(NonFiniteError, match="the kernel"):
        posterior_mode(p["kernel"] * torch.nan, p["mean"], p["labels"], p["mask"])
    with pytest.raises(FactorizationError, match="positive"):
        posterior_mode(-100 * p["kernel"], p["mean"], p["labels"], p["mask"])


@pytest.mark.parametrize(("scale", "within"), [(0.01, 0.02), (0.1, 0.2)])
def test_a_row_left_out_is_as_conditioned_anew(scale: float, within: float) -> None:
    """The mean of a row is that of the other rows' conditioning, far closer than the mode that has seen the row."""
    p = problem(scale)
    kernel, mean, labels, mask = p["kernel"], p["mean"], p["labels"], p["mask"]
    mode = posterior_mode(kernel, mean, labels, mask)
    found = left_out_mean(mode, kernel)
    for row in range(len(labels)):
        others = torch.tensor([i for i in range(len(labels)) if i != row])
        without = posterior_mode(kernel[others][:, :, others], mean[others], labels[others], mask[others])
        expected = (mean[[row]] + without.moved(kernel[[row]][:, :, others]))[0]
        possible = mask[row, 1:]
        gap = (found[row] - expected)[possible].norm()
        seen = (mode.contrasts[row] - expected)[possible].norm()
        assert float(gap) <= within * float(seen)


def test_rows_of_one_input_leave_together() -> None:
    """Labels of one input say nothing of each other where they are left out together."""
    p = problem(0.02)
    kernel, mean, labels, mask = p["kernel"], p["mean"], p["labels"], p["mask"]
    mode = posterior_mode(kernel, mean, labels, mask)
    found = left_out_mean(mode, kernel, torch.arange(len(labels)) // 3)
    others = torch.arange(3, len(labels))
    without = posterior_mode(kernel[others][:, :, others], mean[others], labels[others], mask[others])
    expected = mean[:3] + without.moved(kernel[:3][:, :, others])
    gap, seen = (found[:3] - expected).norm(), (mode.contrasts[:3] - expected).norm()
    assert float(gap) <= 0.05 * float(seen)
    assert not torch.allclose(found, left_out_mean(mode, kernel))


@pytest.mark.parametrize("scale", [0.02, 0.3])
def test_groups_of_any_size_leave_as_by_matrices_of_all_rows(scale: float) -> None:
    """Also where two rows of a group are the same, and the kernel is singular."""
    p = problem(scale)
    p["jacobians"][5], p["mean"][5] = p["jacobians"][2], p["mean"][2]
    kernel = scale * torch.einsum("ncp,mdp->ncmd", p["jacobians"], p["jacobians"])
    mode = posterior_mode(kernel, p["mean"], p["labels"], p["mask"])
    groups = torch.tensor([7, 7, 4, 0, 1, 4, 4, 0, 2, 3, 9, 8])
    found, expected = left_out_mean(mode, kernel, groups), dense_left_out(kernel, mode, p["mean"], groups)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    assert not torch.allclose(found, left_out_mean(mode, kernel), atol=1e-3)
