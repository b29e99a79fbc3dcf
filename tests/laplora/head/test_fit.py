"""Heads against a dense Newton's method, scikit-learn, and fits without the rows that they should not know."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from laplora.decisions.temperature import fit_temperature
from laplora.head import HeadError, fit, fold_numbers
from laplora.head.choice import chosen
from laplora.head.fit import mode_under
from laplora.head.rows import checked_rows
from laplora.head.spaces import gram_of, times

CLASSES = 4


def rows(count: int, width: int = 6, seed: int = 0, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features of any mean and spread, and labels that half of them explain."""
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(count, width, generator=draw)
    gumbel = -torch.empty(count, CLASSES).exponential_(generator=draw).log()
    pull = torch.randn(width // 2, CLASSES, generator=torch.Generator().manual_seed(99))
    labels = (2 * states[:, : width // 2] @ pull + noise * gumbel).argmax(1)
    return states * torch.linspace(0.1, 9, width) + torch.linspace(-5, 5, width), labels


def dense_mode(
    design: torch.Tensor,
    base: torch.Tensor,
    targets: torch.Tensor,
    mask: torch.Tensor,
    precision: torch.Tensor,
    one: bool,
) -> torch.Tensor:
    """Return the mode's logits (rows, classes) by full Newton steps over all weights with their explicit Hessian.

    Args:
        design: (rows, classes, weights); precision: (weights,); one: softmax, else one sigmoid a label.
    """
    weights = torch.zeros(design.shape[2], dtype=torch.float64)
    for _ in range(60):
        logits = base + design @ weights
        p = logits.masked_fill(~mask, -torch.inf).softmax(1) if one else logits.sigmoid() * mask
        hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :] if one else torch.diag_embed(p * (1 - p))
        curvature = torch.einsum("ncw,ncd,ndv->wv", design, hessian, design) + precision.diag()
        gradient = precision * weights - torch.einsum("ncw,nc->w", design, (targets - p) * mask)
        weights = weights - torch.linalg.solve(curvature, gradient)
    return base + design @ weights


@pytest.mark.parametrize("kind", ["categorical", "masked", "soft", "bernoulli", "options"])
@pytest.mark.parametrize(("count", "width"), [(30, 4), (30, 50)])
def test_it_is_the_dense_mode(kind: str, count: int, width: int) -> None:
    """In the space of features and in that of rows, of two blocks, with an offset."""
    draw = torch.Generator().manual_seed(1)
    shape = (count, CLASSES, width) if kind == "options" else (count, width)
    blocks = {name: torch.randn(shape, generator=draw).double() * 3 + 2 for name in ("a", "b")}
    offset = torch.randn(count, CLASSES, generator=draw).double()
    mask = torch.ones(count, CLASSES, dtype=torch.bool)
    labels = torch.randint(0, 2, (count,), generator=draw)
    if kind in ("masked", "options"):
        mask[: count // 2, 2] = False
    targets = torch.nn.functional.one_hot(labels, CLASSES).double()
    given: torch.Tensor = labels
    if kind in ("soft", "bernoulli"):
        targets = given = torch.rand(count, CLASSES, generator=draw).double()
    if kind == "soft":
        targets = given = targets / targets.sum(1, keepdim=True)
    one: Any = "bernoulli" if kind == "bernoulli" else "categorical"
    precisions = {"a": 0.3, "b": 2.0} | ({} if kind == "options" else {"constant": 0.7})
    fitted = fit(blocks, given, offset=offset, class_mask=mask, likelihood=one, precisions=precisions, honest=False)

    parts, precision = [], []
    for name, block in blocks.items():
        if kind == "options":
            possible = mask[:, :, None]
            block = (block - (block * possible).sum(1, keepdim=True) / possible.sum(1, keepdim=True)) * possible
            block = block / (block.square().sum((0, 1)) / mask.sum()).sqrt() / width**0.5
            parts.append(block)
            precision.append(torch.full((width,), precisions[name], dtype=torch.float64))
        else:
            block = (block - block.mean(0)) / block.std(0, correction=0) / width**0.5
            parts.append(torch.einsum("nw,cd->ncwd", block, torch.eye(CLASSES).double()).flatten(2))
            precision.append(torch.full((width * CLASSES,), precisions[name], dtype=torch.float64))
    if kind != "options":
        parts.append(torch.eye(CLASSES).double().expand(count, -1, -1))
        precision.append(torch.full((CLASSES,), precisions["constant"], dtype=torch.float64))
    logits = dense_mode(torch.cat(parts, 2), offset, targets, mask, torch.cat(precision), one == "categorical")
    expected = logits.masked_fill(~mask, -torch.inf).log_softmax(1)
    if kind == "bernoulli":
        expected = torch.nn.functional.logsigmoid(logits)
    torch.testing.assert_close(fitted.head.log_probs(blocks, offset, mask), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("width", [5, 80])
def test_it_is_scikit_learns(width: int) -> None:
    """Its C is 1 / precision; its constant is free, ours all but free. Arrays are numpy's."""
    states, labels = rows(60, width)
    precisions, folds = {"features": 0.05, "constant": 1e-8}, fold_numbers(60).numpy()
    arrays = {"groups": np.arange(60), "folds": folds, "class_mask": np.ones((60, CLASSES), dtype=bool)}
    fitted = fit(states.numpy(), labels.numpy(), precisions=precisions, honest=False, **arrays)
    assert len(fitted.forget([7]).rows) == 59
    assert "tensor" not in repr(fitted)
    head = fitted.head
    scaled = head.scaling.apply("features", states, torch.ones(60, CLASSES, dtype=torch.bool))
    oracle = LogisticRegression(C=1 / 0.05, tol=1e-9, max_iter=5000).fit(scaled.numpy(), labels.numpy())
    expected = torch.from_numpy(oracle.predict_log_proba(scaled.numpy()))
    torch.testing.assert_close(head.log_probs(states.numpy()), expected, rtol=0, atol=1e-4)


def test_the_offsets_temperature_is_that_of_temperature_scaling() -> None:
    """Also of rows without a mistake, which alone would have none."""
    states, labels = rows(40)
    draw = torch.Generator().manual_seed(2)
    right = torch.nn.functional.one_hot(labels, CLASSES).double()
    for offset in (2 * torch.randn(40, CLASSES, generator=draw).double() + right, 3 * right):
        fitted = fit(states, labels, offset=offset.log_softmax(1), temper=True, precisions={"features": 1.0})
        expected = 1 / fit_temperature(offset, labels, torch.ones_like(right).bool())
        assert fitted.head.inverse_temperature == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("width", [6, 60])
@pytest.mark.parametrize("tempered", [False, True])
def test_learning_and_forgetting_is_never_having_known(width: int, tempered: bool) -> None:
    """Head and held-out answers return; and forgetting is the mode of the other rows."""
    states, labels = rows(45, width)
    offset = torch.randn(45, CLASSES, generator=torch.Generator().manual_seed(3)) if tempered else None
    first = None if offset is None else offset[:40]
    before = fit(states[:40], labels[:40], offset=first, temper=tempered, folds=3)
    learned = before.learn(states[40:], labels[40:], offset=None if offset is None else offset[40:])
    after = learned.forget(torch.arange(40, 45))
    assert (learned.head.log_probs(states, offset) - before.head.log_probs(states, offset)).abs().max() > 1e-3
    torch.testing.assert_close(
        after.head.log_probs(states, offset), before.head.log_probs(states, offset), rtol=0, atol=1e-7
    )
    torch.testing.assert_close(after.held_out, before.held_out, rtol=0, atol=1e-7)
    assert (learned.held_out[:40] - before.held_out).abs().max() > 1e-3

    without = before.forget(torch.tensor([7]))
    others = before.rows.at((torch.arange(40) != 7).nonzero()[:, 0])
    torch.testing.assert_close(
        without.head.log_probs(states, offset),
        mode_under(others, before.head)[0].log_probs(states, offset),
        rtol=0,
        atol=1e-9,
    )
    with pytest.raises(HeadError, match="fewer than two folds"):
        before.forget((before.folds != 0).nonzero()[:, 0])


def test_a_held_out_answer_knows_nothing_of_its_group() -> None:
    """Neither labels nor features of the fold reach scaling, temperature, precisions or mode of its answers."""
    states, labels = rows(60)
    groups = torch.arange(60) // 2
    offset = torch.randn(60, CLASSES, generator=torch.Generator().manual_seed(3)).log_softmax(1)
    numbers = fold_numbers(60, 4, groups=groups)
    assert bool((numbers[0::2] == numbers[1::2]).all())
    states[:, 0] = 3.0  # constant in every other fold
    fold = numbers == numbers[10]
    states[fold, 0] = torch.linspace(-50, 50, int(fold.sum()))

    def answers(states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return fit(states, labels, offset=offset, temper=True, groups=groups, folds=4).held_out

    changed = labels.clone()
    changed[fold] = (changed[fold] + 1) % CLASSES
    first, second = answers(states, labels), answers(states, changed)
    assert torch.equal(first[fold], second[fold])
    assert (first[~fold] - second[~fold]).abs().max() > 1e-3
    spread = states.clone()
    spread[fold, 0] *= 100  # the constant is dropped, so this cannot matter to the fold's own answers
    torch.testing.assert_close(answers(spread, labels)[fold], first[fold], rtol=0, atol=1e-12)


def test_precisions_move_on_past_the_edge_and_useless_blocks_go_out() -> None:
    draw = torch.Generator().manual_seed(5)
    labels = torch.arange(400) % 2
    clear = labels[:, None] + 0.01 * torch.randn(400, 1, generator=draw)
    noise = torch.randn(400, 30, generator=draw)
    wide, narrow = fit(clear, labels, honest=False), fit(noise, labels, honest=False)
    assert wide.precisions["features"] < 1e-3
    centres, one_of = 20 * torch.randn(5, 2000, generator=draw), torch.arange(100) % 5
    apart = fit(centres[one_of] + 60 * torch.randn(100, 2000, generator=draw), one_of, honest=False)
    assert apart.precisions["features"] < 5e-7
    assert narrow.precisions["features"] > 10
    both = fit({"clear": clear + 0.5 * torch.randn(400, 1, generator=draw), "noise": noise}, labels, honest=False)
    assert both.precisions["noise"] > 2 * both.precisions["clear"]


@pytest.mark.parametrize("width", [20, 80])
def test_the_losses_of_a_choice_are_those_of_modes(width: int) -> None:
    """Where features part the classes the whole objective is near 0: a mode can be far though little of it is left."""
    draw = torch.Generator().manual_seed(3)
    labels = torch.arange(100) % 20
    blocks = {name: torch.randn(20, width, generator=draw)[labels] * size for name, size in (("a", 0.7), ("b", 0.2))}
    blocks = {name: block + torch.randn(100, width, generator=draw) for name, block in blocks.items()}
    tried, _ = chosen(checked_rows(blocks, labels), fold_numbers(100), temper=False, seed=0)
    for precisions, loss in tried:
        modes = fit(blocks, labels, precisions=precisions)
        prior = (math.log(precisions["a"] / precisions["b"]) / 1.5) ** 2 / 4 / len(labels)
        assert loss == pytest.approx(prior - float(modes.held_out.gather(1, labels[:, None]).mean()), rel=2e-3)


@pytest.mark.parametrize(("count", "classes"), [(20, 2), (500, 1000)])
def test_few_rows_and_many_classes(count: int, classes: int) -> None:
    """A class of one row is never seen by its own fold's fit, and has an answer nevertheless."""
    labels = torch.arange(count) % classes
    states = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    fitted = fit(states, labels, precisions=None if classes == 2 else {"features": 0.1}, folds=3, classes=classes)
    assert fitted.held_out.shape == (count, classes)
    torch.testing.assert_close(fitted.held_out.exp().sum(1), torch.ones(count).double())


def test_what_cannot_be_fitted_is_refused() -> None:
    states, labels = rows(20)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("at least two groups", {"groups": torch.zeros(20, dtype=torch.int64)}),
        ("several folds", {"groups": torch.arange(20) // 2, "folds": torch.arange(20) % 2}),
        ("NaN or infinity", {"features": states.log()}),
        ("as many labels", {"labels": labels[:5]}),
        ("class_mask makes impossible", {"class_mask": torch.eye(CLASSES).bool()[(labels + 1) % CLASSES]}),
        ("offset has NaN", {"offset": torch.full((20, CLASSES), -torch.inf)}),
        ("sum to 1", {"labels": torch.ones(20, CLASSES)}),
        ("precisions need", {"precisions": {"other": 1.0}}),
        ("positive", {"precisions": {"features": 0.0}}),
        ("different numbers of classes", {"classes": 3, "offset": torch.zeros(20, CLASSES)}),
    ]
    for message, change in cases:
        given: dict[str, Any] = {"features": states, "labels": labels, **change}
        with pytest.raises(HeadError, match=message):
            fit(given.pop("features"), given.pop("labels"), **given)
    head = fit(states, labels, honest=False).head
    with pytest.raises(HeadError, match="width 6"):
        head.log_probs(states[:, :3])
    with pytest.raises(HeadError, match="offset"):
        head.log_probs(states, torch.zeros(20, CLASSES))


def test_products_of_few_columns_and_with_itself_are_products() -> None:
    matrix = torch.randn(600, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(gram_of(matrix), matrix @ matrix.T)
    torch.testing.assert_close(times(matrix.float(), matrix[:40, :3]), matrix @ matrix[:40, :3], rtol=0, atol=1e-4)


@pytest.mark.parametrize("count", [10, 50, 150])
def test_copies_with_two_labels_are_one_row_with_both(count: int) -> None:
    """Where residuals of copies cancel, a step is among what the features cannot tell apart: it must not end there."""
    draw = torch.Generator().manual_seed(0)
    once, first, second = torch.randn(count, 400, generator=draw), *torch.randint(0, 3, (2, count), generator=draw)
    copies, labels = once.repeat_interleave(2, 0), torch.stack([first, second], 1).flatten()
    both = (torch.eye(3)[first] + torch.eye(3)[second]) / 2
    precisions = {"features": 1e-3, "constant": 0.01}
    found = fit(copies, labels, classes=3, honest=False, precisions=precisions)
    halved = {name: value / 2 for name, value in precisions.items()}
    expected = fit(once, both.double(), honest=False, precisions=halved)
    torch.testing.assert_close(found.head.log_probs(once), expected.head.log_probs(once), rtol=0, atol=1e-5)
