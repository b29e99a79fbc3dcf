"""The reference against first principles: what it is compared with must itself be checked by other means."""

from __future__ import annotations

import math

import dense_reference as dense
import pytest
import torch
from tiny_models import ARCHITECTURES, Architecture, generator, tiny_model, tiny_task


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_jacobians_are_finite_differences(architecture: Architecture, tied: bool) -> None:
    model = tiny_model(architecture, tied=tied)
    task = tiny_task(examples=3)
    batch = task.batch([0, 1, 2])
    jacobians = dense.jacobians(model, batch, task.label_ids)
    draw, step = generator(7), 1e-5
    for key, weight in dense.block_weights(model).items():
        direction = torch.randn(weight.shape, generator=draw, dtype=torch.float64)
        with torch.no_grad():
            weight.add_(step * direction)
            above = dense.map_logits(model, batch, task.label_ids)
            weight.sub_(2 * step * direction)
            below = dense.map_logits(model, batch, task.label_ids)
            weight.add_(step * direction)
        oriented = direction.T if key.side == "A" else direction
        if key.module.endswith("lm_head") and key.side == "B":
            oriented = direction[task.label_ids]
        slope = torch.einsum("ncab,ab->nc", jacobians[key], oriented)
        # A central difference errs by step^2 times the third derivative (1e-10 x about 10) plus rounding / step
        # (1e-15 / 1e-5); the rotary tables are float32, but the same ones on both sides.
        torch.testing.assert_close(slope, (above - below) / (2 * step), rtol=1e-6, atol=1e-7)


def test_padding_does_not_change_the_plain_forward() -> None:
    for architecture in ARCHITECTURES:
        model = tiny_model(architecture)
        task = tiny_task(examples=5)
        with torch.no_grad():
            padded = dense.class_logits(model, task.batch(), task.label_ids)
        # float64 rounding through two layers.
        torch.testing.assert_close(
            padded, dense.map_logits(model, task.batch(), task.label_ids), rtol=1e-11, atol=1e-11
        )


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


def test_monte_carlo_agrees_with_one_dimensional_integration() -> None:
    mean = torch.tensor([[0.4, -0.3, 0.0]], dtype=torch.float64)
    root = torch.tensor([[1.0, 0.2], [-0.5, 1.5], [3.0, 1.0]], dtype=torch.float64)
    covariance = (root @ root.T)[None]
    mask = torch.tensor([[True, True, False]])
    samples = 200_000
    probs, std = dense.monte_carlo_probs(mean, covariance, mask, samples=samples, generator=generator(0))
    exact = dense.two_class_probs(mean[:, :2], covariance[:, :2, :2])
    # Five standard errors of the plain average.
    assert probs[0, 0].item() == pytest.approx(exact[0, 0].item(), abs=5 * std[0, 0].item() / math.sqrt(samples))
    assert probs[0, 2] == 0
    # Without variance the sum is the sigmoid itself.
    none = dense.two_class_probs(mean[:, :2], 0 * covariance[:, :2, :2])
    torch.testing.assert_close(none[0, 0], torch.sigmoid(mean[0, 0] - mean[0, 1]), rtol=0, atol=1e-14)
