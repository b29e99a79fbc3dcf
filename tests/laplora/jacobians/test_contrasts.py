"""The hooked contrast Jacobians against one autograd call per logit and example."""

from __future__ import annotations

from typing import Any

import dense_reference as dense
import pytest
import torch
from fast_path import by_key
from tiny_models import ARCHITECTURES, Architecture, Task, tiny_model, tiny_task

from laplora.jacobians.contrasts import ContrastJacobians, contrast_jacobians, find_blocks
from laplora.linearised import contrasts

# float64 through two layers and sums over at most 7 tokens; values are of order 0.01 to 1. The two sides add in
# another order, and padding moves where a sum is split: some hundred roundings of 1e-16.
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def fast(model: Any, task: Task, indices: list[int] | None = None) -> ContrastJacobians:
    """Return the fast path's Jacobians of the rows at ``indices`` as one batch."""
    return contrast_jacobians(model, task.batch(indices), task.label_ids, find_blocks(model, task.classes))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("classes", "tied"), [(2, False), (4, True)])
def test_match_autograd(architecture: Architecture, tied: bool, classes: int) -> None:
    model = tiny_model(architecture, tied=tied)
    task = tiny_task(examples=6, classes=classes)
    found = fast(model, task)
    logits = dense.map_logits(model, task.batch(), task.label_ids)
    torch.testing.assert_close(found.logits, logits, **EXACT)
    expected = dense.jacobians(model, task.batch(), task.label_ids)
    mine = by_key(found.blocks, find_blocks(model, classes))
    assert mine.keys() == expected.keys()
    for key, jacobian in expected.items():
        exact = torch.einsum("ncab,cd->ndab", jacobian, contrasts(classes))
        torch.testing.assert_close(mine[key].jacobian, exact, msg=lambda m, k=key: f"{k}: {m}", **EXACT)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_do_not_depend_on_their_batch(architecture: Architecture) -> None:
    """Padding, batch size 1 (one row has a single token) and another order change rounding only."""
    model = tiny_model(architecture)
    task = tiny_task(examples=7)
    together = fast(model, task)
    order = [3, 0, 6, 2, 5, 1, 4]
    permuted = fast(model, task, order)
    for i in range(7):
        alone = fast(model, task, [i])
        torch.testing.assert_close(together.logits[i], alone.logits[0], **EXACT)
        for whole, single, moved in zip(together.blocks, alone.blocks, permuted.blocks, strict=True):
            for name in ("jacobian", "mean_input", "summed_gradient"):
                torch.testing.assert_close(getattr(whole, name)[i], getattr(single, name)[0], **EXACT)
                torch.testing.assert_close(getattr(moved, name)[order.index(i)], getattr(single, name)[0], **EXACT)
