"""The records of an artifact's fitted thresholds: what is compared with what, and where each value came from.

JSON in and out. They are fitted in ``laplora.decisions.review`` and applied in ``laplora.decisions.uncertainty``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from laplora.errors import ConfigError

Flag = Literal["high_epistemic", "low_confidence", "low_label_mass", "ambiguous_set", "truncated"]
Score = Literal["map_entropy", "total_entropy", "epistemic"]
Decision = Literal["accept", "review"]
Guarantee = Literal["empirical", "upper_bound"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FlagThreshold(_Frozen):
    """What one flag compares with."""

    value: float | None = Field(description="Threshold; null when no value met the target: the flag is always raised.")
    level: float = Field(description="Quantile level, or the target risk, that the value is from.")
    origin: str = Field(description="How the value was chosen.")


class ReviewRule(_Frozen):
    """When a prediction goes to a person."""

    score: Score = Field(description="The uncertainty that is compared, nats.")
    threshold: float | None = Field(description="Review above it; null: review everything.")
    target_risk: float = Field(description="Error rate that accepted answers were to stay within.")
    guarantee: Guarantee = Field(
        "empirical",
        description="empirical: the accepted calibration rows and one mistake more stay within the target risk. "
        "upper_bound: with the given confidence, of new rows with MAP entropy up to the threshold at most target_risk "
        "are accepted and wrong; among the accepted alone the rate may be higher by what flags and disagreement with "
        "MAP's label take out.",
    )
    confidence: float | None = Field(None, description="Of the upper bound; null for empirical.")
    accepted: int = Field(description="Calibration rows at or below the threshold.")
    accepted_risk: float | None = Field(description="Their error rate; null when there are none.")
    auroc: dict[Score, float | None] = Field(description="How well each score ranks the calibration mistakes.")
    reason: str = Field(description="Why this score.")


class ModeThresholds(_Frozen):
    """Thresholds of one predictive."""

    errors: int = Field(description="Mistakes of this predictive among the calibration rows.")
    flags: dict[Flag, FlagThreshold] = Field(description="Only the flags that compare with a fitted value.")
    review: ReviewRule


class Thresholds(_Frozen):
    """Every fitted threshold of an artifact, with the split it is from."""

    split: str = Field(description="Name of the calibration split.")
    rows: int = Field(description="Rows of that split.")
    predictives: dict[str, ModeThresholds] = Field(description="By the predictive's name.")

    @model_validator(mode="before")
    @classmethod
    def _first_form(cls, value: Any) -> Any:
        """Read what the first artifacts hold: ``map`` and ``laplace`` as fields, the latter perhaps null."""
        if isinstance(value, dict) and "predictives" not in value and "map" in value:
            modes = {name: value[name] for name in ("map", "laplace") if value.get(name) is not None}
            rest = {key: entry for key, entry in value.items() if key not in ("map", "laplace")}
            return rest | {"predictives": modes}
        return value

    def for_mode(self, name: str) -> ModeThresholds:
        """Return the thresholds of one predictive.

        Raises:
            ConfigError: a predictive that none were fitted for.
        """
        if name not in self.predictives:
            raise ConfigError(f"no thresholds were fitted for {name!r}: there are {', '.join(self.predictives)}")
        return self.predictives[name]
