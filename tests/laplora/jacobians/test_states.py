"""The states that a forward pass shows, against transformers' own record of them."""

from __future__ import annotations

import pytest
import torch
from tiny_classifiers import CLASSIFIERS, adapted_classifier, batch_of, random_rows
from tiny_models import tiny_model, tiny_task

from laplora.errors import ModelError
from laplora.jacobians.contrasts import contrast_jacobians, covered_blocks, find_blocks
from laplora.jacobians.states import Pooling, StateTape, join_states
from laplora.linearised import contrasts
from laplora.models.readout import label_logits, last_hidden
from laplora.readouts.classification_head import classification_head


@pytest.mark.parametrize("kind", ["llama", "phi", "phi3"])
def test_states_are_those_of_the_model(kind: str) -> None:
    """Rows of different lengths, padded on the left: the last token is a real one. With Jacobians they are the same."""
    model, task = tiny_model(kind), tiny_task(examples=5)
    batch = task.batch()
    with torch.no_grad(), StateTape(model, (0, 1), batch.attention_mask) as tape:
        logits = label_logits(model, last_hidden(model, batch), task.label_ids)
    states = tape.states(logits)
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():  # here transformers leaves hooks of its own
        plain = model.get_base_model().model(**batch.inputs, output_hidden_states=True)
    expected = plain.hidden_states[1][:, -1]
    torch.testing.assert_close(states.hidden[:, 0].to(logits.dtype), expected, atol=1e-6, rtol=1e-5)
    assert states.hidden.shape[:2] == (5, 2)
    torch.testing.assert_close(states.contrast_mean.double(), logits @ contrasts(3), atol=1e-6, rtol=1e-6)
    with StateTape(model, (0, 1), batch.attention_mask) as tape:
        found = contrast_jacobians(model, batch, task.label_ids, find_blocks(model, 3), sums=False)
    again = tape.states(found.logits)
    torch.testing.assert_close(again.hidden, states.hidden)
    joined = join_states([states, again])
    assert len(joined) == 10
    assert torch.equal(joined.take(torch.tensor([6])).hidden, again.hidden[1:2])
    with pytest.raises(ModelError, match="the model has 2"):
        StateTape(model, (2,), batch.attention_mask)


@pytest.mark.parametrize("pooling", [1, 3, 99, "mean"])
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_states_of_encoders_are_those_of_the_real_tokens(kind: str, pooling: Pooling) -> None:
    """Also where rows are padded on the right, and the last place of the batch holds padding. Jacobians or not."""
    model = adapted_classifier(kind, dtype=torch.float32)
    readout = classification_head(model)
    rows = random_rows(5)
    batch = batch_of(rows, readout.side)
    with torch.no_grad(), StateTape(model, (0, 1), batch.attention_mask, pooling) as tape:
        scores = readout.scores(model, batch)
    states = tape.states(scores.logits)
    with StateTape(model, (0, 1), batch.attention_mask, pooling) as tape:
        found = contrast_jacobians(model, batch, readout, covered_blocks(model, readout), sums=False)
    torch.testing.assert_close(tape.states(found.logits).hidden, states.hidden, atol=1e-5, rtol=1e-4)
    for i, row in enumerate(rows):
        ids = torch.tensor([row.token_ids])
        with torch.no_grad():
            plain = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        last = len(row.token_ids) if pooling == "mean" else pooling
        expected = plain.hidden_states[1][0, -last:].mean(0)
        torch.testing.assert_close(states.hidden[i, 0], expected, atol=1e-5, rtol=1e-4)
