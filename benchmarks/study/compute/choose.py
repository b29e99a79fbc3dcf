"""What an artifact would serve: chosen on the calibration split alone, measured on the test split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from benchmarks.study.compute.methods import Method
from benchmarks.study.store import Stores
from laplora.decisions.conformal import aps_sets, aps_threshold, conformal_threshold, prediction_sets
from laplora.decisions.recommendation import Recommendation, recommend
from laplora.decisions.thresholds import Score
from laplora.decisions.uncertainty import decompose
from laplora.linearised import entropy
from laplora.metrics.ranking import error_auroc

#: What an artifact carries unless its configuration says otherwise, from the cheapest to serve to the dearest.
CANDIDATES = ("map", "temperature", "laplace")
#: What an artifact reviews by: not chosen by the mistakes that it is then held to.
REVIEW_SCORE: Score = "total_entropy"
#: Nominal coverage of the prediction sets.
COVERAGE = 0.9


@dataclass(frozen=True)
class Choice:
    """What would be served, and what it is measured by besides its probabilities.

    Attributes:
        scores: by method (rows,) the test rows' uncertainty, where it is not the entropy of its probabilities.
        rankings: AUROC on the test rows of each score to choose from, for the served predictive's mistakes.
        conformal: per method and kind of set, coverage and mean size on the test rows.
    """

    recommendation: Recommendation
    scores: dict[str, torch.Tensor]
    rankings: dict[str, float | None]
    conformal: dict[str, dict[str, dict[str, float]]]


def choose(methods: Mapping[str, Method], stores: Stores) -> Choice:
    """Return what an artifact would serve of these methods."""
    losses = {name: methods[name].outcome.calibration_losses for name in CANDIDATES}
    recommendation = recommend(losses, CANDIDATES)
    chosen = recommendation.predictive
    served, at_map, laplace = (methods[name].outcome.test for name in (chosen, "map", "laplace"))
    errors = served.probs.argmax(1) != stores.test.labels
    scores: dict[Score, torch.Tensor] = {
        "map_entropy": entropy(at_map.probs),
        "total_entropy": entropy(served.probs),
        "epistemic": decompose(laplace).epistemic,
    }
    return Choice(
        recommendation,
        {chosen: scores[REVIEW_SCORE]},
        {name: error_auroc(values, errors) for name, values in scores.items()},
        {name: coverages(methods[name], stores) for name in dict.fromkeys([*CANDIDATES, chosen])},
    )


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
            "coverage": float(members.gather(1, labels[:, None]).double().mean()),
            "size": float(members.sum(1).double().mean()),
            "nominal": COVERAGE,
        }
        for kind, members in sets.items()
    }
