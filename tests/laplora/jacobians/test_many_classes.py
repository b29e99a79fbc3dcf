"""Fewer directions than contrasts: what their curvature is on average, and that batches do not matter."""

from __future__ import annotations

import pytest
import torch
from fast_path import close
from tiny_models import generator, tiny_model, tiny_task

from laplora.jacobians.blocks import Directions
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.jacobians.many_classes import answer_directions, fisher_directions
from laplora.linearised import class_probs, contrasts

CLASSES = 6


def random_logits(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and a class mask; every other row lacks the last class."""
    logits = 2 * torch.randn(rows, CLASSES, dtype=torch.float64, generator=generator(0))
    mask = torch.ones(rows, CLASSES, dtype=torch.bool)
    mask[1::2, -1] = False
    return logits, mask


def hessian(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the dense Lambda in the class logits."""
    probs = class_probs(logits, mask)
    return torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]


def summed(chosen: Directions) -> torch.Tensor:
    """Return ``sum_ij w_ij v_i v_j^T``, (batch, classes, classes), of some directions."""
    assert chosen.weights is not None
    return torch.einsum("inc,nij,jnd->ncd", chosen.vectors, chosen.weights, chosen.vectors)


def random_average() -> torch.Tensor:
    """Return an average covariance of the contrasts."""
    half = torch.randn(CLASSES - 1, CLASSES - 1, dtype=torch.float64, generator=generator(1))
    return half @ half.T


@pytest.mark.parametrize("leading", [0, 2])
def test_every_eigenvector_is_the_exact_curvature_and_draws_are_unbiased(leading: int) -> None:
    logits, mask = random_logits(2)
    truth = hessian(logits, mask)
    every = fisher_directions(CLASSES - 1, 0, range(2), seed=0)
    close(summed(every(logits, mask)), truth)
    draws = 3000
    wide = logits.repeat(draws, 1), mask.repeat(draws, 1)
    found = summed(fisher_directions(leading, 2, range(2 * draws), seed=0)(*wide)).reshape(draws, 2, CLASSES, CLASSES)
    error = found.std(0) / draws**0.5
    # Five standard errors of each entry's mean; what has no spread is exact.
    assert bool(((found.mean(0) - truth).abs() <= 5 * error + 1e-12).all())
    if leading:  # its share has no spread
        without = fisher_directions(0, 2, range(2 * draws), seed=0)
        spread = summed(without(*wide)).reshape(draws, 2, -1).std(0).square().sum()
        assert float(found.reshape(draws, 2, -1).std(0).square().sum()) < 0.8 * float(spread)


def test_draws_depend_on_the_row_and_the_seed_alone_and_leave_impossible_classes_out() -> None:
    logits, mask = random_logits(4)
    together = fisher_directions(0, 4, [7, 3, 5, 9], seed=0)(logits, mask).vectors
    assert float(together[:, 1::2, -1].abs().max()) < 1e-12
    alone = fisher_directions(0, 4, [5], seed=0)(logits[2:3], mask[2:3]).vectors
    close(alone[:, 0], together[:, 2])
    another = fisher_directions(0, 4, [7, 3, 5, 9], seed=1)(logits, mask).vectors
    assert float((another - together).abs().max()) > 0.1


def test_answer_directions_leave_the_least_of_the_first_order_variance() -> None:
    logits, mask = random_logits(2)
    average, q = random_average(), contrasts(CLASSES)
    found = torch.einsum("kc,mnc->nkm", q.T, answer_directions(average, 2)(logits, mask).vectors)
    truth = q.T @ hessian(logits, mask) @ q

    def left(directions: torch.Tensor, row: int) -> float:
        seen = average @ directions
        rest = average - seen @ torch.linalg.inv(directions.T @ seen) @ seen.T
        return float((truth[row] @ rest).trace())

    close(found[0].T @ average @ found[0], torch.eye(2, dtype=torch.float64), 1e-5)  # the ridge
    least = left(found[0], 0)
    for i in range(50):
        random = torch.randn(CLASSES - 1, 2, dtype=torch.float64, generator=generator(i))
        # The directions are those of probabilities mixed with a hundredth of a uniform one.
        assert least <= 1.01 * left(random, 0)
    assert float((q[-1] @ found[1]).abs().max()) < 1e-12  # an impossible class


def test_jacobians_of_chosen_directions_are_those_of_the_contrasts_combined() -> None:
    model, task = tiny_model("llama"), tiny_task(examples=6, classes=20)
    blocks, batch = find_blocks(model, 20), task.batch()
    choose = fisher_directions(2, 2, range(6), seed=0)
    exact = contrast_jacobians(model, batch, task.label_ids, blocks, sums=False)
    for automatic in (False, True):
        few = contrast_jacobians(model, batch, task.label_ids, blocks, sums=False, choose=choose, automatic=automatic)
        assert few.directions is not None
        turn = torch.einsum("mnc,ck->nmk", few.directions, contrasts(20))
        for one, other in zip(few.blocks, exact.blocks, strict=True):
            close(one.jacobian, torch.einsum("nmk,nkwr->nmwr", turn, other.jacobian), 1e-9)
