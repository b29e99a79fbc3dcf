"""The last layer's kernel against explicit matrices over all its weights."""

from __future__ import annotations

import pytest
import torch
from conditioning_rows import several_rows

from laplora.conditioning.choice import BIASES, VARIANCES, candidates
from laplora.conditioning.kernel import Kernel
from laplora.conditioning.last_layer import LastLayer
from laplora.errors import NonFiniteError
from laplora.linearised import class_probs, class_weighted_hessian, contrast_hessian, mean_contrast_hessian

ROWS, WIDTH, CLASSES, TRAINED = 9, 14, 4, 50


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Return states of labelled rows, and their mean Hessian."""
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(ROWS, WIDTH, generator=draw, dtype=torch.float64)
    logits = torch.randn(ROWS, CLASSES, generator=draw, dtype=torch.float64)
    return states, mean_contrast_hessian(logits.softmax(1))


def drawn(*shape: int) -> torch.Tensor:
    """Return numbers to multiply by."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("bias", [0.0, 0.7])
@pytest.mark.parametrize("precision", [0.1, 30.0])
def test_kernel_and_weights_are_those_of_the_explicit_posterior(precision: float, bias: float) -> None:
    """The prior plus KFAC's curvature, as one matrix over all weights, inverted; and a constant of each contrast."""
    states, hessian = rows()
    kernel = Kernel(LastLayer.of(states, hessian, TRAINED), precision, bias)
    second, summed = states.T @ states / ROWS, hessian * TRAINED
    size = WIDTH * (CLASSES - 1)
    covariance = torch.linalg.inv(torch.kron(second, summed) + precision * torch.eye(size, dtype=torch.float64))
    same = torch.eye(CLASSES - 1, dtype=torch.float64)
    jacobians = torch.einsum("nw,cd->ncwd", states, same).reshape(ROWS, CLASSES - 1, size)
    expected = torch.einsum("ncp,pq,mdq->ncmd", jacobians, covariance, jacobians) + bias * same[None, :, None]
    torch.testing.assert_close(kernel.dense(), expected, rtol=1e-8, atol=1e-10)
    alpha = drawn(ROWS, CLASSES - 1)
    weights, constant = kernel.layer_weights(kernel.weights(alpha))
    pulled = (covariance @ torch.einsum("ncp,nc->p", jacobians, alpha)).view(WIDTH, CLASSES - 1)
    torch.testing.assert_close(weights, pulled, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(constant, bias * alpha.sum(0))
    # On the rows the weights do what the kernel says.
    product = torch.einsum("ncmd,md->nc", expected, alpha)
    torch.testing.assert_close(states @ weights + constant, product, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(kernel.times(alpha), product, rtol=1e-8, atol=1e-10)
    # And on others, with an extent that no labelled row has.
    others = drawn(5, WIDTH)
    torch.testing.assert_close(kernel.contrasts(kernel.weights(alpha), others), others @ weights + constant)


def test_labels_of_one_input_are_binary_rows() -> None:
    """The contrast of (absent, present) is a label's logit by -1 / sqrt(2): the kernel of the logits by a half."""
    inputs, _ = several_rows(1.0, inputs=6, labels=3)
    layer = inputs.layer()
    kernel = Kernel(layer, 2.0, 0.5, together=3)
    dense = kernel.dense()
    assert dense.shape == (len(kernel), 1, len(kernel), 1) == (18, 1, 18, 1)
    torch.testing.assert_close(dense.view(6, 3, 6, 3), Kernel(layer, 2.0, 0.5).dense() / 2)
    alpha = drawn(18, 1)
    torch.testing.assert_close(kernel.times(alpha), torch.einsum("ncmd,md->nc", dense, alpha))
    torch.testing.assert_close(kernel.contrasts(kernel.weights(alpha), inputs.states), kernel.times(alpha))
    # What serves moves a label's logit, and the contrast by -1 / sqrt(2) as much.
    weights, constant = kernel.layer_weights(kernel.weights(alpha))
    logits = layer.states @ layer.vectors.T @ weights + constant
    torch.testing.assert_close(kernel.times(alpha), -(0.5**0.5) * logits.view(-1, 1))


def test_rows_given_twice_and_states_of_low_rank() -> None:
    """Directions without an extent are left out, and the kernel stays that of the rows."""
    states, hessian = rows()
    twice = LastLayer.of(torch.cat([states, states]), hessian, TRAINED)
    once = LastLayer.of(states, hessian, TRAINED)
    assert twice.vectors.shape == once.vectors.shape
    torch.testing.assert_close(Kernel(twice, 2.0).dense()[:ROWS, :, :ROWS], Kernel(once, 2.0).dense())
    with pytest.raises(NonFiniteError, match="states"):
        LastLayer.of(states * torch.nan, hessian, TRAINED)


def test_states_without_an_extent_leave_the_constant() -> None:
    """As behind a head whose units are all off: the kernel is that of the constant, and the precision a number."""
    _, hessian = rows()
    layer = LastLayer.of(torch.zeros(ROWS, WIDTH), hessian, TRAINED)
    kernel = candidates(layer)[-1]
    assert kernel.precision > 0
    constant = kernel.bias * torch.eye(CLASSES - 1, dtype=torch.float64)
    torch.testing.assert_close(kernel.dense()[0, :, 1], constant)
    alpha = drawn(ROWS, CLASSES - 1)
    torch.testing.assert_close(kernel.times(alpha), kernel.bias * alpha.sum(0).expand(ROWS, -1))


def test_candidates_have_the_variances_that_they_are_named_by() -> None:
    """Before the training curvature shrinks it, a contrast's mean variance over the rows is the stated one."""
    states, hessian = rows()
    tried = candidates(LastLayer.of(states, 0 * hessian, TRAINED))
    places = torch.arange(ROWS)
    own = [float(one.dense()[places, :, places].diagonal(dim1=1, dim2=2).mean()) for one in tried]
    assert own == pytest.approx([bias + variance for bias in BIASES for variance in VARIANCES])


def test_mean_hessian_is_the_mean_of_the_rows() -> None:
    """Without the Hessians of the rows, with fewer possible classes too."""
    logits, mask = drawn(7, CLASSES), torch.ones(7, CLASSES, dtype=torch.bool)
    mask[2, 2:] = False
    found = mean_contrast_hessian(class_probs(logits, mask))
    torch.testing.assert_close(found, contrast_hessian(logits, mask).mean(0))
    # With class weights that of their loss: of each label that a row may have, by its probability.
    weights, probs = torch.arange(1, CLASSES + 1) / 2, class_probs(logits, mask)
    expected = torch.zeros_like(found)
    for label in range(CLASSES):
        own = class_weighted_hessian(logits, torch.full((7,), label), mask, weights)
        expected += (probs[:, label, None, None] * own).mean(0)
    torch.testing.assert_close(mean_contrast_hessian(probs, weights), expected)
