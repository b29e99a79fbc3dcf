"""The written-out reverse pass and torch's automatic differentiation of one model, side by side."""

from __future__ import annotations

from typing import Any

import torch

from laplora.jacobians.blocks import ContrastJacobians
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks, reverse_pass
from laplora.jacobians.decoder_forms import DecoderForm, decoder_form

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# float64; the two add in another order.
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def both(model: Any, task: Any, blocks: Any = None, **wanted: bool) -> tuple[ContrastJacobians, ContrastJacobians]:
    """Return the written-out and the automatic Jacobians of a task's rows."""
    blocks = blocks or find_blocks(model, task.classes)
    assert reverse_pass(model).kind == "written_out"
    mine, torchs = (
        contrast_jacobians(model, task.batch(), task.label_ids, blocks, automatic=automatic, **wanted)
        for automatic in (False, True)
    )
    return mine, torchs


def assert_same(mine: ContrastJacobians, torchs: ContrastJacobians, **tolerance: float) -> None:
    """Compare everything that is there; both have the same things."""
    assert torch.equal(mine.logits, torchs.logits)
    assert torch.equal(mine.hidden, torchs.hidden)
    for one, other in zip(mine.blocks, torchs.blocks, strict=True):
        for name, value in vars(one).items():
            expected = getattr(other, name)
            if value is None or expected is None:
                assert value is expected is None, name
            else:
                torch.testing.assert_close(value, expected, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def form_of(model: Any) -> DecoderForm:
    """Return the form of a model's decoder."""
    form = decoder_form(model.get_base_model())
    assert form is not None
    return form
