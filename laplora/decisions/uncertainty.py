"""Uncertainty of a prediction, the flags raised from it, and the decision to accept or review.

The entropy of the predictive mean splits into the expected entropy (aleatoric) and the mutual information between label
and parameters (epistemic; Houlsby et al., arXiv 1112.5745). A predictive without a covariance has no epistemic part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from laplora.decisions.costs import cheapest
from laplora.decisions.thresholds import FLAGS, REVIEW_FLAGS, Decision, Flag, PredictiveThresholds, ReviewRule
from laplora.linearised import PosteriorPredictive, entropy
from laplora.metrics.checks import check_columns, check_finite


@dataclass(frozen=True)
class Uncertainty:
    """Entropy split in two, each (batch,) float64, nats; total = aleatoric + epistemic, all at least 0."""

    total: torch.Tensor
    aleatoric: torch.Tensor
    epistemic: torch.Tensor


def decompose(predictive: PosteriorPredictive) -> Uncertainty:
    """Return total, aleatoric and epistemic uncertainty (batch,), nats."""
    total = entropy(predictive.probs)
    # Jensen's inequality, which rounding can break by 1e-16 where the posterior is sharp.
    aleatoric = predictive.expected_entropy.clamp_min(0).minimum(total)
    return Uncertainty(total, aleatoric, total - aleatoric)


def review_score(
    thresholds: PredictiveThresholds, *, probs: torch.Tensor, map_probs: torch.Tensor | None
) -> torch.Tensor:
    """Return (batch,) what a predictive's review rule compares, and what ranks its mistakes, nats.

    Under the guarantee ``upper_bound`` that is ``agreed_entropy``.

    Args:
        thresholds: of the predictive that made ``probs`` (batch, classes); map_probs: (batch, classes), MAP's; None
            where there is none, and entropy of ``probs`` is compared.
    """
    if thresholds.review.score == "total_entropy" or map_probs is None:
        return entropy(probs)
    if thresholds.review.guarantee == "upper_bound":
        return agreed_entropy(map_probs, probs)
    return entropy(map_probs)


def agreed_entropy(map_probs: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """Return (batch,) MAP's entropy, nats; where ``probs`` have another label, twice the largest entropy there is.

    Every mistake that is accepted by it is a mistake of MAP, whatever ``probs`` (batch, classes) were fitted on.
    """
    agrees = map_probs.argmax(1) == probs.argmax(1)
    return torch.where(agrees, entropy(map_probs), 2 * math.log(map_probs.shape[1]))


@dataclass(frozen=True)
class Ruled:
    """The answers of a review rule to rows.

    Attributes:
        answered: (batch,) int64, place of the label that answers; unsure: (batch,) bool, whether that is reviewed.
        expected_cost: (batch,) float64 of that label; None without costs.
    """

    answered: torch.Tensor
    unsure: torch.Tensor
    expected_cost: torch.Tensor | None = None

    @property
    def costs(self) -> Sequence[float | None]:
        """The expected costs, None of each row without costs."""
        return [None] * len(self.unsure) if self.expected_cost is None else self.expected_cost.tolist()


def ruled(
    rule: ReviewRule, score: torch.Tensor, probs: torch.Tensor, labels: Sequence[str], class_mask: torch.Tensor
) -> Ruled:
    """Return which label answers each row, and whether the rule reviews it.

    Args:
        score: (batch,) its ``review_score``; probs, class_mask: (batch, classes), of the first so many of the labels.

    Raises:
        DataError: shapes that do not fit.
        NonFiniteError: NaN or infinity.
    """
    check_columns(len(probs), score=score)
    check_finite(probs, "probs")
    if rule.costs is not None:
        count = probs.shape[1]
        answered, cost = cheapest(probs, rule.costs.matrix(labels)[:count, :count], class_mask)
        return Ruled(answered, cost > rule.costs.review, cost)
    answered, limit = probs.argmax(1), rule.threshold
    limits = [limit] if rule.by_label is None else [rule.by_label[label].threshold for label in labels]
    each = torch.tensor([-math.inf if one is None else one for one in limits], dtype=torch.float64)
    return Ruled(answered, score.double().cpu() > (each if rule.by_label is None else each[answered]))


def raise_flags(
    thresholds: PredictiveThresholds,
    *,
    unsure: torch.Tensor,
    label_mass: torch.Tensor | None,
    set_sizes: torch.Tensor,
    truncated: Sequence[bool],
    epistemic: torch.Tensor | None,
    unfamiliar: torch.Tensor | None,
) -> list[list[Flag]]:
    """Return each row's flags, in the order of ``FLAGS``.

    Args:
        thresholds: of the predictive that answers; unsure: (batch,) bool, what its rule reviews (``ruled``).
        label_mass: (batch,); None where nothing but labels can be answered.
        set_sizes: (batch,) labels in the conformal prediction set.
        truncated: per row, whether its prompt was cut.
        epistemic: (batch,) nats; None where there is none.
        unfamiliar: (batch,) bool; None where nobody measured it.

    Raises:
        DataError: shapes that do not fit.
        NonFiniteError: NaN or infinity.
    """
    columns = {"unsure": unsure, "set_sizes": set_sizes}
    check_columns(len(unsure), **columns, label_mass=label_mass, epistemic=epistemic, unfamiliar=unfamiliar)
    least_mass = thresholds.flags["low_label_mass"].value
    raised: dict[Flag, torch.Tensor] = {
        "low_confidence": unsure.cpu(),
        "ambiguous_set": set_sizes.cpu() != 1,
        "truncated": torch.tensor(list(truncated), dtype=torch.bool),
    }
    if label_mass is not None:
        raised["low_label_mass"] = label_mass.double().cpu() < (math.inf if least_mass is None else least_mass)
    if epistemic is not None and (most := thresholds.flags.get("high_epistemic")) and most.value is not None:
        raised["high_epistemic"] = epistemic.double().cpu() > most.value
    if unfamiliar is not None:
        raised["unfamiliar"] = unfamiliar.cpu()
    rows = {flag: raised[flag].tolist() for flag in FLAGS if flag in raised}
    return [[flag for flag, of_rows in rows.items() if of_rows[i]] for i in range(len(unsure))]


def decide(flags: Sequence[Sequence[Flag]]) -> list[Decision]:
    """Return "review" for each row with a flag of ``REVIEW_FLAGS``, "accept" for the others."""
    return ["review" if REVIEW_FLAGS.intersection(row) else "accept" for row in flags]
