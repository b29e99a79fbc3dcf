"""What a prediction does not know: entropies, the flags raised from them, and the decision to ask a person.

The entropy of the predictive mean splits into what stays even if the parameters were known (aleatoric, the
expected entropy) and what the posterior adds (epistemic, the mutual information between label and
parameters; Houlsby et al., arXiv 1112.5745). Every threshold is fitted on a calibration split and recorded
with its origin, per mode: "map" has no posterior, so its thresholds are those of the MAP probabilities.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from laplora.errors import ConfigError, DataError, NonFiniteError
from laplora.metrics import error_auroc, tie_groups
from laplora.predictive import PosteriorPredictive

Flag = Literal["high_epistemic", "low_confidence", "low_label_mass", "ambiguous_set", "truncated"]
Score = Literal["map_entropy", "total_entropy", "epistemic"]
Decision = Literal["accept", "review"]
Mode = Literal["laplace", "map"]

#: Every flag there is, in the order in which they are listed, and what raises it.
FLAGS: Mapping[Flag, str] = MappingProxyType(
    {
        "high_epistemic": "epistemic uncertainty above the 95 % quantile of the calibration split (laplace mode only)",
        "low_confidence": "largest probability below the confidence from which calibration rows met the target risk",
        "low_label_mass": "the full vocabulary gives the label tokens less than the calibration split's 1 % quantile",
        "ambiguous_set": "the conformal prediction set does not hold exactly one label",
        "truncated": "the prompt was longer than the limit and was cut from the left",
    }
)

#: Flags that send a row to review whatever its score: the model is outside what it was calibrated on.
REVIEW_FLAGS: frozenset[Flag] = frozenset({"high_epistemic", "low_label_mass", "truncated"})

#: Fewer mistakes than this cannot tell three scores apart.
_FEWEST_ERRORS = 5

#: AUROC by which a score must lead the entropy of the served probabilities to be reviewed by instead.
_CLEAR_LEAD = 0.01

#: Fewer calibration rows than this make every quantile a guess.
_FEWEST_ROWS = 20


class SmallCalibrationWarning(UserWarning):
    """Thresholds come from too few rows to mean much."""


@dataclass(frozen=True)
class Uncertainty:
    """Entropy split in two, each (batch,) float64, nats; total = aleatoric + epistemic, all at least 0."""

    total: torch.Tensor
    aleatoric: torch.Tensor
    epistemic: torch.Tensor


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
    target_risk: float = Field(description="Error rate that accepted calibration rows were to stay within.")
    accepted: int = Field(description="Calibration rows at or below the threshold.")
    accepted_risk: float | None = Field(description="Their error rate; null when there are none.")
    auroc: dict[Score, float | None] = Field(description="How well each score ranks the calibration mistakes.")
    reason: str = Field(description="Why this score.")


class ModeThresholds(_Frozen):
    """Thresholds of one mode, "laplace" or "map"."""

    errors: int = Field(description="Mistakes among the calibration rows in this mode.")
    flags: dict[Flag, FlagThreshold] = Field(description="Only the flags that compare with a fitted value.")
    review: ReviewRule


class Thresholds(_Frozen):
    """Every fitted threshold of an artifact, with the split it is from; JSON in and out."""

    split: str = Field(description="Name of the calibration split.")
    rows: int = Field(description="Rows of that split.")
    laplace: ModeThresholds | None = Field(description="Null when there is no posterior.")
    map: ModeThresholds

    def for_mode(self, mode: Mode) -> ModeThresholds:
        """Return the thresholds of one mode.

        Raises:
            ConfigError: "laplace" without a posterior.
        """
        if mode == "map":
            return self.map
        if self.laplace is None:
            raise ConfigError("these thresholds were fitted without a posterior: only mode map is there")
        return self.laplace


def entropy(probs: torch.Tensor) -> torch.Tensor:
    """Return (batch,) the entropy of each row of ``probs`` (batch, classes), nats; 0 ln 0 is 0."""
    terms: torch.Tensor = torch.special.entr(probs.double())
    return terms.sum(1)


def decompose(predictive: PosteriorPredictive) -> Uncertainty:
    """Return total, aleatoric and epistemic uncertainty (batch,), nats."""
    total = entropy(predictive.probs)
    # Jensen's inequality, which rounding can break by 1e-16 where the posterior is sharp.
    aleatoric = predictive.expected_entropy.clamp_min(0).minimum(total)
    return Uncertainty(total, aleatoric, total - aleatoric)


def fit_thresholds(
    *,
    map_probs: torch.Tensor,
    labels: torch.Tensor,
    label_mass: torch.Tensor,
    split: str,
    probs: torch.Tensor | None = None,
    epistemic: torch.Tensor | None = None,
    target_risk: float = 0.05,
    epistemic_level: float = 0.95,
    label_mass_level: float = 0.01,
) -> Thresholds:
    """Return every threshold, from the predictions on a calibration split.

    Args:
        map_probs: (rows, classes) softmax of the MAP logits.
        labels: (rows,) int64.
        label_mass: (rows,) probability that the full vocabulary gives the label tokens.
        split: the split's name, recorded.
        probs: (rows, classes) posterior predictive means; None without a posterior.
        epistemic: (rows,) nats; None without a posterior.
        target_risk: error rate that accepted rows should stay within.
        epistemic_level: quantile above which ``high_epistemic`` is raised.
        label_mass_level: quantile below which ``low_label_mass`` is raised.

    Raises:
        ConfigError: a level outside (0, 1), or only one of ``probs`` and ``epistemic``.
        DataError: no rows, or shapes that do not fit.
        NonFiniteError: NaN or infinity.

    Warns:
        SmallCalibrationWarning: fewer than 20 rows.
    """
    for name, level in (("target_risk", target_risk), ("epistemic", epistemic_level), ("label_mass", label_mass_level)):
        if not 0 < level < 1:
            raise ConfigError(f"{name} level must be in (0, 1), got {level}")
    if (probs is None) != (epistemic is None):
        raise ConfigError("probs and epistemic come together: both with a posterior, neither without")
    _check_columns(len(labels), labels=labels, label_mass=label_mass, epistemic=epistemic)
    rows = len(labels)
    for name, values in (("map_probs", map_probs), ("probs", probs)):
        if values is not None and (values.ndim != 2 or len(values) != rows):
            raise DataError(f"{name} must be ({rows}, classes), got {tuple(values.shape)}")
        if values is not None and not values.isfinite().all():
            raise NonFiniteError(f"{name} holds NaN or infinity")
    if rows < _FEWEST_ROWS:
        warnings.warn(
            f"thresholds from {rows} calibration rows mean little: use at least {_FEWEST_ROWS}",
            SmallCalibrationWarning,
            stacklevel=2,
        )
    low_mass = FlagThreshold(
        value=_quantile(label_mass, label_mass_level),
        level=label_mass_level,
        origin=f"{label_mass_level:g} quantile of the label mass of {rows} rows of {split!r}",
    )

    def one_mode(mode_probs: torch.Tensor, scores: dict[Score, torch.Tensor]) -> ModeThresholds:
        confidence, predicted = mode_probs.double().max(1)
        errors = predicted != labels
        lowest = _accept_threshold(-confidence, errors, target_risk)
        flags: dict[Flag, FlagThreshold] = {
            "low_confidence": FlagThreshold(
                value=None if lowest is None else -lowest,
                level=target_risk,
                origin=f"lowest confidence from which {rows} rows of {split!r} err at most {target_risk:g}",
            ),
            "low_label_mass": low_mass,
        }
        if "epistemic" in scores:
            flags["high_epistemic"] = FlagThreshold(
                value=_quantile(scores["epistemic"], epistemic_level),
                level=epistemic_level,
                origin=f"{epistemic_level:g} quantile of the epistemic uncertainty of {rows} rows of {split!r}",
            )
        review = _fit_review(scores, errors, target_risk)
        return ModeThresholds(errors=int(errors.sum()), flags=flags, review=review)

    map_scores: dict[Score, torch.Tensor] = {"map_entropy": entropy(map_probs)}
    laplace = None
    if probs is not None and epistemic is not None:
        all_scores = map_scores | {"total_entropy": entropy(probs), "epistemic": epistemic.double()}
        laplace = one_mode(probs, all_scores)
    return Thresholds(split=split, rows=rows, laplace=laplace, map=one_mode(map_probs, map_scores))


def review_score(
    thresholds: ModeThresholds,
    *,
    map_probs: torch.Tensor,
    probs: torch.Tensor | None = None,
    epistemic: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return (batch,) the score that this artifact reviews by, nats.

    Raises:
        ConfigError: the score needs the posterior's ``probs`` or ``epistemic`` and they are None.
    """
    score = thresholds.review.score
    if score == "map_entropy":
        return entropy(map_probs)
    values = None if probs is None else entropy(probs)
    if score == "epistemic":
        values = None if epistemic is None else epistemic.double()
    if values is None:
        raise ConfigError(f"the review score {score!r} needs the posterior: use the thresholds of mode map")
    return values


def raise_flags(
    thresholds: ModeThresholds,
    *,
    probs: torch.Tensor,
    label_mass: torch.Tensor,
    set_sizes: torch.Tensor,
    truncated: Sequence[bool],
    epistemic: torch.Tensor | None = None,
) -> list[list[Flag]]:
    """Return each row's flags, in the order of ``FLAGS``.

    Args:
        thresholds: of the mode that made ``probs``.
        probs: (batch, classes) of that mode.
        label_mass: (batch,).
        set_sizes: (batch,) labels in the conformal prediction set.
        truncated: per row, whether its prompt was cut.
        epistemic: (batch,) nats; None in mode map.

    Raises:
        DataError: shapes that do not fit.
        NonFiniteError: NaN or infinity.
    """
    batch = len(probs)
    if len(truncated) != batch:
        raise DataError(f"truncated must have {batch} entries, got {len(truncated)}")
    _check_columns(batch, label_mass=label_mass, set_sizes=set_sizes, epistemic=epistemic)

    def below(flag: Flag, values: torch.Tensor) -> torch.Tensor:
        limit = thresholds.flags[flag].value
        return torch.ones(batch, dtype=torch.bool) if limit is None else values.double().cpu() < limit

    raised: dict[Flag, torch.Tensor] = {
        "low_confidence": below("low_confidence", probs.amax(1)),
        "low_label_mass": below("low_label_mass", label_mass),
        "ambiguous_set": set_sizes.cpu() != 1,
        "truncated": torch.tensor(list(truncated), dtype=torch.bool),
    }
    if epistemic is not None and (limit := thresholds.flags.get("high_epistemic")) and limit.value is not None:
        raised["high_epistemic"] = epistemic.double().cpu() > limit.value
    return [[flag for flag in FLAGS if flag in raised and raised[flag][i]] for i in range(batch)]


def decide(thresholds: ModeThresholds, score: torch.Tensor, flags: Sequence[Sequence[Flag]]) -> list[Decision]:
    """Return "review" or "accept" for each row.

    Args:
        score: (batch,) from ``review_score``.
        flags: from ``raise_flags``; those in ``REVIEW_FLAGS`` send a row to review.
    """
    _check_columns(len(flags), score=score)
    limit = thresholds.review.threshold
    return [
        "review" if limit is None or value > limit or REVIEW_FLAGS.intersection(row) else "accept"
        for value, row in zip(score.double().tolist(), flags, strict=True)
    ]


def _fit_review(scores: dict[Score, torch.Tensor], errors: torch.Tensor, target_risk: float) -> ReviewRule:
    """Return the rule: the score that ranks the mistakes best, and its largest acceptable threshold."""
    auroc: dict[Score, float | None] = {name: error_auroc(values, errors) for name, values in scores.items()}
    score, reason = _choose_score(auroc, int(errors.sum()))
    threshold = _accept_threshold(scores[score], errors, target_risk)
    accepted = scores[score] <= threshold if threshold is not None else torch.zeros_like(errors)
    count = int(accepted.sum())
    return ReviewRule(
        score=score,
        threshold=threshold,
        target_risk=target_risk,
        accepted=count,
        accepted_risk=float(errors[accepted].double().mean()) if count else None,
        auroc=auroc,
        reason=reason,
    )


def _choose_score(auroc: Mapping[Score, float | None], errors: int) -> tuple[Score, str]:
    """Return the score to review by, and why: the entropy of the served probabilities unless another is clearly better.

    A decision by that entropy agrees with the probabilities that a client sees, so a lead that some dozen mistakes
    cannot vouch for does not displace it.
    """
    if len(auroc) == 1:
        return "map_entropy", "the only score without a posterior"
    if errors < _FEWEST_ERRORS:
        return "total_entropy", f"{errors} calibration mistakes are too few to compare scores ({_FEWEST_ERRORS} needed)"
    ranked = {name: value for name, value in auroc.items() if value is not None}
    if len(ranked) < len(auroc):
        return "total_entropy", "every calibration row is a mistake: there is nothing to rank"
    best = max(ranked, key=lambda name: ranked[name])
    chosen: Score = best if ranked[best] > ranked["total_entropy"] + _CLEAR_LEAD else "total_entropy"
    values = ", ".join(f"{name} {value:.3f}" for name, value in ranked.items())
    rule = f"total_entropy unless another leads by more than {_CLEAR_LEAD:g}"
    return chosen, f"AUROC for {errors} calibration mistakes: {values}; {rule}"


def _accept_threshold(score: torch.Tensor, errors: torch.Tensor, target_risk: float) -> float | None:
    """Return the largest calibration score t whose rows with score <= t err at most ``target_risk``, or None."""
    values, group, counts = tie_groups(score.double().cpu())
    wrong = torch.bincount(group, weights=errors.double(), minlength=len(values)).cumsum(0)
    # 1 of 20 is not above 0.05 only because of rounding.
    fits = (wrong <= target_risk * counts.cumsum(0) + 1e-9).nonzero()[:, 0]
    return float(values[fits[-1]]) if len(fits) else None


def _quantile(values: torch.Tensor, level: float) -> float:
    return float(values.double().quantile(level))


def _check_columns(rows: int, **columns: torch.Tensor | None) -> None:
    """Raise unless every column given is (rows,), not empty, and finite."""
    for name, values in columns.items():
        if values is None:
            continue
        if values.shape != (rows,) or not rows:
            raise DataError(f"{name} must be ({rows},) with at least one row, got {tuple(values.shape)}")
        if not values.isfinite().all():
            raise NonFiniteError(f"{name} holds NaN or infinity")
