"""Answers that labels correct through the last state: the optimum they are, and what an expert says of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import one_hot

from laplora.errors import DataError, NonFiniteError
from laplora.experts.base import Expert, Outputs
from laplora.experts.last_state import BLOCK, LastState, corrected_answers, fit_last_state
from laplora.linearised import contrast_logits, contrast_mean, directions_of
from laplora.posterior.binary import binary_means
from laplora.predictive.kinds import CONDITIONED, Corrected

ROWS, WIDTH, CLASSES = 90, 6, 4
KINDS = pytest.mark.parametrize("kind", CONDITIONED)
SEVERAL = pytest.mark.parametrize("several", [False, True], ids=["one label", "several"])


def rows_of(several: bool) -> tuple[Outputs, torch.Tensor]:
    """Return the outputs of rows, some of which have fewer classes, and labels that the adapter misses."""
    draw = torch.Generator().manual_seed(3)
    states = torch.randn(ROWS, WIDTH, generator=draw) * torch.tensor([1.0, 5.0, 0.2, 1.0, 1.0, 30.0]) + 2
    logits = torch.randn(ROWS, CLASSES, generator=draw, dtype=torch.float64)
    missed = (states[:, :CLASSES].double() - 2) / torch.tensor([1.0, 5.0, 0.2, 1.0])
    mask = torch.ones(ROWS, CLASSES, dtype=torch.bool)
    spread = torch.randn(ROWS, CLASSES, CLASSES, generator=draw, dtype=torch.float64) / 3
    covariance = spread @ spread.mT
    if several:
        labels = torch.bernoulli((logits + missed).sigmoid(), generator=draw).long()
        log_probs = logits
    else:
        mask[::3, 2:] = False
        masked = logits.masked_fill(~mask, -torch.inf)
        labels = torch.multinomial((masked + missed).softmax(1), 1, generator=draw)[:, 0]
        log_probs, covariance = masked.log_softmax(1), covariance[:, 1:, 1:]
    return Outputs(mask, {"adapter": log_probs}, {"last_state": {BLOCK: states}}, covariance), labels


def arrays_of(
    kind: Corrected, outputs: Outputs
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Return mean, covariance, class mask and states of the rows, a row for each label where there are several."""
    assert outputs.covariance is not None
    logits, states = outputs.log_probs["adapter"], outputs.features["last_state"][BLOCK]
    mask, covariance, mean = outputs.class_mask, outputs.covariance, contrast_mean(logits.masked_fill(logits < -1e9, 0))
    if len(covariance[0]) == CLASSES:
        mean, mask = binary_means(logits), torch.ones(ROWS * CLASSES, 2, dtype=torch.bool)
        covariance = covariance.diagonal(dim1=1, dim2=2).reshape(-1, 1, 1) / 2
    return mean, covariance if kind == "laplace_conditioned" else None, mask, states


def fitted(kind: Corrected, several: bool) -> tuple[LastState, Outputs, torch.Tensor]:
    outputs, labels = rows_of(several)
    return fit_last_state(kind, *arrays_of(kind, outputs), labels.flatten()), outputs, labels


@KINDS
@SEVERAL
def test_a_correction_is_the_optimum_under_its_precisions(kind: Corrected, several: bool) -> None:
    """The gradient is 0: of the likelihood of log probabilities and shift, and of the prior of standardised weights."""
    one, outputs, labels = fitted(kind, several)
    before = replace(one.shift, weights=0 * one.shift.weights, constant=0 * one.shift.constant)
    offset = replace(one, shift=before).log_probs(outputs)
    states = outputs.features["last_state"][BLOCK].double()
    directions = directions_of(one.likelihood, CLASSES)
    logits = offset + one.shift.of(states) @ directions
    target = labels.double() if several else one_hot(labels, CLASSES).double()
    missed = (target - (logits.sigmoid() if several else logits.softmax(1))) @ directions.T
    spread = states.std(0, correction=0) * WIDTH**0.5
    standardised = (states - states.mean(0)) / spread
    weights, constant = one.shift.weights * spread[:, None], one.shift.constant + states.mean(0) @ one.shift.weights
    torch.testing.assert_close(one.precisions[BLOCK] * weights, standardised.T @ missed, rtol=0, atol=1e-5)
    torch.testing.assert_close(one.precisions["constant"] * constant, missed.sum(0), rtol=0, atol=1e-5)
    assert float(weights.abs().max()) > 0.5
    added = one.shift.of(states)
    assert one.size == pytest.approx(float(added.square().mean().sqrt()) / (2**0.5 if several else 1))


@KINDS
@SEVERAL
def test_an_expert_says_what_is_served(kind: Corrected, several: bool) -> None:
    """Of other inputs than the labelled ones, alone and in a batch."""
    one, outputs, _ = fitted(kind, several)
    expert: Expert = one
    found, log_probs = expert.predictive(outputs), expert.log_probs(outputs)
    served = corrected_answers(kind, one.shift, *arrays_of(kind, outputs))
    if several:
        torch.testing.assert_close(found.probs.flatten(), served.probs[:, 1])
        torch.testing.assert_close(log_probs.sigmoid(), found.probs)
        assert found.expected_entropy.shape == (ROWS,)
    else:
        torch.testing.assert_close(found.probs, served.probs)
        torch.testing.assert_close(log_probs.exp(), found.probs)
    assert bool((found.std > 0).any()) == (kind == "laplace_conditioned")
    torch.testing.assert_close(one.log_probs(outputs.take(torch.tensor([4, 7]))), log_probs[[4, 7]])


@KINDS
def test_later_labels_move_on_what_earlier_ones_added(kind: Corrected) -> None:
    """The temperature stays, and labels that are as the corrected answers expect add little."""
    one, outputs, labels = fitted(kind, several=False)
    given, groups = arrays_of(kind, outputs), torch.arange(ROWS)
    again = fit_last_state(kind, *given, labels, groups, one.shift)
    assert again.shift.temperature == one.shift.temperature
    states = outputs.features["last_state"][BLOCK]
    drawn = torch.multinomial(one.predictive(outputs).probs, 1, generator=torch.Generator().manual_seed(1))[:, 0]
    expected = fit_last_state(kind, *given, drawn, groups, one.shift).shift.of(states) - one.shift.of(states)
    assert float(expected.square().mean().sqrt()) < 0.5 * one.size
    assert contrast_logits(one.shift.of(states)).shape == (ROWS, CLASSES)


def test_what_no_labels_can_teach_is_refused() -> None:
    outputs, labels = rows_of(several=False)
    mean, covariance, mask, states = arrays_of("conditioned", outputs)
    with pytest.raises(DataError, match="all of one group"):
        fit_last_state("conditioned", mean, covariance, mask, states, labels, torch.zeros(ROWS, dtype=torch.int64))
    with pytest.raises(NonFiniteError, match="the states that the logits are read from"):
        fit_last_state("conditioned", mean, covariance, mask, states / 0, labels)
