"""What an artifact would serve: chosen on the calibration split alone, measured on the test split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.study.compute.methods import Method, Stores
from laplora.decisions.conformal import aps_sets, aps_threshold, conformal_threshold, prediction_sets
from laplora.decisions.recommendation import Recommendation, recommend
from laplora.decisions.thresholds import Score
from laplora.decisions.uncertainty import decompose
from laplora.linearised import PosteriorPredictive, entropy
from laplora.metrics.ranking import error_auroc

#: What an artifact carries unless its configuration says otherwise, from the cheapest to serve to the dearest.
CANDIDATES = ("map", "temperature", "laplace", "laplace_temperature")
#: What an artifact reviews by: not chosen by the mistakes that it is then held to.
REVIEW_SCORE: Score = "total_entropy"
#: Nominal coverage of the prediction sets.
COVERAGE = 0.9


@dataclass(frozen=True)
class Choice:
    """What would be served, and what it is measured by besides its probabilities.

    Attributes:
        recommendation: the predictive.
        review_score, review_reason: by which uncertainty its mistakes are ranked.
        scores: by method (rows,) the test rows' uncertainty, where it is not the entropy of its own probabilities.
        rankings: AUROC on the test rows of each score to choose from, for the served predictive's mistakes.
        conformal: per method and kind of set, coverage and mean size on the test rows.
    """

    recommendation: Recommendation
    review_score: str
    review_reason: str
    scores: dict[str, torch.Tensor]
    rankings: dict[str, float | None]
    conformal: dict[str, Any]


def choose(methods: Mapping[str, Method], stores: Stores) -> Choice:
    """Return what an artifact would serve of these methods."""
    losses = {name: methods[name].outcome.calibration_losses for name in CANDIDATES}
    recommendation = recommend(losses, CANDIDATES)
    served = methods[recommendation.predictive].outcome
    scores = uncertainties(methods, served.test)
    return Choice(
        recommendation,
        REVIEW_SCORE,
        "fixed before any mistake was seen",
        {recommendation.predictive: scores[REVIEW_SCORE]},
        {
            name: error_auroc(values, served.test.probs.argmax(1) != stores.test.labels)
            for name, values in scores.items()
        },
        {name: coverages(methods[name], stores) for name in dict.fromkeys([*CANDIDATES, recommendation.predictive])},
    )


def uncertainties(methods: Mapping[str, Method], served: PosteriorPredictive) -> dict[Score, torch.Tensor]:
    """Return the scores that mistakes can be ranked by, (rows,) nats each, on the test rows."""
    of = {name: methods[name].outcome.test for name in ("map", "laplace")}
    return {
        "map_entropy": entropy(of["map"].probs),
        "total_entropy": entropy(served.probs),
        "epistemic": decompose(of["laplace"]).epistemic,
    }


def coverages(method: Method, stores: Stores) -> dict[str, dict[str, float]]:
    """Return coverage and mean size of both kinds of prediction set on the test rows, nominal ``COVERAGE``."""
    calibration, test = method.outcome.calibration.probs, method.outcome.test.probs
    labels, mask = stores.test.labels, stores.test.class_mask
    sets = {
        "lac": prediction_sets(test, conformal_threshold(calibration, stores.calibration.labels, COVERAGE), mask),
        "aps": aps_sets(test, aps_threshold(calibration, stores.calibration.labels, COVERAGE), mask),
    }
    return {
        kind: {
            "coverage": float(found.gather(1, labels[:, None]).double().mean()),
            "size": float(found.sum(1).double().mean()),
            "nominal": COVERAGE,
        }
        for kind, found in sets.items()
    }
