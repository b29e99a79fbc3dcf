"""The gradient of label tokens' logits under soft caps and factors, against automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from tiny_models import generator, tiny_model, tiny_task

from laplora.models.readout import label_logits
from laplora.readouts.base import ClassScores
from laplora.readouts.label_tokens import LabelTokens


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"]])
@pytest.mark.parametrize("options", [{"final_logit_softcapping": 1.5}, {"logits_scaling": 8.0}])
def test_gradients_follow_the_slope_at_each_rows_logits(options: dict[str, float], targets: list[str]) -> None:
    """Float64; directions are the contrasts of classes, one set for all rows."""
    model, task = tiny_model("llama", targets=targets, **options), tiny_task()
    readout = LabelTokens(tuple(task.label_ids))
    hidden = torch.randn(4, 16, generator=generator(1), dtype=torch.float64, requires_grad=True)
    directions = torch.randn(2, 1, task.classes, generator=generator(2), dtype=torch.float64)
    logits = label_logits(model, hidden, task.label_ids)
    expected = [torch.autograd.grad((logits * d).sum(), hidden, retain_graph=True)[0] for d in directions]
    logits = logits.detach()
    scores = ClassScores(logits, hidden.detach(), torch.ones(4, 1))
    found = readout.gradient(model, scores, directions).hidden.detach()
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-12)
    assert float((found[0] - found[0].mean(0)).abs().max()) > 1e-3 or "logits_scaling" in options
