"""Greedy batches against explicit determinants and explicit conditioning."""

from __future__ import annotations

import pytest
import torch
from conditioning_problem import ROWS, WEIGHTS, problem

from laplora.errors import ConfigError, DataError
from laplora.linearised import contrast_logits, hessian_root
from laplora.selection.candidates import CandidateRows
from laplora.selection.greedy import Objective, greedy

OBJECTIVES: tuple[Objective, ...] = ("information", "prediction")


def candidates(scale: float = 0.2) -> tuple[torch.Tensor, CandidateRows]:
    """Return the kernel of random rows, and the rows as features that are their Jacobians."""
    one = problem(scale)
    root = hessian_root(contrast_logits(one["mean"]), one["mask"])
    return one["kernel"], CandidateRows(scale**0.5 * one["jacobians"], root)


def told(kernel: torch.Tensor, root: torch.Tensor, chosen: list[int], objective: Objective) -> float:
    """Return what the labels of chosen rows tell, by its definition."""
    rows, width = root.shape[:2]
    flat = kernel.reshape(rows * width, -1)
    places = torch.cat([torch.arange(i * width, (i + 1) * width) for i in chosen])
    r = torch.block_diag(*root[chosen])
    seen = torch.eye(len(places), dtype=torch.float64) + r @ flat[places][:, places] @ r
    if objective == "information":
        return float(torch.logdet(seen)) / 2
    cross = flat[:, places] @ r
    lost = cross @ torch.linalg.solve(seen, cross.T)
    every = torch.block_diag(*root)
    return float((every @ lost @ every).trace()) / 2


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_step_is_the_best_one(objective: Objective) -> None:
    """Each row is the one that adds most by the definition, and its gain is what it adds."""
    kernel, rows = candidates()
    found = greedy(rows, ROWS, objective)
    chosen: list[int] = []
    for row, gain in zip(found.order.tolist(), found.gains.tolist(), strict=True):
        before = told(kernel, rows.root, chosen, objective) if chosen else 0.0
        adds = {i: told(kernel, rows.root, [*chosen, i], objective) - before for i in range(ROWS) if i not in chosen}
        assert row == max(adds, key=lambda i: adds[i])
        assert gain == pytest.approx(adds[row], rel=1e-9, abs=1e-12)
        chosen.append(row)


def test_information_is_submodular() -> None:
    """No gain is larger than the one before it."""
    gains = greedy(candidates()[1], ROWS).gains
    assert bool((gains.diff() <= 1e-12).all())
    assert float(gains.min()) > 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_row_that_is_there_twice_is_not_chosen_twice(objective: Objective) -> None:
    """With much prior variance a label of a row leaves little for one of its double."""
    _, rows = candidates(scale=10.0)
    twice = CandidateRows(rows.features[[0, 0, 1, 2, 3]], rows.root[[0, 0, 1, 2, 3]])
    order = greedy(twice, 5, objective).order.tolist()
    assert order.index(1) == 4 or order.index(0) == 4


def test_the_gain_of_a_double_vanishes_as_the_label_grows_certain() -> None:
    """The double of a row that was seen without noise adds half a nat of its noise at most, here nearly 0."""
    kernel, rows = candidates(scale=1.0)
    first = CandidateRows(rows.features[[0, 0]], rows.root[[0, 0]])
    gains = greedy(first, 2).gains
    independent = told(kernel, rows.root, [0], "information")
    assert float(gains[0]) == pytest.approx(independent)
    assert float(gains[1]) < 0.35 * independent


def test_the_kernel_gives_the_same_as_the_features() -> None:
    """The rows of a whole kernel are chosen as those of its features."""
    kernel, rows = candidates()
    of_kernel = CandidateRows.of_kernel(kernel, rows.root)
    assert of_kernel.features.shape[2] <= max(WEIGHTS, kernel.shape[0] * kernel.shape[1])
    for objective in OBJECTIVES:
        one, other = greedy(rows, ROWS, objective), greedy(of_kernel, ROWS, objective)
        assert one.order.tolist() == other.order.tolist()
        assert torch.allclose(one.gains, other.gains, rtol=1e-8)


def test_what_is_not_allowed_is_not_chosen_but_counts_as_a_target() -> None:
    """A row that must not be chosen is not, and ``prediction`` still serves it."""
    kernel, rows = candidates()
    allowed = torch.ones(ROWS, dtype=torch.bool)
    allowed[[1, 4]] = False
    found = greedy(rows, ROWS, "prediction", allowed)
    assert sorted(found.order.tolist()) == [i for i in range(ROWS) if i not in (1, 4)]
    first = int(found.order[0])
    assert float(found.gains[0]) == pytest.approx(told(kernel, rows.root, [first], "prediction"))


def test_what_cannot_be() -> None:
    """Nothing to choose, and roots of other rows, are refused."""
    rows = candidates()[1]
    with pytest.raises(ConfigError, match="no row can be chosen"):
        greedy(rows, 3, allowed=torch.zeros(ROWS, dtype=torch.bool))
    with pytest.raises(ConfigError, match="no row can be chosen"):
        greedy(rows, 0)
    with pytest.raises(DataError, match="do not go with roots"):
        CandidateRows(rows.features, rows.root[1:])
