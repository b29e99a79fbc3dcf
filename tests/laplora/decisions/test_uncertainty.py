"""The split of entropy, flags raised from thresholds, and the decision."""

from __future__ import annotations

import math
from typing import Any

import torch
from calibration_split import F64, fitted, split
from hypothesis import given, settings
from hypothesis import strategies as st

from laplora.decisions.uncertainty import FLAGS, REVIEW_FLAGS, decide, decompose, raise_flags
from laplora.linearised import PosteriorPredictive
from laplora.predictive.gaussian import posterior_predictive


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
    epistemic, mass, confidence = (
        thresholds.flags[f].value or 0.0 for f in ("high_epistemic", "low_label_mass", "low_confidence")
    )

    def column(value: float) -> torch.Tensor:
        return torch.tensor([value], dtype=F64)

    fine: dict[str, Any] = {
        "probs": torch.tensor([[1.0, 0.0, 0.0]], dtype=F64),
        "label_mass": column(1.0),
        "set_sizes": torch.tensor([1]),
        "truncated": [False],
        "epistemic": column(0.0),
        "unfamiliar": torch.tensor([False]),
    }
    low = confidence - 1e-9
    causes: dict[str, dict[str, Any]] = {
        "unfamiliar": {"unfamiliar": torch.tensor([True])},
        "high_epistemic": {"epistemic": column(epistemic + 1e-9)},
        "low_confidence": {"probs": torch.tensor([[low, 1 - low, 0.0]], dtype=F64)},
        "low_label_mass": {"label_mass": column(mass - 1e-9)},
        "ambiguous_set": {"set_sizes": torch.tensor([2])},
        "truncated": {"truncated": [True]},
    }
    assert list(causes) == list(FLAGS)
    low_score = torch.tensor([-1.0])
    for flag, cause in causes.items():
        raised = raise_flags(thresholds, **fine | cause)
        assert raised == [[flag]]
        assert decide(thresholds, low_score, raised) == ["review" if flag in REVIEW_FLAGS else "accept"]
    assert raise_flags(thresholds, **fine | {"set_sizes": torch.tensor([0])}) == [["ambiguous_set"]]
    # At the threshold itself nothing is raised, and all causes together keep the documented order.
    assert raise_flags(thresholds, **fine | {"epistemic": column(epistemic), "label_mass": column(mass)}) == [[]]
    everything = fine | {k: v for cause in causes.values() for k, v in cause.items()}
    assert raise_flags(thresholds, **everything) == [list(FLAGS)]
    limit = thresholds.review.threshold or 0.0
    at_and_above = torch.tensor([limit, limit + 1e-9], dtype=F64)
    assert decide(thresholds, at_and_above, [[], []]) == ["accept", "review"]
