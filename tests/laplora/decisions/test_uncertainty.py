"""The split of entropy, flags raised from thresholds, and the decision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from calibration_split import F64, fitted, map_only, split
from hypothesis import given, settings
from hypothesis import strategies as st

from laplora.decisions.uncertainty import FLAGS, REVIEW_FLAGS, decide, decompose, raise_flags, review_score
from laplora.errors import DataError
from laplora.linearised import PosteriorPredictive, entropy
from laplora.predictive.gaussian import posterior_predictive


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


def test_each_flag_is_raised_by_its_cause_alone() -> None:
    thresholds = fitted(split(), target_risk=0.1)["laplace"]
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


def test_decisions_of_map_on_its_own_split_keep_the_risk() -> None:
    data = split()
    thresholds = fitted(map_only(data))["map"]
    assert thresholds == fitted(data)["map"]
    score = review_score(thresholds, probs=data["map_probs"], map_probs=data["map_probs"])
    assert torch.equal(score, entropy(data["map_probs"]))
    columns = {"probs": data["map_probs"], "label_mass": data["label_mass"], "set_sizes": torch.ones(200)}
    flags = raise_flags(thresholds, **columns, truncated=[False] * 200)
    assert {f for row in flags for f in row} == {"low_confidence", "low_label_mass"}
    accepted = torch.tensor([d == "accept" for d in decide(thresholds, score, flags)])
    errors = data["map_probs"].argmax(1) != data["labels"]
    assert thresholds.review.accepted_risk is not None
    assert thresholds.review.accepted_risk <= 0.05
    assert 0 < accepted.sum() <= thresholds.review.accepted
    assert errors[accepted].double().mean() <= 0.06  # low_label_mass takes rows out, so the rate may move a little


def test_refusals() -> None:
    thresholds = fitted(split(30))["map"]
    good: dict[str, Any] = {
        "probs": torch.tensor([[1.0, 0.0]]),
        "label_mass": torch.ones(1),
        "set_sizes": torch.ones(1),
        "truncated": [False],
    }
    with pytest.raises(DataError, match="truncated"):
        raise_flags(thresholds, **good | {"truncated": []})
    with pytest.raises(DataError, match="score"):
        decide(thresholds, torch.ones(2), [[]])
