"""The kernel that is chosen, by leave-one-out and by folds."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from conditioning_rows import moved_rows, several_rows

from laplora.conditioning import choice as module
from laplora.conditioning import weights_mode
from laplora.conditioning.choice import BIASES, VARIANCES, WIDE_VARIANCES, choose_kernel, fold_means
from laplora.conditioning.kernel import Kernel
from laplora.conditioning.labelled import LabelledRows, log_contrasts
from laplora.conditioning.last_layer import LastStates
from laplora.conditioning.mode import posterior_mode
from laplora.errors import FactorizationError
from laplora.linearised import class_probs, contrast_logits, contrasts
from laplora.predictive.cross_fitting import fold_rows


@pytest.mark.parametrize("folds", [False, True])
def test_what_is_chosen_follows_what_there_is_to_learn(folds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is wide where weights are elsewhere, and the narrowest or near it where they are not."""
    chosen = {}
    if folds:
        monkeypatch.setattr(module, "MOST_LEFT_OUT", 0)
    for shift in (0.0, 2.0):
        states, rows, truth = moved_rows(shift)
        choice = choose_kernel(states, rows)
        tried = WIDE_VARIANCES if folds else VARIANCES
        assert len(choice.losses) == len(tried) * len(BIASES)
        assert choice.losses[choice.place] == min(choice.losses)
        assert rows.loss(choice.left_out) == pytest.approx(choice.losses[choice.place])
        chosen[shift] = tried[choice.place % len(tried)]
        moved = choice.kernel.contrasts(choice.weights)
        if shift:
            assert float((moved - truth).norm()) < 0.7 * float(truth.norm())
    assert chosen[0.0] < chosen[2.0]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_each_row_is_predicted_as_by_conditioning_on_the_other_folds(several: bool, grouped: bool) -> None:
    """Against modes by the matrix of the other folds' rows, found from nothing."""
    if several:
        states, rows = several_rows(1.0)
    else:
        states, rows, _ = moved_rows(1.0, count=60, classes=6, masked=True)
    if grouped:  # of 1 to 5 inputs
        inputs = torch.arange(len(rows.labels)) // rows.together
        rows = replace(rows, groups=(inputs.double() ** 0.5).long())
    variances, biases = (0.03, 1.0, 10.0), (0.0, 0.5)
    found = fold_means(states, rows, variances, biases)
    for (bias, variance), means in zip(product(biases, variances), found, strict=True):
        expected = rows.mean.clone()
        for fitted, held_out in fold_rows(len(rows.labels), groups=rows.parted):
            layer, some = states.take(rows.inputs(fitted)).layer(), rows.take(fitted)
            kernel = Kernel(layer, layer.variance / variance, bias, rows.together)
            mode = posterior_mode(kernel.dense(), some.mean, some.labels, some.class_mask)
            expected[held_out] += kernel.contrasts(kernel.weights(mode.alpha), states.states[rows.inputs(held_out)])
        assert rows.loss(means) == pytest.approx(rows.loss(expected), abs=2e-5)
        torch.testing.assert_close(means, expected, rtol=0, atol=5e-3)


def many(noise: float, seed: int, count: int = 400, classes: int = 40) -> tuple[LastStates, LabelledRows]:
    """Return rows of many classes in clusters; the mean knows the classes but for some that it takes for others.

    Args:
        noise: 1: labels are drawn from the mean's own probabilities, and so say nothing new.
    """
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 48, generator=draw, dtype=torch.float64)
    # The last classes are rare: some have no row at all.
    shares = torch.arange(classes, 0, -1, dtype=torch.float64) ** 2
    true = torch.multinomial(shares, count, replacement=True, generator=draw)
    states = centres[true] + 0.7 * torch.randn(count, 48, generator=draw, dtype=torch.float64)
    head = centres.clone()
    head[:10] = centres[:10].roll(1, 0)
    logits = 0.15 * states @ (centres if noise else head).T
    mask = torch.ones(count, classes, dtype=torch.bool)
    mask[true < classes // 2, classes // 2 :] = False
    probs = class_probs(logits, mask)
    labels = torch.multinomial(probs, 1, generator=draw)[:, 0] if noise else true
    return LastStates(states, probs, 2 * count), LabelledRows(log_contrasts(probs, mask), labels, mask)


def test_many_classes_some_of_them_absent() -> None:
    """Where the head takes classes for others, the labels of other folds put that right."""
    states, rows = many(0.0, 0)
    assert rows.mean.numel() > module.MOST_LEFT_OUT
    assert len(rows.labels.unique()) < 40
    choice = choose_kernel(states, rows)
    right = contrast_logits(choice.left_out).masked_fill(~rows.class_mask, -torch.inf).argmax(1) == rows.labels
    before = contrast_logits(rows.mean).masked_fill(~rows.class_mask, -torch.inf).argmax(1) == rows.labels
    assert float(right.double().mean()) > float(before.double().mean()) + 0.3
    assert choice.losses[choice.place] < rows.loss(rows.mean) - 0.5


def test_a_kernel_without_a_mode_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """So wide that rounding makes its matrix indefinite, or not found in time; without any other it is an error."""
    states, rows, _ = moved_rows(1.0, trained=0)
    for wide, message in ((1e20, "no kernel leaves a row out"), (300.0, "under any kernel")):
        choice = choose_kernel(states, rows, (wide, 0.1), (0.0,))
        assert [loss == float("inf") for loss in choice.losses] == [True, False]
        with pytest.raises(FactorizationError, match=message):
            choose_kernel(states, rows, (wide,), (0.0,))
        monkeypatch.setattr(module, "MOST_LEFT_OUT", 0)  # now by folds
        monkeypatch.setattr(weights_mode, "_STEPS", 5)


def test_labels_of_the_means_own_probabilities_move_next_to_nothing() -> None:
    """Noise: the narrowest kernel is chosen in most draws, and what is chosen hardly moves an answer."""
    still = 0
    for seed in range(5):
        states, rows = many(1.0, seed)
        choice = choose_kernel(states, rows, biases=(0.0,))
        still += choice.place == 0
        assert rows.loss(choice.left_out) == pytest.approx(rows.loss(rows.mean), abs=0.01)
    assert still >= 3


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
