"""The split of entropy, thresholds from a calibration split, flags, and the decision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laplora.errors import ConfigError, DataError, NonFiniteError
from laplora.metrics import error_auroc
from laplora.predictive import PosteriorPredictive, contrasts, posterior_predictive
from laplora.uncertainty import (
    FLAGS,
    REVIEW_FLAGS,
    SmallCalibrationWarning,
    Thresholds,
    decide,
    decompose,
    entropy,
    fit_thresholds,
    raise_flags,
    review_score,
)

F64 = torch.float64


def split(rows: int = 200, seed: int = 0, sharpness: float = 3.0) -> dict[str, Any]:
    """Return a calibration split of an overconfident three-class model with a posterior, as keyword arguments."""
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(rows, 2, generator=g, dtype=F64)
    labels = torch.multinomial(torch.softmax(2 * mean @ contrasts(3).T, 1), 1, generator=g)[:, 0]
    variance = 4 * torch.rand(rows, generator=g, dtype=F64)
    covariance = variance[:, None, None] * torch.eye(2, dtype=F64)
    mask = torch.ones(rows, 3, dtype=torch.bool)
    predictive = posterior_predictive(sharpness * mean, covariance, mask, samples=64)
    return {
        "map_probs": torch.softmax(sharpness * mean @ contrasts(3).T, 1),
        "probs": predictive.probs,
        "epistemic": decompose(predictive).epistemic,
        "labels": labels,
        "label_mass": 0.5 + 0.5 * torch.rand(rows, generator=g, dtype=F64),
        "split": "calibration",
    }


def map_only(data: dict[str, Any]) -> dict[str, Any]:
    """Return the split without what needs a posterior."""
    return {k: v for k, v in data.items() if k not in ("probs", "epistemic")}


def test_entropy() -> None:
    probs = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert entropy(probs).tolist() == pytest.approx([math.log(2), 0.0])
    assert entropy(probs).dtype == F64


@given(scale=st.floats(0, 50), classes=st.integers(2, 5), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_decomposition_adds_up_and_is_never_negative(scale: float, classes: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    mean = 3 * torch.randn(4, classes - 1, generator=g, dtype=F64)
    covariance = scale * torch.eye(classes - 1, dtype=F64).expand(4, -1, -1)
    mask = torch.ones(4, classes, dtype=torch.bool)
    got = decompose(posterior_predictive(mean, covariance, mask, samples=64))
    assert (got.aleatoric >= 0).all()
    assert (got.epistemic >= 0).all()
    # One subtraction and one addition.
    torch.testing.assert_close(got.aleatoric + got.epistemic, got.total, atol=1e-15, rtol=0)
    assert (got.total <= math.log(classes) + 1e-12).all()
    if scale == 0:
        # Without variance nothing is epistemic, to rounding of an entropy.
        torch.testing.assert_close(got.epistemic, torch.zeros(4, dtype=F64), atol=1e-13, rtol=0)


def test_rounding_below_zero_is_clamped() -> None:
    probs = torch.tensor([[0.5, 0.5]], dtype=F64)
    above = torch.tensor([math.log(2) + 1e-15], dtype=F64)
    got = decompose(PosteriorPredictive(probs, torch.zeros(1, 2), above))
    assert got.epistemic.item() == 0.0


def test_thresholds_record_value_level_and_origin() -> None:
    data = split()
    got = fit_thresholds(**data)
    assert (got.split, got.rows) == ("calibration", 200)
    laplace = got.for_mode("laplace")
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
    assert set(got.map.flags) == {"low_confidence", "low_label_mass"}


def test_thresholds_survive_json_to_the_last_bit_and_refuse_unknown_keys() -> None:
    got = fit_thresholds(**split())
    again = Thresholds.model_validate_json(got.model_dump_json())
    assert again == got
    with pytest.raises(ValueError, match="extra"):
        Thresholds.model_validate(got.model_dump() | {"other": 1})
    with pytest.raises(ValueError, match="frozen"):
        got.rows = 3


@pytest.mark.parametrize("target", [0.02, 0.05, 0.2])
@pytest.mark.parametrize("mode", ["laplace", "map"])
def test_review_threshold_is_the_largest_that_keeps_the_risk(target: float, mode: Any) -> None:
    data = split(seed=2)
    thresholds = fit_thresholds(**data, target_risk=target).for_mode(mode)
    rule = thresholds.review
    assert rule.threshold is not None
    probs = data["probs"] if mode == "laplace" else data["map_probs"]
    score = review_score(thresholds, map_probs=data["map_probs"], probs=data["probs"], epistemic=data["epistemic"])
    errors = probs.argmax(1) != data["labels"]

    def risk(limit: float) -> float:
        return float(errors[score <= limit].double().mean())

    assert risk(rule.threshold) <= target
    assert all(risk(float(t)) > target for t in score if t > rule.threshold)
    assert rule.accepted == int((score <= rule.threshold).sum())
    assert rule.accepted_risk == risk(rule.threshold)
    # The confidence flag is the same search over the confidence.
    lowest = thresholds.flags["low_confidence"].value
    confidence = probs.amax(1)
    assert lowest is not None
    assert float(errors[confidence >= lowest].double().mean()) <= target


def test_review_score_is_the_best_ranking_one_and_says_why() -> None:
    data = split(400, seed=5)
    errors = data["probs"].argmax(1) != data["labels"]
    # An epistemic column that knows the mistakes, and one that knows nothing.
    oracle = fit_thresholds(**data | {"epistemic": errors.double() + 0.1}).for_mode("laplace").review
    assert oracle.score == "epistemic"
    assert oracle.auroc["epistemic"] == 1.0
    assert "epistemic 1.000; total_entropy unless another leads by more than 0.01" in oracle.reason
    assert oracle.accepted == int((~errors).sum())
    useless = fit_thresholds(**data | {"epistemic": -errors.double()}).for_mode("laplace").review
    assert useless.score != "epistemic"
    plain = fit_thresholds(**data).for_mode("laplace").review
    assert plain.auroc["total_entropy"] == error_auroc(entropy(data["probs"]), errors)
    ranked = {k: v for k, v in plain.auroc.items() if v is not None}
    assert ranked[plain.score] >= max(ranked.values()) - 0.01


def test_a_small_lead_does_not_displace_the_entropy_of_what_is_served() -> None:
    """One swapped pair among 40 x 360 moves an AUROC by 7e-5; a decision should agree with the probabilities shown."""
    data = split(400, seed=5)
    served = entropy(data["probs"])
    errors = data["probs"].argmax(1) != data["labels"]
    slightly_better = served + 1e-3 * errors.double()
    same = {"map_probs": data["probs"], "epistemic": slightly_better}
    rule = fit_thresholds(**data | same).for_mode("laplace").review
    assert rule.auroc["epistemic"] > rule.auroc["total_entropy"]
    assert rule.score == "total_entropy"


def test_ties_and_too_few_mistakes_fall_back_to_the_entropy_of_what_is_served() -> None:
    data = split(400, seed=5)
    tied = fit_thresholds(**data | {"probs": data["map_probs"], "epistemic": torch.zeros(400)})
    assert tied.for_mode("laplace").review.score == "total_entropy"
    # Four mistakes only, all of them found by the epistemic column: still too few to prefer it.
    labels = data["probs"].argmax(1)
    labels[:4] = (labels[:4] + 1) % 3
    epistemic = (torch.arange(400) < 4).double()
    few = fit_thresholds(**data | {"labels": labels, "epistemic": epistemic}).for_mode("laplace").review
    assert few.score == "total_entropy"
    assert few.reason == "4 calibration mistakes are too few to compare scores (5 needed)"
    wrong = fit_thresholds(**data | {"labels": (data["probs"].argmax(1) + 1) % 3}).for_mode("laplace").review
    assert wrong.score == "total_entropy"
    assert "nothing to rank" in wrong.reason
    assert fit_thresholds(**data).map.review.reason == "the only score without a posterior"


def test_when_no_threshold_keeps_the_risk_everything_is_reviewed() -> None:
    data = split(50)
    hopeless = data | {"labels": (data["probs"].argmax(1) + 1) % 3}
    thresholds = fit_thresholds(**hopeless).for_mode("laplace")
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
    rule = fit_thresholds(map_probs=probs, labels=labels, label_mass=torch.ones(40), split="c").map.review
    assert rule.accepted == 30
    assert rule.threshold == float(entropy(probs[:1]))


def test_a_risk_of_exactly_the_target_is_accepted() -> None:
    probs = torch.tensor([[0.9, 0.1]] * 20, dtype=F64)
    labels = torch.tensor([1] + [0] * 19)
    rule = fit_thresholds(map_probs=probs, labels=labels, label_mass=torch.ones(20), split="c").map.review
    assert rule.accepted == 20
    assert rule.accepted_risk == 0.05


def test_each_flag_is_raised_by_its_cause_alone() -> None:
    thresholds = fit_thresholds(**split()).for_mode("laplace")
    epistemic, mass, confidence = (
        thresholds.flags[f].value or 0.0 for f in ("high_epistemic", "low_label_mass", "low_confidence")
    )
    fine: dict[str, Any] = {
        "probs": torch.tensor([[1.0, 0.0, 0.0]], dtype=F64),
        "label_mass": torch.tensor([1.0], dtype=F64),
        "set_sizes": torch.tensor([1]),
        "truncated": [False],
        "epistemic": torch.tensor([0.0], dtype=F64),
    }
    low = confidence - 1e-9
    causes: dict[str, dict[str, Any]] = {
        "high_epistemic": {"epistemic": torch.tensor([epistemic + 1e-9], dtype=F64)},
        "low_confidence": {"probs": torch.tensor([[low, 1 - low, 0.0]], dtype=F64)},
        "low_label_mass": {"label_mass": torch.tensor([mass - 1e-9], dtype=F64)},
        "ambiguous_set": {"set_sizes": torch.tensor([2])},
        "truncated": {"truncated": [True]},
    }
    assert list(causes) == list(FLAGS)
    assert raise_flags(thresholds, **fine) == [[]]
    low_score = torch.tensor([-1.0])
    assert decide(thresholds, low_score, [[]]) == ["accept"]
    for flag, cause in causes.items():
        raised = raise_flags(thresholds, **fine | cause)
        assert raised == [[flag]]
        assert decide(thresholds, low_score, raised) == ["review" if flag in REVIEW_FLAGS else "accept"]
    assert raise_flags(thresholds, **fine | {"set_sizes": torch.tensor([0])}) == [["ambiguous_set"]]
    # At the threshold itself nothing is raised, and all causes together keep the documented order.
    edge = fine | {"epistemic": torch.tensor([epistemic], dtype=F64), "label_mass": torch.tensor([mass], dtype=F64)}
    assert raise_flags(thresholds, **edge) == [[]]
    everything = fine | {k: v for cause in causes.values() for k, v in cause.items()}
    assert raise_flags(thresholds, **everything) == [list(FLAGS)]
    limit = thresholds.review.threshold or 0.0
    at_and_above = torch.tensor([limit, limit + 1e-9], dtype=F64)
    assert decide(thresholds, at_and_above, [[], []]) == ["accept", "review"]


def test_mode_map_needs_no_posterior() -> None:
    data = split()
    both = fit_thresholds(**data)
    alone = fit_thresholds(**map_only(data))
    assert alone.laplace is None
    assert alone.map == both.map
    with pytest.raises(ConfigError, match="mode map"):
        alone.for_mode("laplace")
    score = review_score(alone.map, map_probs=data["map_probs"])
    assert torch.equal(score, entropy(data["map_probs"]))
    flags = raise_flags(
        alone.map,
        probs=data["map_probs"],
        label_mass=data["label_mass"],
        set_sizes=torch.ones(200),
        truncated=[False] * 200,
    )
    assert {f for row in flags for f in row} == {"low_confidence", "low_label_mass"}
    # On its own split the decision keeps the promised risk.
    accepted = torch.tensor([d == "accept" for d in decide(alone.map, score, flags)])
    errors = data["map_probs"].argmax(1) != data["labels"]
    assert alone.map.review.accepted_risk is not None
    assert alone.map.review.accepted_risk <= 0.05
    assert accepted.sum() <= alone.map.review.accepted
    assert accepted.any()
    assert errors[accepted].double().mean() <= 0.06  # low_label_mass takes rows out, so the rate may move a little


def test_laplace_scores_refuse_mode_map_inputs() -> None:
    data = split(400, seed=5)
    errors = data["probs"].argmax(1) != data["labels"]
    thresholds = fit_thresholds(**data | {"epistemic": errors.double()}).for_mode("laplace")
    with pytest.raises(ConfigError, match="epistemic"):
        review_score(thresholds, map_probs=data["map_probs"])


@given(order_seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_order_of_calibration_rows_does_not_matter(order_seed: int) -> None:
    data = split(60, seed=3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(order_seed))
    moved: dict[str, Any] = {k: v[order] if isinstance(v, torch.Tensor) else v for k, v in data.items()}
    assert fit_thresholds(**moved) == fit_thresholds(**data)


def test_few_calibration_rows_warn() -> None:
    with pytest.warns(SmallCalibrationWarning, match="19 calibration rows"):
        fit_thresholds(**split(19))


def test_refusals() -> None:
    data = split(30)
    with pytest.raises(DataError, match="label_mass"):
        fit_thresholds(**data | {"label_mass": torch.ones(3)})
    with pytest.raises(DataError, match="map_probs"):
        fit_thresholds(**data | {"map_probs": data["map_probs"][:3]})
    with pytest.raises(DataError, match="at least one row"):
        fit_thresholds(map_probs=torch.zeros(0, 2), labels=torch.zeros(0), label_mass=torch.zeros(0), split="c")
    with pytest.raises(NonFiniteError, match="epistemic"):
        fit_thresholds(**data | {"epistemic": data["epistemic"] * math.nan})
    with pytest.raises(NonFiniteError, match="map_probs"):
        fit_thresholds(**data | {"map_probs": data["map_probs"] * math.nan})
    with pytest.raises(ConfigError, match="target_risk"):
        fit_thresholds(**data, target_risk=0.0)
    with pytest.raises(ConfigError, match="together"):
        fit_thresholds(**data | {"probs": None})
    thresholds = fit_thresholds(**data).map
    good: dict[str, Any] = {
        "probs": torch.tensor([[1.0, 0.0]]),
        "label_mass": torch.ones(1),
        "set_sizes": torch.ones(1),
        "truncated": [False],
    }
    with pytest.raises(DataError, match="truncated"):
        raise_flags(thresholds, **good | {"truncated": []})
    with pytest.raises(NonFiniteError, match="label_mass"):
        raise_flags(thresholds, **good | {"label_mass": torch.tensor([math.nan])})
    with pytest.raises(DataError, match="score"):
        decide(thresholds, torch.ones(2), [[]])
