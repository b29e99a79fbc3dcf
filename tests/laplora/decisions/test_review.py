"""Thresholds from a calibration split: which score, up to where, what is promised of them, and what is decided."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from laplora.answers.review_scores import review_scores, thresholds_at
from laplora.decisions.error_curve import error_curve
from laplora.decisions.review import accept_threshold, fit_thresholds, least_risk
from laplora.decisions.thresholds import FLAGS, REVIEW_FLAGS, PredictiveThresholds
from laplora.decisions.uncertainty import decide, decompose, raise_flags, review_score, ruled
from laplora.errors import ConfigError, DataError
from laplora.linearised import PosteriorPredictive, contrasts, entropy
from laplora.metrics.ranking import error_auroc
from laplora.predictive.gaussian import posterior_predictive

F64, LABELS = torch.float64, ("a", "b", "c")


def split(rows: int = 200, seed: int = 0) -> dict[str, Any]:
    """Return a calibration split of an overconfident three-class model with a posterior, as ``fitted`` takes it."""
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(rows, 2, generator=g, dtype=F64)
    labels = torch.multinomial(torch.softmax(2 * mean @ contrasts(3).T, 1), 1, generator=g)[:, 0]
    variance = 4 * torch.rand(rows, generator=g, dtype=F64)
    covariance = variance[:, None, None] * torch.eye(2, dtype=F64)
    predictive = posterior_predictive(3 * mean, covariance, torch.ones(rows, 3, dtype=torch.bool), samples=64)
    return {
        "map_probs": torch.softmax(3 * mean @ contrasts(3).T, 1),
        "probs": predictive.probs,
        "epistemic": decompose(predictive).epistemic,
        "labels": labels,
        "label_mass": 0.5 + 0.5 * torch.rand(rows, generator=g, dtype=F64),
    }


def fitted(data: dict[str, Any], **options: Any) -> dict[str, PredictiveThresholds]:
    """Return the thresholds of ``map`` and ``laplace``."""
    map_probs, probs = data["map_probs"], data["probs"]
    predictives = {
        "map": PosteriorPredictive(map_probs, torch.zeros_like(map_probs), entropy(map_probs)),
        "laplace": PosteriorPredictive(probs, torch.ones_like(probs), entropy(probs) - data["epistemic"]),
    }
    return fit_thresholds(predictives, data["labels"], data["label_mass"], **options)


def test_thresholds_record_value_level_and_origin() -> None:
    data = split()
    got = fitted(data)
    laplace = got["laplace"]
    high = laplace.flags["high_epistemic"]
    assert high.value == pytest.approx(float(data["epistemic"].quantile(0.95)))
    assert high.level == 0.95
    assert high.origin == "0.95 quantile of the epistemic uncertainty of 200 rows of 'calibration'"
    assert int((data["label_mass"] < laplace.flags["low_label_mass"].value).sum()) == 2  # 1 % of 200
    errors = data["probs"].argmax(1) != data["labels"]
    assert laplace.errors == int(errors.sum())
    # Only flags with a fitted value; MAP has no epistemic one.
    assert set(laplace.flags) == {"high_epistemic", "low_label_mass"}
    assert set(got["map"].flags) == {"low_label_mass"}
    scores = {"map_entropy": entropy(data["map_probs"]), "total_entropy": entropy(data["probs"])}
    scores["epistemic"] = data["epistemic"]
    assert laplace.review.auroc == pytest.approx({name: error_auroc(one, errors) for name, one in scores.items()})
    assert set(got["map"].review.auroc) == {"map_entropy"}


def expected_rate(scores: torch.Tensor, wrong: torch.Tensor, limit: float) -> float:
    """Return the error rate to expect up to a score: the rows, one mistake more, and what the curve says of others."""
    inside, further = scores <= limit, min(100, len(scores))
    curve = error_curve(scores, wrong.double(), torch.ones(len(scores)))[inside].mean()
    return float((wrong[inside].sum() + 1 + further * curve) / (inside.sum() + 1 + further))


@pytest.mark.parametrize("target", [0.05, 0.2])
@pytest.mark.parametrize("name", ["laplace", "map"])
def test_review_threshold_is_the_largest_that_keeps_the_risk(target: float, name: Any) -> None:
    data = split(seed=2)
    thresholds = fitted(data, target_risk=target)[name]
    rule = thresholds.review
    assert rule.score == ("total_entropy" if name == "laplace" else "map_entropy")
    probs = data["probs"] if name == "laplace" else data["map_probs"]
    score = review_score(thresholds, map_probs=data["map_probs"], probs=data["probs"])
    errors = probs.argmax(1) != data["labels"]

    assert expected_rate(score, errors, rule.threshold) <= target
    assert all(expected_rate(score, errors, float(t)) > target for t in score if t > rule.threshold)
    assert rule.accepted == int((score <= rule.threshold).sum())
    assert rule.accepted_risk == float(errors[score <= rule.threshold].double().mean())


def test_when_no_threshold_keeps_the_risk_everything_is_reviewed() -> None:
    data = split(50)
    thresholds = fitted(data | {"labels": (data["probs"].argmax(1) + 1) % 3})["laplace"]
    rule = thresholds.review
    assert (rule.threshold, rule.accepted, rule.accepted_risk) == (None, 0, None)
    unsure = ruled(rule, torch.tensor([-1.0]), torch.eye(3)[:1], LABELS, torch.ones(1, 3).bool()).unsure
    sure = {"unsure": unsure, "label_mass": torch.ones(1), "epistemic": torch.zeros(1)}
    flags = raise_flags(thresholds, **sure, set_sizes=torch.ones(1), truncated=[False], unfamiliar=None)
    assert flags == [["low_confidence"]]
    assert decide(flags) == ["review"]


def test_the_upper_bound_is_maps_and_another_label_is_reviewed() -> None:
    """Whatever was fitted, what is accepted and wrong is a mistake of MAP below MAP's bound."""
    data = split(400, seed=5)
    odd = data["probs"].clone()
    odd[:40] = odd[:40].flip(1)  # labels that MAP does not have, on some rows
    by_name = fitted(data | {"probs": odd}, guarantee="upper_bound", target_risk=0.3)
    map_entropy, map_errors = entropy(data["map_probs"]), data["map_probs"].argmax(1) != data["labels"]
    bound = accept_threshold(map_entropy, map_errors, 0.3, guarantee="upper_bound")
    for thresholds in by_name.values():
        assert (thresholds.review.score, thresholds.review.threshold) == ("map_entropy", bound)
    score = review_score(by_name["laplace"], map_probs=data["map_probs"], probs=odd)
    differs = odd.argmax(1) != data["map_probs"].argmax(1)
    assert differs.sum() > 10
    assert bool((score[differs] > math.log(3)).all())
    assert torch.equal(score[~differs], map_entropy[~differs])
    assert by_name["laplace"].review.accepted == int((score <= bound).sum())


@pytest.mark.parametrize("guarantee", ["empirical", "upper_bound"])
def test_scores_for_another_risk_give_the_artifacts_threshold_at_its_own(guarantee: Any) -> None:
    data = split(400, seed=5)
    thresholds = fitted(data, guarantee=guarantee, target_risk=0.2)["laplace"]
    predictive = PosteriorPredictive(data["probs"], data["probs"], entropy(data["probs"]) - data["epistemic"])
    scores = review_scores(thresholds, predictive, data["map_probs"], data["labels"], entropy(data["probs"]))
    assert thresholds_at(thresholds, scores, 0.2, LABELS) == thresholds
    assert (thresholds_at(thresholds, scores, 0.25, LABELS).review.threshold or 0.0) >= thresholds.review.threshold


@given(rows=st.integers(1, 80), rate=st.floats(0, 0.7), seed=st.integers(0, 999), above=st.floats(0.001, 0.3))
@settings(max_examples=40)
@pytest.mark.parametrize("guarantee", ["empirical", "upper_bound"])
def test_the_least_risk_is_the_next_at_which_something_is_accepted(
    guarantee: Any, rows: int, rate: float, seed: int, above: float
) -> None:
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 30, (rows,), generator=g).double()
    errors = torch.rand(rows, generator=g, dtype=F64) < rate
    tenths = [k / 1000 for k in range(1, 1000) if k / 1000 > above]
    first = next((r for r in tenths if accept_threshold(scores, errors, r, guarantee=guarantee) is not None), None)
    assert least_risk(scores, errors, above=above, guarantee=guarantee) == first


def test_the_curve_of_errors_is_the_posterior_mean_of_a_shift_and_a_slope() -> None:
    """The dense twin: the log-odds that made each entropy, the posterior over a finer grid, rows one by one."""
    g = torch.Generator().manual_seed(1)
    odds = 2 * torch.randn(60, generator=g, dtype=F64) - 2
    wrong = torch.rand(60, generator=g, dtype=F64) < (0.5 * odds).sigmoid()
    entropies = entropy(torch.stack([odds.sigmoid(), (-odds).sigmoid()], 1))
    shift, slope = torch.cartesian_prod(torch.linspace(-2, 2, 161).double(), torch.linspace(0, 2, 161).double()).T
    logits = shift[:, None] + slope[:, None] * -odds.abs()
    right = torch.where(wrong, logits, -logits)
    log_posterior = torch.nn.functional.logsigmoid(right).sum(1) - 2 * shift**2 - ((slope - 1) / 0.35) ** 2 / 2
    wanted = torch.softmax(log_posterior, 0) @ logits.sigmoid()
    got = error_curve(entropies, wrong.double(), torch.ones(60))
    torch.testing.assert_close(got, wanted, atol=0.015, rtol=0)  # half a step of a tenth in the log-odds
    sure = error_curve(torch.tensor([0.0, 0.3, 2.0, 50.0]), torch.zeros(4), torch.zeros(4))
    assert bool((sure.diff() > 0).all())
    assert sure[0] < 5e-3
    assert 0.088 < sure[1] < 0.13  # two labels of this entropy: 0.088, and the prior's mean is above its mode
    assert sure[3] > 0.9


def test_edges_of_the_empirical_rule() -> None:
    """A mistake more is counted; equal scores are accepted or reviewed together; a row or few are not enough."""
    sure = torch.zeros(39, dtype=F64)
    assert accept_threshold(sure, torch.arange(39) < 1, 0.05) == 0.0
    assert accept_threshold(sure, torch.arange(39) < 3, 0.05) is None
    assert accept_threshold(sure, torch.ones(39).bool(), 0.9) is None
    assert accept_threshold(sure[:1], torch.zeros(1), 0.05) is None
    assert accept_threshold(sure[:1], torch.zeros(1), 0.4) == 0.0
    assert accept_threshold(sure[:8], torch.zeros(8), 0.05) is None
    # The surest of 150 is wrong, and no other of the 30 surest: the rows and one mistake more never stay within 5 %.
    scores, wrong = torch.linspace(0.01, 0.69, 150, dtype=F64), torch.zeros(150, dtype=F64)
    wrong[[0, 31, 45, 59, 70, 80, 90, 99, 107, 115, 122, 128, 134, 140, 146]] = 1
    counted = (wrong.cumsum(0) + 1) / torch.arange(2, 152)
    assert float(counted.min()) > 0.05
    limit = accept_threshold(scores, wrong, 0.05)
    assert limit is not None
    assert limit > scores[20]


@pytest.mark.parametrize(("sharpness", "most"), [(1.0, 0.055), (2.0, 0.055)])
def test_the_empirical_rules_mean_error_is_near_its_target(sharpness: float, most: float) -> None:
    """Of a calibrated model, and of one whose log-odds are twice what they should be; judged on many new rows."""
    g = torch.Generator().manual_seed(0)

    def rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        sure = (4 * torch.randn(count, generator=g, dtype=F64)).abs()
        probs = (sharpness * sure).sigmoid()
        return entropy(torch.stack([probs, 1 - probs], 1)), torch.rand(count, generator=g, dtype=F64) > sure.sigmoid()

    new, wrong = rows(50_000)
    accepted = mistakes = 0
    for _ in range(100):
        inside = new <= (accept_threshold(*rows(150), 0.05) or 0.0)
        accepted, mistakes = accepted + int(inside.sum()), mistakes + int((inside & wrong).sum())
    assert 0.035 < mistakes / accepted < most
    assert accepted > 0.6 * 100 * len(new)


def risky(g: torch.Generator, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uniform scores u and mistakes of probability u^2 / 2: accepting up to t has the risk t^2 / 6."""
    scores = torch.rand(rows, generator=g, dtype=F64)
    return scores, torch.rand(rows, generator=g, dtype=F64) < scores.square() / 2


def test_the_upper_bound_holds_as_often_as_it_says_and_the_empirical_rate_does_not() -> None:
    target, confidence, trials = 0.05, 0.8, 400
    limits: dict[Any, list[float]] = {"empirical": [], "upper_bound": []}
    g = torch.Generator().manual_seed(0)
    for _ in range(trials):
        scores, errors = risky(g, 300)
        for guarantee, found in limits.items():
            limit = accept_threshold(scores, errors, target, guarantee=guarantee, confidence=confidence)
            found.append(limit or 0.0)
    broken = {guarantee: sum(limit**2 / 6 > target for limit in found) for guarantee, found in limits.items()}
    # 0.2 of 400 splits may break it: 80, sd 8. The empirical rule is tuned on the rows it is judged by.
    assert broken["upper_bound"] <= 80 + 2 * 8
    assert broken["empirical"] > 0.4 * trials
    # And the bound is not bought by accepting next to nothing: 0.55 of the rows may be accepted at this risk.
    assert sum(limits["upper_bound"]) / trials > 0.3


@given(rows=st.integers(1, 400), seed=st.integers(0, 999), target=st.sampled_from([0.02, 0.1, 0.3]))
@settings(max_examples=60)
def test_the_upper_bound_is_clopper_pearsons_up_to_the_first_that_fails(rows: int, seed: int, target: float) -> None:
    g = torch.Generator().manual_seed(seed)
    scores, errors = risky(g, rows)
    scores = (scores * 50).round() / 50  # ties
    limit = accept_threshold(scores, errors, target, guarantee="upper_bound", confidence=0.9)
    fewest, wanted = math.log(0.1) / math.log(1 - target), None
    for value in scores.unique().tolist():
        if int((scores < value).sum()) < fewest:
            continue
        wrong = int((errors & (scores <= value)).sum())
        right = int((~errors & (scores < value)).sum())  # at the edge, mistakes alone count
        # Clopper-Pearson's upper end is this quantile of a Beta.
        if right == 0 or stats.beta.ppf(0.9, wrong + 1, right) > target:
            break
        wanted = value
    assert limit == wanted


def test_the_upper_bound_needs_rows() -> None:
    right = torch.zeros(46, dtype=torch.bool)
    scores = torch.arange(46, dtype=F64)
    assert accept_threshold(scores, right, 0.05, guarantee="upper_bound") == 45.0
    assert accept_threshold(scores[:45], right[:45], 0.05, guarantee="upper_bound") is None
    fours = torch.arange(60, dtype=F64) // 4  # the first that could pass has 45 below it, whatever ties are at it
    assert accept_threshold(fours, torch.zeros(60).bool(), 0.05, guarantee="upper_bound") == 14.0
    for impossible in (1e-9, 1e-20, 5e-324):  # the schema of a request takes them
        assert accept_threshold(scores, right, impossible, guarantee="upper_bound") is None
    rule = fitted(split(300), guarantee="upper_bound", target_risk=0.3, confidence=0.8)["map"].review
    assert (rule.guarantee, rule.confidence) == ("upper_bound", 0.8)
    plain = fitted(split(300), target_risk=0.3)["map"].review
    assert (plain.guarantee, plain.confidence) == ("empirical", None)
    assert 0 < rule.accepted < plain.accepted


def test_an_input_of_several_labels_is_accepted_as_a_whole() -> None:
    """Its score is the largest of its labels', its error their share; the new input counts as wrong in all of them."""
    together, data = 4, split(rows=800, seed=3)
    thresholds = fitted(data, together=together, target_risk=0.2)["laplace"]
    worst = entropy(data["probs"]).view(-1, together).amax(1)
    wrong = (data["probs"].argmax(1) != data["labels"]).double().view(-1, together).mean(1)

    limit = thresholds.review.threshold
    assert limit == max(float(score) for score in worst if expected_rate(worst, wrong, float(score)) <= 0.2)
    accepted = worst <= limit
    assert 0 < thresholds.review.accepted == int(accepted.sum()) < 200
    assert thresholds.review.accepted_risk == pytest.approx(float(wrong[accepted].mean()))
    assert "200 rows" in thresholds.flags["high_epistemic"].origin
    predictive = PosteriorPredictive(data["probs"], torch.ones_like(data["probs"]), entropy(data["probs"]))
    scores = review_scores(thresholds, predictive, data["map_probs"], data["labels"], entropy(data["probs"]), together)
    assert thresholds_at(thresholds, scores, 0.2, LABELS).review.threshold == limit


@given(scale=st.floats(0, 50), classes=st.integers(2, 5), seed=st.integers(0, 999))
@settings(max_examples=40)
def test_decomposition_adds_up_and_is_never_negative(scale: float, classes: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    mean = 3 * torch.randn(4, classes - 1, generator=g, dtype=F64)
    covariance = scale * torch.eye(classes - 1, dtype=F64).expand(4, -1, -1)
    mask = torch.ones(4, classes, dtype=torch.bool)
    got = decompose(posterior_predictive(mean, covariance, mask, samples=64))
    assert min(float(got.aleatoric.min()), float(got.epistemic.min())) >= 0
    # One subtraction and one addition.
    torch.testing.assert_close(got.aleatoric + got.epistemic, got.total, atol=1e-15, rtol=0)
    assert (got.total <= math.log(classes) + 1e-12).all()
    if scale == 0:
        # Without variance nothing is epistemic, to rounding of an entropy.
        torch.testing.assert_close(got.epistemic, torch.zeros(4, dtype=F64), atol=1e-13, rtol=0)
    halves = PosteriorPredictive(
        torch.full((1, 2), 0.5, dtype=F64), torch.zeros(1, 2), torch.tensor([math.log(2) + 1e-15])
    )
    assert decompose(halves).epistemic.item() == 0.0  # rounding below zero is clamped


def test_each_flag_is_raised_by_its_cause_alone() -> None:
    thresholds = fitted(split(), target_risk=0.1)["laplace"]
    epistemic, mass = (thresholds.flags[f].value or 0.0 for f in ("high_epistemic", "low_label_mass"))
    limit = thresholds.review.threshold or 0.0

    def column(value: float) -> torch.Tensor:
        return torch.tensor([value], dtype=F64)

    def unsure(score: float) -> torch.Tensor:
        mask = torch.ones(1, 3, dtype=torch.bool)
        return ruled(thresholds.review, column(score), torch.eye(3)[:1], LABELS, mask).unsure

    fine: dict[str, Any] = {
        "unsure": unsure(limit),
        "label_mass": column(1.0),
        "set_sizes": torch.tensor([1]),
        "truncated": [False],
        "epistemic": column(0.0),
        "unfamiliar": torch.tensor([False]),
    }
    causes: dict[str, dict[str, Any]] = {
        "unfamiliar": {"unfamiliar": torch.tensor([True])},
        "high_epistemic": {"epistemic": column(epistemic + 1e-9)},
        "low_confidence": {"unsure": unsure(limit + 1e-9)},
        "low_label_mass": {"label_mass": column(mass - 1e-9)},
        "ambiguous_set": {"set_sizes": torch.tensor([2])},
        "truncated": {"truncated": [True]},
    }
    assert [*causes, "other_model"] == list(FLAGS)  # which is not of a batch: a server raises it
    for flag, cause in causes.items():
        raised = raise_flags(thresholds, **fine | cause)
        assert raised == [[flag]]
        assert decide(raised) == ["review" if flag in REVIEW_FLAGS else "accept"]
    assert raise_flags(thresholds, **fine | {"set_sizes": torch.tensor([0])}) == [["ambiguous_set"]]
    # At the threshold itself nothing is raised, and all causes together keep the documented order.
    assert raise_flags(thresholds, **fine | {"epistemic": column(epistemic), "label_mass": column(mass)}) == [[]]
    everything = fine | {k: v for cause in causes.values() for k, v in cause.items()}
    assert raise_flags(thresholds, **everything) == [list(FLAGS)[:-1]]


def test_what_no_thresholds_can_be_fitted_to() -> None:
    with pytest.raises(DataError, match="label_mass"):
        fitted(split(30) | {"label_mass": torch.ones(3)})
    with pytest.raises(DataError, match="entropies"):  # no curve stands behind another score
        accept_threshold(-torch.ones(9), torch.zeros(9).bool(), 0.05)
    for options in ({"target_risk": 0.0}, {"confidence": 1.0}, {"guarantee": "none"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            fitted(split(30), **options)
