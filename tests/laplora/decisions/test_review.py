"""Thresholds from a calibration split: which score, up to where, and what the two guarantees promise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from calibration_split import F64, fitted, split
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from laplora.answers.review_scores import review_scores, thresholds_at
from laplora.decisions.review import accept_threshold, fit_thresholds, sureness_of
from laplora.decisions.small_split import SmallCalibrationWarning
from laplora.decisions.uncertainty import decide, raise_flags, review_score
from laplora.errors import ConfigError, DataError, NonFiniteError
from laplora.linearised import PosteriorPredictive, entropy


def test_thresholds_record_value_level_and_origin() -> None:
    data = split()
    got = fitted(data)
    laplace = got["laplace"]
    high = laplace.flags["high_epistemic"]
    assert high.value == pytest.approx(float(data["epistemic"].quantile(0.95)))
    assert high.level == 0.95
    assert "200 rows of 'calibration'" in high.origin
    # By definition of the quantiles: 5 % of 200 rows above, 1 % below.
    assert int((data["epistemic"] > high.value).sum()) == 10
    mass = laplace.flags["low_label_mass"]
    assert int((data["label_mass"] < mass.value).sum()) == 2
    assert laplace.errors == int((data["probs"].argmax(1) != data["labels"]).sum())
    # Only flags with a fitted value; MAP has no epistemic one.
    assert set(laplace.flags) == {"high_epistemic", "low_confidence", "low_label_mass"}
    assert set(got["map"].flags) == {"low_confidence", "low_label_mass"}


@pytest.mark.parametrize("target", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("mode", ["laplace", "map"])
def test_review_threshold_is_the_largest_that_keeps_the_risk(target: float, mode: Any) -> None:
    data = split(seed=2)
    thresholds = fitted(data, target_risk=target)[mode]
    rule = thresholds.review
    assert rule.threshold is not None
    probs = data["probs"] if mode == "laplace" else data["map_probs"]
    score = review_score(thresholds, map_probs=data["map_probs"], probs=data["probs"])
    errors = probs.argmax(1) != data["labels"]

    def risk(limit: float) -> float:
        """Return the error rate up to a score with one mistake more."""
        return (int(errors[score <= limit].sum()) + 1) / (int((score <= limit).sum()) + 1)

    assert risk(rule.threshold) <= target
    assert all(risk(float(t)) > target for t in score if t > rule.threshold)
    assert rule.accepted == int((score <= rule.threshold).sum())
    assert rule.accepted_risk == float(errors[score <= rule.threshold].double().mean())
    # The confidence flag is the same search over the confidence.
    lowest = thresholds.flags["low_confidence"].value
    confidence = probs.amax(1)
    assert lowest is not None
    assert float(errors[confidence >= lowest].double().mean()) <= target


def test_when_no_threshold_keeps_the_risk_everything_is_reviewed() -> None:
    data = split(50)
    hopeless = data | {"labels": (data["probs"].argmax(1) + 1) % 3}
    thresholds = fitted(hopeless)["laplace"]
    assert thresholds.review.threshold is None
    assert thresholds.review.accepted == 0
    assert thresholds.review.accepted_risk is None
    assert thresholds.flags["low_confidence"].value is None
    flags = raise_flags(
        thresholds,
        probs=torch.tensor([[1.0, 0.0, 0.0]]),
        label_mass=torch.ones(1),
        set_sizes=torch.ones(1),
        truncated=[False],
        epistemic=torch.zeros(1),
    )
    assert flags == [["low_confidence"]]
    assert decide(thresholds, torch.tensor([-1.0]), flags) == ["review"]


def test_equal_scores_are_accepted_or_reviewed_together() -> None:
    """Ten rows share one score and three of them are wrong: no threshold may keep just the right ones."""
    probs = torch.tensor([[0.9, 0.1]] * 30 + [[0.7, 0.3]] * 10, dtype=F64)
    labels = torch.tensor([0] * 30 + [1] * 3 + [0] * 7)
    rule = fitted({"map_probs": probs, "labels": labels, "label_mass": torch.ones(40)})["map"].review
    assert rule.accepted == 30
    assert rule.threshold == float(entropy(probs[:1]))


def test_a_risk_of_exactly_the_target_is_accepted_the_new_row_counting_as_a_mistake() -> None:
    probs = torch.tensor([[0.9, 0.1]] * 39, dtype=F64)
    for mistakes, accepted in ((1, 39), (2, 0)):
        labels = torch.tensor([1] * mistakes + [0] * (39 - mistakes))
        rule = fitted({"map_probs": probs, "labels": labels, "label_mass": torch.ones(39)})["map"].review
        assert rule.accepted == accepted  # 2 of 40 is the target, 3 of 40 is not


@given(order_seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_order_of_calibration_rows_does_not_matter(order_seed: int) -> None:
    data = split(60, seed=3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(order_seed))
    moved: dict[str, Any] = {k: v[order] if isinstance(v, torch.Tensor) else v for k, v in data.items()}
    assert fitted(moved) == fitted(data)


def test_the_score_is_fixed_whatever_the_mistakes_say() -> None:
    """The epistemic column finds every mistake; a score chosen for that would be held to its own choice."""
    data = split(400, seed=5)
    mistakes = data["probs"].argmax(1) != data["labels"]
    by_name = fitted(data | {"epistemic": mistakes.double()})
    rule = by_name["laplace"].review
    assert rule.auroc["epistemic"] == 1.0
    assert rule.score == "total_entropy"
    assert "fixed before any mistake was seen" in rule.reason
    assert by_name["map"].review.score == "map_entropy"


def test_the_upper_bound_is_maps_and_another_label_is_reviewed() -> None:
    """Whatever was fitted, what is accepted and wrong is a mistake of MAP below MAP's bound."""
    data = split(400, seed=5)
    odd = data["probs"].clone()
    odd[:40] = odd[:40].flip(1)  # labels that MAP does not have, on some rows
    by_name = fitted(data | {"probs": odd}, guarantee="upper_bound", target_risk=0.3)
    rules = {name: by_name[name] for name in ("map", "laplace")}
    bound = accept_threshold(
        entropy(data["map_probs"]), data["map_probs"].argmax(1) != data["labels"], 0.3, guarantee="upper_bound"
    )
    assert bound is not None
    for thresholds in rules.values():
        assert (thresholds.review.score, thresholds.review.threshold) == ("map_entropy", bound)
    score = review_score(rules["laplace"], map_probs=data["map_probs"], probs=odd)
    differs = odd.argmax(1) != data["map_probs"].argmax(1)
    assert differs.sum() > 10
    assert bool((score[differs] > math.log(3)).all())
    assert torch.equal(score[~differs], entropy(data["map_probs"])[~differs])
    accepted = score <= bound
    assert rules["laplace"].review.accepted == int(accepted.sum())
    wrong = accepted & (odd.argmax(1) != data["labels"])
    map_wrong = (entropy(data["map_probs"]) <= bound) & (data["map_probs"].argmax(1) != data["labels"])
    assert bool((map_wrong | ~wrong).all())
    # Under the other guarantee the score is a predictive's own, and labels may differ.
    assert fitted(data | {"probs": odd})["laplace"].review.score == "total_entropy"


@pytest.mark.parametrize("guarantee", ["empirical", "upper_bound"])
def test_scores_for_another_risk_give_the_artifacts_threshold_at_its_own(guarantee: Any) -> None:
    data = split(400, seed=5)
    thresholds = fitted(data, guarantee=guarantee, target_risk=0.2)["laplace"]
    predictive = PosteriorPredictive(data["probs"], data["probs"], entropy(data["probs"]) - data["epistemic"])
    scores = review_scores(thresholds, predictive, data["map_probs"], data["labels"], sureness_of(predictive))
    assert thresholds.review.threshold is not None
    assert thresholds_at(thresholds, scores, 0.2) == thresholds
    other = thresholds_at(thresholds, scores, 0.25).review.threshold
    assert other is not None
    assert other >= thresholds.review.threshold


def test_a_point_predictive_has_no_epistemic_part() -> None:
    data = split()
    probs = torch.softmax(data["map_probs"].log() / 2, 1)
    point = PosteriorPredictive(probs, torch.zeros_like(probs), entropy(probs))
    map_ = PosteriorPredictive(data["map_probs"], torch.zeros_like(probs), entropy(data["map_probs"]))
    got = fit_thresholds({"map": map_, "temperature": point}, data["labels"], data["label_mass"], split="c")
    assert set(got["temperature"].review.auroc) == {"map_entropy", "total_entropy"}
    assert "high_epistemic" not in got["temperature"].flags


def risky(g: torch.Generator, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uniform scores u and mistakes of probability u^2 / 2: accepting up to t has the risk t^2 / 6."""
    scores = torch.rand(rows, generator=g, dtype=F64)
    return scores, torch.rand(rows, generator=g, dtype=F64) < scores.square() / 2


def test_the_upper_bound_holds_as_often_as_it_says_and_the_empirical_rate_does_not() -> None:
    target, confidence, trials = 0.05, 0.8, 400
    broken = {"empirical": 0, "upper_bound": 0}
    accepted = 0.0
    g = torch.Generator().manual_seed(0)
    for _ in range(trials):
        scores, errors = risky(g, 300)
        for guarantee in ("empirical", "upper_bound"):
            limit = accept_threshold(scores, errors, target, guarantee=guarantee, confidence=confidence)  # type: ignore[arg-type]
            risk = 0.0 if limit is None else limit**2 / 6
            broken[guarantee] += risk > target
            accepted += (limit or 0.0) / trials if guarantee == "upper_bound" else 0.0
    # 0.2 of 400 splits may break it: 80, sd 8.
    assert broken["upper_bound"] <= 80 + 2 * 8
    # The empirical rule is tuned on the rows it is judged by.
    assert broken["empirical"] > 0.4 * trials
    # And the bound is not bought by accepting next to nothing: 0.55 of the rows may be accepted at this risk.
    assert accepted > 0.3


@given(rows=st.integers(1, 400), seed=st.integers(0, 999), target=st.sampled_from([0.02, 0.1, 0.3]))
@settings(max_examples=60, deadline=None)
def test_the_upper_bound_is_clopper_pearsons_up_to_the_first_that_fails(rows: int, seed: int, target: float) -> None:
    g = torch.Generator().manual_seed(seed)
    scores, errors = risky(g, rows)
    scores = (scores * 50).round() / 50  # ties
    limit = accept_threshold(scores, errors, target, guarantee="upper_bound", confidence=0.9)
    fewest, wanted = math.log(0.1) / math.log(1 - target) + 1, None
    for value in scores.unique().tolist():
        if int((scores <= value).sum()) < fewest:
            continue
        wrong = int((errors & (scores <= value)).sum())
        right = int((~errors & (scores < value)).sum())  # at the edge, mistakes alone count
        # Clopper-Pearson's upper end is this quantile of a Beta.
        if right == 0 or stats.beta.ppf(0.9, wrong + 1, right) > target:
            break
        wanted = value
    assert limit == wanted
    empirical = accept_threshold(scores, errors, target)
    assert limit is None or (empirical is not None and limit <= empirical)


def test_the_upper_bound_needs_rows_and_the_rule_records_it() -> None:
    right = torch.zeros(46, dtype=torch.bool)
    scores = torch.arange(46, dtype=F64)
    assert accept_threshold(scores, right, 0.05, guarantee="upper_bound") == 45.0
    assert accept_threshold(scores[:45], right[:45], 0.05, guarantee="upper_bound") is None
    for impossible in (1e-9, 1e-20, 5e-324):  # the schema of a request takes them
        assert accept_threshold(scores, right, impossible, guarantee="upper_bound") is None
    rule = fitted(split(300), guarantee="upper_bound", target_risk=0.3, confidence=0.8)["map"].review
    assert (rule.guarantee, rule.confidence) == ("upper_bound", 0.8)
    plain = fitted(split(300), target_risk=0.3)["map"].review
    assert (plain.guarantee, plain.confidence) == ("empirical", None)
    assert 0 < rule.accepted < plain.accepted


def test_few_calibration_rows_warn() -> None:
    with pytest.warns(SmallCalibrationWarning, match="19 calibration rows"):
        fitted(split(19))


def test_labels_that_never_occur_warn_with_the_consequence() -> None:
    data = split(60)
    fitted(data)  # warnings are errors here
    with pytest.warns(SmallCalibrationWarning, match=r"labels \[2\].*do not hold"):
        fitted(data | {"labels": data["labels"].clamp_max(1)})
    with pytest.warns(SmallCalibrationWarning, match="every row of 'calibration' has the label 0"):
        fitted(data | {"labels": torch.zeros(60, dtype=torch.int64)})


def test_refusals() -> None:
    data = split(30)
    for change, error, message in (
        ({"label_mass": torch.ones(3)}, DataError, "label_mass"),
        ({"map_probs": data["map_probs"][:3]}, DataError, "'map' must have 30 rows"),
        ({"epistemic": data["epistemic"] * math.nan}, NonFiniteError, "'laplace'"),
        ({"map_probs": data["map_probs"] * math.nan}, NonFiniteError, "'map'"),
    ):
        with pytest.raises(error, match=message):
            fitted(data | change)
    with pytest.raises(ConfigError, match="need the predictive 'map'"):
        fit_thresholds({}, data["labels"], data["label_mass"], split="c")
    for options in ({"target_risk": 0.0}, {"confidence": 1.0}, {"epistemic_level": 1.0}, {"guarantee": "none"}):
        with pytest.raises(ConfigError, match=str(next(iter(options))).split("_level")[0]):
            fitted(data, **options)
