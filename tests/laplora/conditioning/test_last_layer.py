"""The last layer's kernel against explicit matrices over all its weights."""

from __future__ import annotations

import pytest
import torch

from laplora.conditioning.choice import BIASES, VARIANCES, LabelledRows, candidates, choose_kernel, log_contrasts
from laplora.conditioning.last_layer import LastLayer
from laplora.errors import NonFiniteError
from laplora.linearised import class_probs, contrast_hessian, contrast_logits, contrasts

ROWS, WIDTH, CLASSES, TRAINED = 9, 14, 4, 50


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Return states and Hessians of labelled rows."""
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(ROWS, WIDTH, generator=draw, dtype=torch.float64)
    logits = torch.randn(ROWS, CLASSES, generator=draw, dtype=torch.float64)
    return states, contrast_hessian(logits, torch.ones(ROWS, CLASSES, dtype=torch.bool))


@pytest.mark.parametrize("precision", [0.1, 30.0])
def test_kernel_and_weights_are_those_of_the_explicit_posterior(precision: float) -> None:
    """The prior plus KFAC's curvature, as one matrix over all weights, inverted."""
    states, hessians = rows()
    layer = LastLayer.of(states, hessians, TRAINED)
    second, summed = states.T @ states / ROWS, hessians.mean(0) * TRAINED
    size = WIDTH * (CLASSES - 1)
    covariance = torch.linalg.inv(torch.kron(second, summed) + precision * torch.eye(size, dtype=torch.float64))
    same = torch.eye(CLASSES - 1, dtype=torch.float64)
    jacobians = torch.einsum("nw,cd->ncwd", states, same).reshape(ROWS, CLASSES - 1, size)
    expected = torch.einsum("ncp,pq,mdq->ncmd", jacobians, covariance, jacobians)
    torch.testing.assert_close(layer.kernel(precision), expected, rtol=1e-8, atol=1e-10)
    alpha = torch.randn(ROWS, CLASSES - 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = layer.weights(alpha, precision)
    pulled = (covariance @ torch.einsum("ncp,nc->p", jacobians, alpha)).view(WIDTH, CLASSES - 1)
    torch.testing.assert_close(weights, pulled, rtol=1e-8, atol=1e-10)
    # On the rows the weights do what the kernel says.
    torch.testing.assert_close(states @ weights, torch.einsum("ncmd,md->nc", layer.kernel(precision), alpha))


def test_rows_given_twice_and_states_of_low_rank() -> None:
    """Directions without an extent are left out, and the kernel stays that of the rows."""
    states, hessians = rows()
    twice = LastLayer.of(torch.cat([states, states]), torch.cat([hessians, hessians]), TRAINED)
    once = LastLayer.of(states, hessians, TRAINED)
    assert twice.vectors.shape == once.vectors.shape
    torch.testing.assert_close(twice.kernel(2.0)[:ROWS, :, :ROWS], once.kernel(2.0))


def test_states_that_are_not_finite_are_refused() -> None:
    """NaN is named."""
    states, hessians = rows()
    with pytest.raises(NonFiniteError, match="states"):
        LastLayer.of(states * torch.nan, hessians, TRAINED)


def test_candidates_have_the_variances_that_they_are_named_by() -> None:
    """Before the training curvature shrinks it, a contrast's mean variance over the rows is the stated one."""
    states, hessians = rows()
    layer = LastLayer.of(states, 0 * hessians, TRAINED)
    tried = candidates(layer)
    places = torch.arange(ROWS)
    own = [float(one.kernel[places, :, places].diagonal(dim1=1, dim2=2).mean()) for one in tried]
    assert own == pytest.approx([bias + variance for bias in BIASES for variance in VARIANCES])


def labelled(shift: float, count: int = 120) -> tuple[LastLayer, LabelledRows, torch.Tensor]:
    """Return rows whose labels follow weights that are elsewhere, by ``shift``, than those of the prior mean."""
    draw = torch.Generator().manual_seed(3)
    states = torch.randn(count, WIDTH, generator=draw, dtype=torch.float64)
    here = torch.randn(WIDTH, CLASSES - 1, generator=draw, dtype=torch.float64) / WIDTH**0.5
    moved = shift * torch.randn(WIDTH, CLASSES - 1, generator=draw, dtype=torch.float64) / WIDTH**0.5
    labels = torch.multinomial(contrast_logits(states @ (here + moved)).softmax(1), 1, generator=draw)[:, 0]
    mask = torch.ones(count, CLASSES, dtype=torch.bool)
    mean = states @ here
    layer = LastLayer.of(states, contrast_hessian(contrast_logits(mean), mask), 5)
    return layer, LabelledRows(mean, labels, mask), states @ moved


def test_what_is_chosen_follows_what_there_is_to_learn() -> None:
    """The kernel is wide where weights are elsewhere, and the narrowest or near it where they are not."""
    chosen = {}
    for shift in (0.0, 2.0):
        layer, rows_given, truth = labelled(shift)
        tried = candidates(layer)
        choice = choose_kernel(tried, rows_given)
        assert len(choice.losses) == len(tried)
        assert choice.losses[choice.place] == min(choice.losses)
        chosen[shift] = VARIANCES[choice.place % len(VARIANCES)]
        moved = choice.mode.moved(tried[choice.place].kernel)
        if shift:
            assert float((moved - truth).norm()) < 0.7 * float(truth.norm())
    assert chosen[0.0] < chosen[2.0]


def test_log_contrasts() -> None:
    """They give the probabilities back, with fewer possible classes too; a probability of 0 stays finite."""
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.6, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])
    found = log_contrasts(probs, mask)
    assert found.shape == (3, 2)
    assert bool(found.isfinite().all())
    assert float(found[1, 1]) == 0
    torch.testing.assert_close(class_probs(contrast_logits(found), mask), probs, rtol=0, atol=1e-10)
    torch.testing.assert_close(found[0], probs[0].log() @ contrasts(3))
