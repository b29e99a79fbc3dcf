"""Heads as experts: which rows train them, that no label moves its own answer, and labels that come and go."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from laplora.experts.adapter import as_given
from laplora.experts.base import Labelled, Outputs
from laplora.experts.familiar import across, compared, familiarity_of
from laplora.experts.of_head import HeadExpert, fit_head
from laplora.familiarity.mahalanobis import fit_layer
from laplora.head import fold_numbers
from laplora.linearised import Likelihood

ROWS, CLASSES = 40, 3


def problem(likelihood: Likelihood = "categorical") -> tuple[Outputs, Labelled]:
    """Return rows of two each to a group, the first ten of which an adapter was trained on."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=draw)
    states = torch.randn(ROWS, 4, generator=draw) + torch.nn.functional.one_hot(labels, 4)
    logits = torch.randn(ROWS, CLASSES, generator=draw, dtype=torch.float64)
    groups = torch.arange(ROWS) // 2
    mask, honest = torch.ones(ROWS, CLASSES, dtype=torch.bool), torch.arange(ROWS) >= 10
    logs = logits.log_softmax(1)
    if likelihood == "bernoulli":
        labels, logs = torch.nn.functional.one_hot(labels, CLASSES), logits
    blocks = {"a": states, "b": torch.randn(ROWS, 3, generator=draw)}
    outputs = Outputs(mask, {"adapter": logs, "zero_shot": logs}, {"frozen": blocks, "last_state": blocks})
    folds = fold_numbers(ROWS, groups=groups)
    return outputs, Labelled(labels, mask, groups, folds, honest, likelihood)


def fitted(outputs: Outputs, labelled: Labelled, *, offset: bool) -> HeadExpert:
    if offset:
        return fit_head("conditioned", outputs, labelled, "last_state", offset="adapter", temper=True)
    return fit_head("frozen", outputs, labelled, "frozen")


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
@pytest.mark.parametrize("offset", [False, True])
def test_no_label_moves_the_answers_of_its_group(offset: bool, likelihood: Likelihood) -> None:
    """What corrects an adapter is honest where that is, and no label of another row moves it."""
    outputs, labelled = problem(likelihood)
    expert = fitted(outputs, labelled, offset=offset)
    silent = ~labelled.honest if offset else torch.zeros_like(labelled.honest)
    assert torch.equal(expert.held_out.isnan().all(1), silent)
    assert torch.equal(expert.held_out.isnan().any(1), silent)
    group = labelled.groups == 10
    changed = labelled.labels.clone()
    changed[group] = (changed[group] + 1) % CLASSES if likelihood == "categorical" else 1 - changed[group]
    other = fitted(outputs, replace(labelled, labels=changed), offset=offset)
    torch.testing.assert_close(other.held_out[group], expert.held_out[group], rtol=0, atol=0)
    assert not torch.equal(other.held_out[~group], expert.held_out[~group])
    if likelihood == "bernoulli":
        torch.testing.assert_close(expert.held_out[group].sigmoid().log(), expert.fitted.held_out[group[expert.places]])
    assert not torch.equal(other.log_probs(outputs), expert.log_probs(outputs))
    if offset:
        changed = torch.where(labelled.honest.view(-1, *[1] * (labelled.labels.ndim - 1)), labelled.labels, 0)
        other = fitted(outputs, replace(labelled, labels=changed), offset=offset)
        torch.testing.assert_close(other.log_probs(outputs), expert.log_probs(outputs), rtol=0, atol=0)


def test_no_spread_is_wider_than_its_answer_allows() -> None:
    """Labels that features part leave a posterior as wide as its prior: about sure answers it could say 0.5."""
    outputs, labelled = problem()
    labels = torch.nn.functional.one_hot(labelled.labels, CLASSES).float()
    parted = Outputs(outputs.class_mask, features={"frozen": {"a": labels}})
    expert = fit_head("frozen", parted, labelled, "frozen")
    assert expert.answers(parted).std.max() > 0.2
    answers = expert.predictive(parted)
    assert bool((answers.probs.amax(1) > 0.99).all())
    assert answers.std.max() < 0.1


def test_familiarity_compares_each_row_with_those_outside_its_fold() -> None:
    """Behind the text but for the last layer; and of options their mean."""
    outputs, labelled = problem()
    blocks = {f"{name}.{layer}": torch.randn(ROWS, 4) for name in ("fields", "after") for layer in (8, 15)}
    given = Outputs(outputs.class_mask, features={"frozen": blocks})
    found = familiarity_of(fit_head("frozen", given, labelled, "frozen"))
    held_out, none = labelled.folds == 0, torch.zeros(ROWS, dtype=torch.int64)
    others = fit_layer(blocks["after.8"][~held_out], none[~held_out])
    expected = others.squared(blocks["after.8"][held_out]).log()
    assert torch.allclose(found[0].reference, expected.sort().values)
    back = {name: blocks[name] for name in reversed(blocks)}  # a pass has another order than a head's rows
    torch.testing.assert_close(compared(back, outputs.class_mask).hidden[:, 0], blocks["after.8"])
    states = {"mean.2": torch.randn(ROWS, 4), "embedding": torch.randn(ROWS, 4)}
    of_encoder = compared(states, outputs.class_mask).hidden
    assert torch.equal(of_encoder, compared(dict(sorted(states.items())), outputs.class_mask).hidden)
    far = {name: block + 50 for name, block in blocks.items()}
    assert across(found, compared(far, outputs.class_mask)).tolist() == pytest.approx([1 / (ROWS + 1)] * ROWS)
    mask = torch.tensor([[True, True, False]] * ROWS)
    options = {"scores": torch.zeros(ROWS, 3, 2), "last.1": torch.randn(ROWS, 3, 4) * mask[:, :, None]}
    torch.testing.assert_close(compared(options, mask).hidden[:, 0], options["last.1"][:, :2].mean(1))


@pytest.mark.parametrize("names", [("mean.2", "mean.4", "embedding"), ("after.8", "after.15", "fields.8", "fields.15")])
def test_rows_like_the_labelled_ones_are_as_familiar(names: tuple[str, ...]) -> None:
    """In many directions a distance depends on how many rows it is to; and a head orders its blocks by name."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.ones(300, 2, dtype=torch.bool)
    states = {name: torch.randn(300, 200, generator=draw) * (place + 1) for place, name in enumerate(names)}
    outputs, known = Outputs(mask, {}, {"frozen": states}), torch.arange(300) < 100
    labels, folds = torch.arange(100) % 2, fold_numbers(100)
    labelled = Labelled(labels, mask[:100], torch.arange(100), folds, mask[:100, 0])
    found = familiarity_of(fit_head("frozen", outputs.take(known), labelled, "frozen"))
    familiar = across(found, compared(outputs.take(~known).features["frozen"], mask[100:]))
    assert 0.4 < float(familiar.mean()) < 0.6
    assert float((familiar <= 0.1).double().mean()) < 0.2


def test_a_model_as_given_is_honest_where_nothing_trained_it() -> None:
    outputs, labelled = problem("bernoulli")
    adapter, base = (as_given(name, outputs, labelled) for name in ("adapter", "zero_shot"))
    assert torch.equal(adapter.held_out.isnan().any(1), ~labelled.honest)
    assert torch.equal(base.held_out, outputs.log_probs["zero_shot"])
    assert torch.equal(adapter.log_probs(outputs), outputs.log_probs["adapter"])
    torch.testing.assert_close(adapter.predictive(outputs).probs, outputs.log_probs["adapter"].sigmoid())
    outputs, labelled = problem()
    predictive = as_given("adapter", outputs, labelled).predictive(outputs)
    torch.testing.assert_close(predictive.probs, outputs.log_probs["adapter"].exp())
    assert not predictive.std.any()
