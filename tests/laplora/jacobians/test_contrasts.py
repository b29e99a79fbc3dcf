"""The hooked contrast Jacobians against one autograd call per logit and example."""

from __future__ import annotations

import dense_reference as dense
import pytest
import torch
from fast_path import by_key
from tiny_models import ARCHITECTURES, Architecture, tiny_model, tiny_task

from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.linearised import contrasts

# float64 through two layers and sums over at most 7 tokens; values are of order 0.01 to 1. The two sides add in
# another order, and padding moves where a sum is split: some hundred roundings of 1e-16.
EXACT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("classes", "tied"), [(2, False), (4, True)])
def test_match_autograd(architecture: Architecture, tied: bool, classes: int) -> None:
    """Of a padded batch against rows alone without padding, one of them of a single token."""
    model, task = tiny_model(architecture, tied=tied), tiny_task(examples=6, classes=classes)
    blocks = find_blocks(model, classes)
    found = contrast_jacobians(model, task.batch(), task.label_ids, blocks)
    logits = dense.map_logits(model, task.batch(), task.label_ids)
    torch.testing.assert_close(found.logits, logits, **EXACT)
    expected = dense.jacobians(model, task.batch(), task.label_ids)
    mine = by_key(found.blocks, blocks)
    assert mine.keys() == expected.keys()
    for key, jacobian in expected.items():
        exact = torch.einsum("ncab,cd->ndab", jacobian, contrasts(classes))
        torch.testing.assert_close(mine[key].jacobian, exact, msg=lambda m, k=key: f"{k}: {m}", **EXACT)
