"""The records of an artifact's fitted thresholds: what is compared with what, and where each value came from.

JSON in and out. They are fitted in ``laplora.decisions.review`` and applied in ``laplora.decisions.uncertainty``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from laplora.decisions.wanted import Costs, Wanted

Flag = Literal[
    "unfamiliar", "high_epistemic", "low_confidence", "low_label_mass", "ambiguous_set", "truncated", "other_model"
]
Score = Literal["map_entropy", "total_entropy", "epistemic"]
ReviewScore = Literal["map_entropy", "total_entropy"]
Decision = Literal["accept", "review"]
Guarantee = Literal["empirical", "upper_bound"]

#: Every flag there is, in the order in which they are listed, and what raises it.
FLAGS: Mapping[Flag, str] = MappingProxyType(
    {
        "unfamiliar": "the input is farther from the training rows than all but a stated share of the calibration rows "
        "(the artifact's familiarity.false_alarms); its prediction set holds every possible label",
        "high_epistemic": "epistemic uncertainty (posterior, members) above the 95 % quantile of the calibration split",
        "low_confidence": "the review score is above its threshold for the target risk, the request's or else the "
        "artifact's, or there is none: then every answer has it; of costs, the answer is expected to cost more than a "
        "person's look",
        "low_label_mass": "the full vocabulary gives the label tokens less than the calibration split's 1 % quantile",
        "ambiguous_set": "the conformal prediction set holds more than one label; where several labels may be right, "
        "more than those that are present",
        "truncated": "the prompt was longer than the limit and was cut",
        "other_model": "another model answered than the one that the artifact corrects: its answer is as it came",
    }
)

#: Flags that send a row to review. But for ``low_confidence`` they do so whatever its score: the model is outside what
#: it was calibrated on.
REVIEW_FLAGS: frozenset[Flag] = frozenset(
    {"unfamiliar", "high_epistemic", "low_confidence", "low_label_mass", "truncated", "other_model"}
)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FlagThreshold(_Frozen):
    """The threshold of one flag."""

    value: float | None = Field(description="Threshold; null when no value met the target: the flag is always raised.")
    level: float = Field(description="Quantile level, or the target risk, that the value is from.")
    origin: str = Field(description="How the value was chosen.")


class LabelLimit(_Frozen):
    """The threshold of the answers of one label."""

    threshold: float | None = Field(description="Review above it, nats; null: review every answer of the label.")
    target_risk: float = Field(gt=0, lt=1, description="Error rate that its accepted answers were to stay within.")


class ReviewRule(_Frozen):
    """When a prediction goes to a person."""

    score: ReviewScore = Field(description="The uncertainty that is compared, nats.")
    threshold: float | None = Field(description="Review above it; null: review everything.")
    target_risk: float = Field(description="Error rate that accepted answers were to stay within.")
    guarantee: Guarantee = Field(
        "empirical",
        description="empirical: what the accepted calibration rows, one mistake more and a smooth curve of errors say "
        "stays within the target risk. "
        "upper_bound: with the given confidence, of new rows with MAP entropy up to the threshold at most target_risk "
        "are accepted and wrong; among the accepted alone the rate may be higher by what flags and disagreement with "
        "MAP's label take out.",
    )
    confidence: float | None = Field(None, description="Of the upper bound; null for empirical.")
    accepted: int = Field(description="Calibration rows at or below the threshold.")
    accepted_risk: float | None = Field(description="Their error rate; null when there are none.")
    auroc: dict[Score, float | None] = Field(description="How well each score ranks the calibration mistakes.")
    reason: str = Field(description="Why this score.")
    by_label: dict[str, LabelLimit] | None = Field(
        None, description="By answered label, where each has a target risk; threshold and target_risk are then of none."
    )
    costs: Costs | None = Field(None, description="What decides in place of the threshold, if mistakes have costs.")

    @property
    def risks(self) -> dict[str, float] | None:
        """The target risks by answered label; None where one is of all."""
        return None if self.by_label is None else {label: of.target_risk for label, of in self.by_label.items()}

    @property
    def wanted(self) -> Wanted:
        """The target risk, those by label, or the costs that its decisions are made for."""
        return self.costs or self.risks or self.target_risk

    def of_label(self, label: str) -> ReviewRule:
        """Return the rule for answers of a label alone."""
        if self.by_label is None:
            return self
        of = self.by_label[label]
        return self.model_copy(update=dict(of) | {"by_label": {label: of}})


class PredictiveThresholds(_Frozen):
    """Thresholds of one predictive."""

    errors: int = Field(description="Mistakes of this predictive among the calibration rows.")
    flags: dict[Flag, FlagThreshold] = Field(description="Only the flags that compare with a fitted value.")
    review: ReviewRule
