"""The reference against first principles. Its Jacobians are those of test_contrasts, which test_probe differences."""

from __future__ import annotations

import dense_reference as dense
import torch
from tiny_models import tiny_model, tiny_task


def test_ggn_is_the_fisher_enumerated_over_labels() -> None:
    model = tiny_model("llama")
    task = tiny_task(examples=6, classes=4)
    batch = task.batch()
    probs = dense.masked_probs(dense.map_logits(model, batch, task.label_ids), batch.class_mask)
    weights = list(dense.block_weights(model).values())
    fisher = 0.0
    for n, row in enumerate(dense.single_rows(batch)):
        logits = dense.class_logits(model, row, task.label_ids)
        logs = torch.log_softmax(logits.masked_fill(~row.class_mask, -torch.inf), dim=1)[0]
        for c in range(int(row.class_mask.sum())):
            score = torch.cat([g.flatten() for g in torch.autograd.grad(logs[c], weights, retain_graph=True)])
            fisher = fisher + probs[n, c] * score.square().sum()
    ggn = dense.joint_ggn(dense.jacobians(model, batch, task.label_ids), probs)
    # The same sum in another order: rounding only. Rows of lm_head outside the labels have zero score.
    torch.testing.assert_close(torch.trace(ggn), torch.as_tensor(fisher), rtol=1e-12, atol=0)


def test_kfac_reduce_is_exact_for_one_example_of_one_token() -> None:
    model = tiny_model("phi")
    task = tiny_task(examples=3)
    batch = task.batch([2])
    assert batch.input_ids.shape == (1, 1)
    probs = dense.masked_probs(dense.map_logits(model, batch, task.label_ids), batch.class_mask)
    jacobians = dense.jacobians(model, batch, task.label_ids)
    for key, factors in dense.kfac_reduce(model, batch, task.label_ids).items():
        ggn = dense.block_ggn(jacobians[key], probs)
        # J = g x^T with a single token, so the Kronecker product is the GGN itself, to rounding.
        torch.testing.assert_close(dense.kron(factors.large, factors.small), ggn, rtol=1e-10, atol=1e-14)
