"""The pool by hand: its weights are a constrained optimum, its held-out answers know no label of their fold."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from laplora.errors import DataError
from laplora.experts.adapter import AsGiven
from laplora.experts.base import Expert, Labelled, Outputs
from laplora.experts.of_head import fit_head
from laplora.head import fit, fold_numbers
from laplora.linearised import Likelihood
from laplora.pool.choice import choose
from laplora.pool.fine_tuning import worth_trying
from laplora.pool.pool import Pool, fit_pool, uncentred
from laplora.pool.weights import RIDGE, fit_weights

ROWS, CLASSES = 90, 3


def rows(kind: Likelihood = "categorical") -> tuple[Outputs, Labelled]:
    """Return two sources that tell half of the label each, and an adapter's answer that tells little."""
    draw = torch.Generator().manual_seed(0)
    states = {name: torch.randn(ROWS, 5, generator=draw) for name in ("frozen", "encoder")}
    logits = 1.5 * sum(states.values())[:, :CLASSES]
    noise = -torch.empty(ROWS, CLASSES).exponential_(generator=draw).log()
    labels = (logits + noise).argmax(1) if kind == "categorical" else (logits > 0).long()
    own = (logits + 3 * torch.randn(ROWS, CLASSES, generator=draw)).double()
    mask = torch.ones(ROWS, CLASSES, dtype=torch.bool)
    if kind == "categorical":
        mask[::4, 2] = False
        labels[::4] = labels[::4].clamp_max(1)
        own = own.masked_fill(~mask, -torch.inf).log_softmax(1)
    blocks = {name: {"all": block} for name, block in states.items()}
    groups = torch.arange(ROWS) // 2
    labelled = Labelled(labels, mask, groups, fold_numbers(ROWS, groups=groups), groups >= 5, kind)
    return Outputs(mask, {"adapter": own}, blocks), labelled


def experts(outputs: Outputs, labelled: Labelled) -> dict[str, Expert]:
    own = outputs.log_probs["adapter"].masked_fill(~labelled.honest[:, None], torch.nan)
    heads = {name: fit_head(name, outputs, labelled, name) for name in ("frozen", "encoder")}
    return {"adapter": AsGiven("adapter", own, labelled.likelihood), **heads}


@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
def test_weights_are_the_best_that_are_not_negative(kind: Likelihood) -> None:
    """The objective's gradient by autograd is 0 at a weight, and points outwards at an expert that is left out."""
    outputs, labelled = rows(kind)
    given = {name: of.held_out[labelled.honest] for name, of in experts(outputs, labelled).items()}
    impossible = given["frozen"] == -torch.inf
    given["wrong"] = (-4 * given["frozen"]).masked_fill(impossible, -torch.inf)
    labels = labelled.labels[labelled.honest]
    found = fit_weights(given, labels, kind)
    assert "wrong" not in found
    assert found["frozen"] > 0.3 < found["encoder"]

    def slopes(names: list[str]) -> dict[str, float]:
        weights = torch.tensor([found.get(name, 0.0) for name in names], dtype=torch.float64, requires_grad=True)
        finite = [given[name].masked_fill(given[name] == -torch.inf, -1e9) for name in names]
        total = sum(weight * one for weight, one in zip(weights, finite, strict=True))
        if kind == "categorical":
            total = total.masked_fill(impossible, -torch.inf)
            loss = torch.nn.functional.cross_entropy(total, labels, reduction="sum")
        else:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(total, labels.double(), reduction="sum")
        loss = loss + RIDGE / 2 * (weights - 1 / len(names)).square().sum()
        return dict(zip(names, torch.autograd.grad(loss, weights)[0].tolist(), strict=True))

    assert max(map(abs, slopes(list(found)).values())) < 1e-3
    assert slopes([*found, "wrong"])["wrong"] > 0
    with pytest.raises(DataError, match="every expert is honest"):
        fit_weights({"frozen": torch.full((3, 3), torch.nan)}, torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
def test_a_held_out_answer_knows_no_label_of_its_fold(kind: Likelihood) -> None:
    outputs, labelled = rows(kind)
    pool = fit_pool(experts(outputs, labelled), labelled)
    assert torch.equal(pool.held_out.isnan().any(1), ~labelled.honest)
    fold = labelled.folds == 2
    turned = 1 - labelled.labels if kind == "bernoulli" else (labelled.labels + 1) % 2
    other = replace(
        labelled, labels=torch.where(fold[:, None] if kind == "bernoulli" else fold, turned, labelled.labels)
    )
    changed = fit_pool(experts(outputs, other), other)
    same = fold & labelled.honest
    assert torch.equal(changed.held_out[same], pool.held_out[same])
    assert changed.by_fold[2] == pool.by_fold[2]
    assert changed.weights != pool.weights
    assert not torch.allclose(
        changed.held_out[labelled.honest & ~fold], pool.held_out[labelled.honest & ~fold], atol=1e-3
    )


def test_it_answers_better_than_its_experts_and_by_their_logs() -> None:
    outputs, labelled = rows()
    found = experts(outputs, labelled)
    pool = fit_pool({name: found[name] for name in ("frozen", "encoder")}, labelled)
    nll = {name: -float(of.held_out.gather(1, labelled.labels[:, None]).mean()) for name, of in pool.experts.items()}
    assert -float(pool.held_out.gather(1, labelled.labels[:, None]).mean()) < min(nll.values()) - 0.03
    answers = pool.predictive(outputs)
    by_hand = sum(weight * found[name].log_probs(outputs) for name, weight in pool.weights.items())
    torch.testing.assert_close(answers.probs, by_hand.softmax(1))
    assert not bool(answers.probs[~labelled.class_mask].any())
    assert (answers.std[labelled.class_mask] > 0).all()
    spread = pool.answers(outputs)
    # To first order, by differences: a change of one logit moves the probabilities.
    logits, moved = spread.log_probs[1].clone(), 1e-5
    slopes = torch.stack(
        [((logits + moved * step).softmax(0) - (logits - moved * step).softmax(0)) / 2 / moved for step in torch.eye(3)]
    )
    free = uncentred(spread.variance, labelled.class_mask)
    torch.testing.assert_close(spread.std[1], (slopes.square() * free[1][:, None]).sum(0).sqrt())
    centred = free[1] * (1 - 2 / CLASSES) + free[1].sum() / CLASSES**2
    torch.testing.assert_close(centred, spread.variance[1])
    assert free[0].tolist() == pytest.approx([2 * float(spread.variance[0, 0])] * 2 + [0])  # of two classes
    more = replace(labelled, groups=labelled.groups + 1000)
    learned, together = {name: of.learn(outputs, more) for name, of in pool.experts.items()}, labelled.joined(more)
    later = pool.with_experts(learned, together)
    assert len(later.held_out) == 2 * ROWS
    assert later.weights == pool.weights
    with pytest.raises(DataError, match="fit it anew"):
        fit_pool(learned, together)


def test_of_two_classes_a_pool_of_one_head_spreads_as_the_head_does() -> None:
    draw = torch.Generator().manual_seed(0)
    states, mask = torch.randn(600, 3, generator=draw), torch.ones(600, 2, dtype=torch.bool)
    labels = (states[:, 0] + torch.randn(600, generator=draw) > 0).long()
    labelled = Labelled(labels, mask, torch.arange(600), fold_numbers(600), mask[:, 0])
    outputs = Outputs(mask, {}, {"frozen": {"all": states}})
    head = fit_head("frozen", outputs, labelled, "frozen")
    alone, together = head.answers(outputs), Pool({"frozen": head}, {"frozen": 1.0}, {}, head.held_out).answers(outputs)
    torch.testing.assert_close(together.std, alone.std, rtol=0.1, atol=2e-3)  # the head's is an average of draws
    assert float(together.epistemic.sum()) == pytest.approx(float(alone.epistemic.sum()), rel=0.05)


def test_experts_that_all_mislead_leave_one_that_hardly_speaks() -> None:
    """As of heads on noise, which say the opposite of balanced labels out of fold: no weight is the best one."""
    labels, mask = torch.arange(60) % 3, torch.ones(60, 3, dtype=torch.bool)
    wrong = (20.0 * torch.nn.functional.one_hot((labels + 1) % 3)).double().log_softmax(1)
    labelled = Labelled(labels, mask, torch.arange(60), fold_numbers(60), mask[:, 0])
    pool = fit_pool({"adapter": AsGiven("adapter", wrong), "zero_shot": AsGiven("zero_shot", 2 * wrong)}, labelled)
    assert list(pool.weights.values()) == pytest.approx([0.001])
    assert float((pool.held_out.exp() - 1 / 3).abs().max()) < 0.02
    impossible = {"frozen": torch.tensor([[-torch.inf, 0.0]] * 3)}
    with pytest.raises(DataError, match="no chance at all"):
        fit_weights(impossible, torch.zeros(3, dtype=torch.int64))


def test_what_a_head_says_without_a_fold_is_that_of_its_other_rows() -> None:
    outputs, labelled = rows()
    blocks, places = outputs.features["frozen"], labelled.folds != 1
    every = fit(blocks, labelled.labels, class_mask=labelled.class_mask, groups=labelled.groups, folds=labelled.folds)
    some = {name: block[places] for name, block in blocks.items()}
    given = {
        "class_mask": labelled.class_mask[places],
        "groups": labelled.groups[places],
        "folds": labelled.folds[places],
    }
    rest = fit(some, labelled.labels[places], **given)
    modes = fit(some, labelled.labels[places], **given, precisions=rest.precisions)
    possible = labelled.class_mask[places]
    torch.testing.assert_close(every.inner[1][places][possible], modes.held_out[possible], atol=0.02, rtol=0.02)
    assert bool(every.inner[1][~places].isnan().all())


def test_the_cheapest_within_noise_is_served() -> None:
    draw = torch.Generator().manual_seed(1)
    base = torch.rand(200, generator=draw).double()
    noise = torch.randn(200, generator=draw).double()
    losses = {"pooled": base, "frozen": base + 0.3 * noise.abs(), "encoder": base + 0.01 + 0.3 * (noise - noise.mean())}
    folds, costs = torch.arange(200) % 5, {"pooled": 1.05, "frozen": 1.0, "encoder": 0.05}
    found = choose(losses, costs, folds)
    assert found.name == "encoder"
    assert "encoder costs least of those within a standard error of" in found.reason
    assert found.nll["frozen"] == pytest.approx(float(losses["frozen"].mean()))
    near = {"pooled": base, "frozen": base + 0.01 + 0.3 * (noise - noise.mean())}
    assert choose(near, costs, folds).name == "pooled"  # a twentieth more is no reason to answer worse
    assert choose(near, {"pooled": 2.0, "frozen": 1.0}, folds).name == "frozen"
    clear = choose({name: column + (name != "pooled") for name, column in losses.items()}, costs, folds)
    assert (clear.name, clear.cross_fitted) == ("pooled", pytest.approx(float(base.mean())))
    # In groups of 50 that err together, a difference of one group is noise.
    lucky = {"pooled": base - (torch.arange(200) < 50).double(), "encoder": base}
    assert choose(lucky, costs, folds).name == "pooled"
    assert choose(lucky, costs, folds, torch.arange(200) // 50).name == "encoder"
    with pytest.raises(DataError, match="at least two rows"):
        choose({}, {}, folds)


def test_fine_tuning_is_tried_where_heads_leave_something_and_labels_are_many() -> None:
    labels = [0, 1] * 50
    for share, worth in ((0.2, False), (0.26, True), (0.74, True), (0.8, False)):
        found, why = worth_trying(share * math.log(2), labels)
        assert (found, why.startswith("fine-tuning")) == (worth, worth)
        assert f"heads leave {share:.0%} of the labels' entropy, with 50 rows a label" in why
    assert not worth_trying(0.5 * math.log(10), [n % 10 for n in range(190)])[0], "19 rows a label"
    assert worth_trying(0.5 * math.log(10), [n % 10 for n in range(200)])[0]
    assert worth_trying(0.1, [0] * 95 + [1] * 5)[0], "few labels are of the second: its entropy is small"
    assert worth_trying(0.3, [])[0] is False
