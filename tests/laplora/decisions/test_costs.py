"""What mistakes cost: the cheapest answer, and whether a person is cheaper; and target risks by answered label."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laplora.answers.review_scores import ReviewScores, thresholds_at
from laplora.decisions.costs import cheapest, cost_figures
from laplora.decisions.review import accept_threshold, fit_thresholds
from laplora.decisions.uncertainty import ruled
from laplora.decisions.wanted import Costs
from laplora.errors import ConfigError, NonFiniteError
from laplora.linearised import PosteriorPredictive, entropy
from laplora.metrics.groups import mean_and_error

F64, LABELS = torch.float64, ("a", "b", "c")


def test_costs_of_each_mistake_are_stated_at_once_or_by_name() -> None:
    by_right = Costs(review=1, wrong={"b": 50, "*": 5})
    by_answer = Costs(review=1, wrong={"*": {"b": 0.5, "*": 9}})
    assert by_answer.matrix(LABELS).tolist() == [[0, 0.5, 9], [9, 0, 9], [9, 0.5, 0]]
    by_both = Costs(review=1, wrong={"a": {"b": 7, "*": 3}, "b": {"a": 2, "c": 4}, "*": 1})
    assert Costs(review=1, wrong=5).matrix(LABELS).tolist() == [[0, 5, 5], [5, 0, 5], [5, 5, 0]]
    assert by_right.matrix(LABELS).tolist() == [[0, 5, 5], [50, 0, 50], [5, 5, 0]]
    assert by_both.matrix(LABELS).tolist() == [[0, 7, 3], [2, 0, 4], [1, 1, 0]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"d": 1, "*": 2}, "costs.wrong names 'd', which is none of the labels"),
        ({"a": 1, "b": 2}, "costs.wrong says nothing of the label 'c': name it, or give '*'"),
        ({"a": {"b": 1}, "*": 2}, "costs.wrong of 'a' says nothing of the label 'c'"),
        ({"a": {"a": 1, "*": 3}, "*": 2}, "a right answer costs nothing"),
        ({"*": {"d": 1, "*": 3}}, "of 'a' names 'd'"),
    ],
)
def test_costs_that_leave_a_label_out_are_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("*", "[*]")):
        Costs(review=1, wrong=wrong).matrix(LABELS)


@given(seed=st.integers(0, 9999), options=st.integers(2, 3))
def test_the_cheapest_answer_is_the_one_that_a_search_finds(seed: int, options: int) -> None:
    g = torch.Generator().manual_seed(seed)
    probs = torch.rand(4, 3, generator=g, dtype=F64)
    possible = (torch.arange(3) < options).expand(4, 3)
    probs = probs.where(possible, torch.zeros(())) / probs[:, :options].sum(1, keepdim=True)
    drawn = torch.randint(9, (3, 3), generator=g).double().fill_diagonal_(0).tolist()
    wrong = {one: dict(zip(LABELS, of, strict=True)) for one, of in zip(LABELS, drawn, strict=True)}
    matrix = Costs(review=2, wrong=wrong).matrix(LABELS)
    best, expected = cheapest(probs, matrix, possible)
    for row, (place, cost) in enumerate(zip(best.tolist(), expected.tolist(), strict=True)):
        each = [
            sum(float(probs[row, k]) * wrong[LABELS[k]][LABELS[answer]] for k in range(3) if k != answer)
            for answer in range(options)
        ]
        assert cost == pytest.approx(min(each))
        assert each[place] == pytest.approx(min(each))


def test_of_equal_costs_the_more_probable_label_answers() -> None:
    probs = torch.tensor([[0.2, 0.5, 0.3]], dtype=F64)
    assert cheapest(probs, torch.zeros(3, 3, dtype=F64))[0].tolist() == [1]


def test_a_label_cannot_be_named_as_all_others_are() -> None:
    assert Costs(review=1, wrong=2).matrix(("a", "*")).tolist() == [[0, 2], [2, 0]]
    with pytest.raises(ConfigError, match="stands for all others"):
        Costs(review=1, wrong={"a": 1, "*": 2}).matrix(("a", "*"))


def test_a_soft_label_costs_what_is_expected_of_it() -> None:
    matrix = Costs(review=2, wrong={"a": 30, "*": 6}).matrix(LABELS)
    soft = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.0, 1.0]], dtype=F64)
    found = cost_figures(matrix, 2, torch.tensor([1, 2]), soft, torch.ones(2, dtype=torch.bool))
    assert found["mean"] == pytest.approx(0.6 * 30 / 2)


def test_no_threshold_on_calibrated_answers_is_cheaper() -> None:
    g = torch.Generator().manual_seed(3)
    probs = torch.softmax(2 * torch.randn(20_000, 3, generator=g, dtype=F64), 1)
    right = torch.multinomial(probs, 1, generator=g)[:, 0]
    costs = Costs(review=1, wrong={"a": 20, "*": 4})
    matrix, first = costs.matrix(LABELS), probs.argmax(1)
    best, expected = cheapest(probs, matrix)
    accepted = expected <= costs.review
    figures = cost_figures(matrix, costs.review, best, right, accepted)
    assert 0.2 < accepted.double().mean() < 0.9
    for limit in torch.linspace(0, 1.1, 45).tolist():
        of_limit = cost_figures(matrix, costs.review, first, right, entropy(probs) <= limit)
        assert figures["interval"][0] < of_limit["mean"]
    assert figures["mean"] < min(figures["all_reviewed"], figures["none_reviewed"])
    stated = expected.where(accepted, torch.tensor(1.0, dtype=F64)).mean()
    assert figures["interval"][0] < stated < figures["interval"][1]


def test_the_figures_of_costs_are_means_and_count_one_dear_mistake_more() -> None:
    matrix = Costs(review=2, wrong={"a": 30, "*": 6}).matrix(LABELS)
    answered, right = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 0, 2, 2])
    found = cost_figures(matrix, 2, answered, right, torch.tensor([True, False, True, True]))
    assert (found["mean"], found["all_reviewed"], found["none_reviewed"]) == ((0 + 2 + 0 + 6) / 4, 2, (30 + 6) / 4)
    paid = torch.tensor([0.0, 2, 0, 6, 30], dtype=F64)
    assert found["interval"] == pytest.approx([0, float(paid.mean() + 1.96 * paid.std() / 5**0.5)])
    accepted, groups = torch.tensor([True, False, True, True]), torch.tensor([0, 0, 1, 1])
    together = cost_figures(matrix, 2, answered, right, accepted, groups)
    further = torch.tensor([0.0, 2, 0, 6, 30, 30], dtype=F64)  # a group more has as many rows as the mean one
    mean, error = mean_and_error(further, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert together["interval"][1] == pytest.approx(mean + 1.96 * error)
    alone = cost_figures(matrix, 2, answered[:1], right[:1], accepted[:1])
    assert alone["interval"] == [0, 6]  # never above the dearest
    none = cost_figures(matrix, 2, answered, right, torch.zeros(4, dtype=torch.bool))
    assert (none["mean"], none["interval"][1]) == (2, 2)


def calibration(rows: int = 600) -> tuple[Any, ReviewScores, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    probs = torch.softmax(3 * torch.randn(rows, 3, generator=g, dtype=F64), 1)
    labels = torch.multinomial(probs, 1, generator=g)[:, 0]
    one = PosteriorPredictive(probs, torch.zeros_like(probs), entropy(probs))
    thresholds = fit_thresholds({"map": one}, labels, torch.ones(rows, dtype=F64))["map"]
    return thresholds, ReviewScores(entropy(probs), probs.argmax(1) != labels, probs.argmax(1)), probs


def test_each_label_has_the_threshold_of_its_own_answers() -> None:
    thresholds, scores, probs = calibration()
    rule = thresholds_at(thresholds, scores, {"b": 0.02, "*": 0.1}, LABELS).review
    assert rule.by_label is not None
    assert scores.answered is not None
    unsure = ruled(rule, scores.score, probs, LABELS, torch.ones_like(probs).bool()).unsure
    for place, (label, risk) in enumerate(zip(LABELS, (0.1, 0.02, 0.1), strict=True)):
        mine = scores.answered == place
        limit = accept_threshold(scores.score[mine], scores.error[mine], risk)
        assert limit is not None
        assert (rule.of_label(label).threshold, rule.of_label(label).target_risk) == (limit, risk)
        assert unsure[mine].equal(scores.score[mine] > limit)
    assert rule.wanted == {"a": 0.1, "b": 0.02, "c": 0.1}
    nothing = thresholds_at(thresholds, scores, {"b": 0.0001, "*": 0.1}, LABELS).review
    assert nothing.of_label("b").threshold is None
    at_b = ruled(nothing, scores.score, probs, LABELS, torch.ones_like(probs).bool()).unsure[scores.answered == 1]
    assert bool(at_b.all())


def test_what_cannot_be_decided_is_refused() -> None:
    thresholds, scores, probs = calibration()
    for score, of in ((scores.score * math.nan, probs), (scores.score, probs * math.nan)):
        with pytest.raises(NonFiniteError):
            ruled(thresholds.review, score, of, LABELS, torch.ones_like(probs).bool())
    older = ReviewScores(scores.score, scores.error)
    several = ReviewScores(scores.score, scores.error.double())
    for of, wanted, message in (
        (scores, {"d": 0.1}, "target_risk names 'd'"),
        (scores, {"a": 0.1}, "target_risk says nothing of the label 'b'"),
        (scores, {"a": 1.5, "*": 0.1}, "must be in"),
        (older, {"*": 0.1}, "fit it again"),
        (several, {"*": 0.1}, "one label of an input is right"),
        (several, Costs(review=1, wrong=2), "one label of an input is right"),
    ):
        with pytest.raises(ConfigError, match=message):
            thresholds_at(thresholds, of, wanted, LABELS)
