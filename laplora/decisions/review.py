"""Fitting, on a calibration split, when a prediction is flagged or goes to a person.

Every row of the split should come with the predictive that was fitted without it
(``laplora.predictive.cross_fitting``). The score that is compared is fixed before any mistake is seen; the threshold is
fitted. docs/promises.md says what each guarantee promises, and how often it was kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy import special

from laplora.decisions.small_split import warn_about_labels, warn_about_rows
from laplora.decisions.thresholds import Flag, FlagThreshold, Guarantee, ModeThresholds, ReviewRule, ReviewScore, Score
from laplora.decisions.uncertainty import agreed_entropy, decompose
from laplora.errors import ConfigError, DataError
from laplora.linearised import PosteriorPredictive, entropy
from laplora.metrics.checks import check_columns, check_finite
from laplora.metrics.ranking import error_auroc, tie_groups

#: Why each guarantee reviews by the score that it does.
_REASONS: dict[Guarantee, str] = {
    "empirical": "the entropy of the served probabilities, fixed before any mistake was seen",
    "upper_bound": "MAP's entropy, which nothing fitted on the calibration rows changes; a row with another label than "
    "MAP's is reviewed",
}


@dataclass(frozen=True)
class Sureness:
    """How sure a predictive is of each row, (rows,) float64: its probabilities' entropy in nats, and the largest."""

    entropy: torch.Tensor
    confidence: torch.Tensor


def sureness_of(predictive: PosteriorPredictive) -> Sureness:
    """Return how sure a predictive is of its rows."""
    return Sureness(entropy(predictive.probs), predictive.probs.double().max(1).values)


def fit_thresholds(
    predictives: Mapping[str, PosteriorPredictive],
    labels: torch.Tensor,
    label_mass: torch.Tensor,
    *,
    split: str,
    target_risk: float = 0.05,
    guarantee: Guarantee = "empirical",
    confidence: float = 0.9,
    epistemic_level: float = 0.95,
    label_mass_level: float = 0.01,
    sureness: Mapping[str, Sureness] | None = None,
) -> dict[str, ModeThresholds]:
    """Return every threshold of every predictive by name, from the predictions on a calibration split.

    The review score is the entropy of the predictive's probabilities. For ``upper_bound`` it is MAP's: the bound is on
    MAP's mistakes, and a row where the predictive has another label is not accepted, so the bound holds whatever was
    fitted on the same rows. ``low_confidence`` is fitted as ``empirical`` under either guarantee.

    Args:
        predictives: by name, ``map`` among them, each row's under what was fitted without it.
        labels: (rows,) int64.
        label_mass: (rows,) probability that the full vocabulary gives the label tokens.
        split: the split's name, recorded.
        target_risk, guarantee, confidence: as of ``accept_threshold``.
        epistemic_level: quantile above which ``high_epistemic`` is raised.
        label_mass_level: quantile below which ``low_label_mass`` is raised.
        sureness: by name what review and ``low_confidence`` compare in place of the predictive's: out-of-fold scores on
            the scale of what is served (``laplora.predictive.cross_fitting.rank_aligned``).

    Raises:
        ConfigError: a level outside (0, 1), an unknown guarantee, or no ``map``.
        DataError: no rows, or shapes that do not fit.
        NonFiniteError: NaN or infinity.

    Warns:
        SmallCalibrationWarning: fewer than 20 rows, or labels that do not occur among them.
    """
    _check_levels(epistemic=epistemic_level, label_mass=label_mass_level)
    if "map" not in predictives:
        raise ConfigError(f"thresholds need the predictive 'map', whose entropy is a score, got {list(predictives)}")
    rows, labels = len(labels), labels.detach().cpu()
    check_columns(rows, labels=labels, label_mass=label_mass)
    for name, predictive in predictives.items():
        probs = predictive.probs
        if probs.ndim != 2 or len(probs) != rows or predictive.expected_entropy.shape != (rows,):
            raise DataError(f"the predictive {name!r} must have {rows} rows, got {tuple(probs.shape)}")
        check_finite(torch.cat([probs, predictive.expected_entropy[:, None]], 1), f"the predictive {name!r}")
    warn_about_rows(rows, "fitting thresholds")
    warn_about_labels(labels, predictives["map"].probs.shape[1], split)
    low_mass = FlagThreshold(
        value=_quantile(label_mass, label_mass_level),
        level=label_mass_level,
        origin=f"{label_mass_level:g} quantile of the label mass of {rows} rows of {split!r}",
    )
    map_probs = predictives["map"].probs
    # Checks the options under either guarantee.
    map_bound = accept_threshold(
        entropy(map_probs), map_probs.argmax(1) != labels, target_risk, guarantee=guarantee, confidence=confidence
    )

    def flags_of(predictive: PosteriorPredictive, sure: Sureness, errors: torch.Tensor) -> dict[Flag, FlagThreshold]:
        lowest = accept_threshold(-sure.confidence, errors, target_risk)
        flags: dict[Flag, FlagThreshold] = {
            "low_confidence": FlagThreshold(
                value=None if lowest is None else -lowest,
                level=target_risk,
                origin=f"lowest confidence from which {rows} rows of {split!r} and one mistake more err at most "
                f"{target_risk:g}",
            ),
            "low_label_mass": low_mass,
        }
        if _has_spread(predictive):
            flags["high_epistemic"] = FlagThreshold(
                value=_quantile(decompose(predictive).epistemic, epistemic_level),
                level=epistemic_level,
                origin=f"{epistemic_level:g} quantile of the epistemic uncertainty of {rows} rows of {split!r}",
            )
        return flags

    def rule_of(name: str, predictive: PosteriorPredictive, sure: Sureness, errors: torch.Tensor) -> ReviewRule:
        bound = guarantee == "upper_bound"
        scores: dict[Score, torch.Tensor] = {"map_entropy": entropy(map_probs)}
        if name != "map":
            scores["total_entropy"] = sure.entropy
        if _has_spread(predictive):
            scores["epistemic"] = decompose(predictive).epistemic
        score: ReviewScore = "map_entropy" if bound or name == "map" else "total_entropy"
        compared = agreed_entropy(map_probs, predictive.probs) if bound else scores[score]
        threshold = map_bound if bound else accept_threshold(compared, errors, target_risk)
        accepted = compared <= (-math.inf if threshold is None else threshold)
        return ReviewRule(
            score=score,
            threshold=threshold,
            target_risk=target_risk,
            guarantee=guarantee,
            confidence=confidence if bound else None,
            accepted=int(accepted.sum()),
            accepted_risk=float(errors[accepted].double().mean()) if accepted.any() else None,
            auroc={key: error_auroc(values, errors) for key, values in scores.items()},
            reason=_REASONS[guarantee],
        )

    fitted = {}
    for name, predictive in predictives.items():
        sure = (sureness or {}).get(name) or sureness_of(predictive)
        errors = predictive.probs.argmax(1) != labels
        fitted[name] = ModeThresholds(
            errors=int(errors.sum()),
            flags=flags_of(predictive, sure, errors),
            review=rule_of(name, predictive, sure, errors),
        )
    return fitted


def _has_spread(predictive: PosteriorPredictive) -> bool:
    """Return whether a predictive has an epistemic part; that of a point is only rounding."""
    return bool((predictive.std > 0).any())


def accept_threshold(
    scores: torch.Tensor,
    errors: torch.Tensor,
    target_risk: float,
    *,
    guarantee: Guarantee = "empirical",
    confidence: float = 0.9,
) -> float | None:
    """Return the largest score up to which answers may be accepted at a target risk; None accepts nothing.

    ``empirical``: the largest calibration score t with (errors + 1) / (accepted + 1) at most ``target_risk`` among the
    rows with score <= t. The new row counts as a mistake in advance, as in conformal risk control (Angelopoulos et al.,
    arXiv 2208.02814). That is no bound on the error rate among the accepted.

    ``upper_bound``: with probability at least ``confidence`` over the draw of the calibration rows, the error
    rate among new exchangeable rows with score <= t is at most ``target_risk``. A score passes when its
    Clopper-Pearson bound (Clopper and Pearson 1934) does. Scores are tried from few accepted rows to many, up to the
    first that fails (fixed-sequence testing: Angelopoulos et al., Learn then Test, arXiv 2110.01052). It holds for
    scores that were not chosen or fitted on the same rows.

    Args:
        scores: (rows,) uncertainty, higher meaning less trusted.
        errors: (rows,) bool, true at mistakes.
        target_risk: in (0, 1).
        confidence: in (0, 1); of ``upper_bound`` only.

    Raises:
        ConfigError: a target risk or confidence outside (0, 1), or an unknown guarantee.
        DataError: no rows, or shapes that do not fit.
        NonFiniteError: NaN or infinity in a score.
    """
    _check_levels(target_risk=target_risk, confidence=confidence)
    if guarantee not in ("empirical", "upper_bound"):
        raise ConfigError(f"guarantee must be empirical or upper_bound, got {guarantee!r}")
    check_columns(len(errors), scores=scores)
    values, group, counts = tie_groups(scores.detach().double().cpu())
    wrong = torch.bincount(group, weights=errors.detach().cpu().double(), minlength=len(values))
    within, answered = wrong.cumsum(0), counts.cumsum(0)
    if guarantee == "empirical":
        # 1 of 20 is not above 0.05 only because of rounding.
        fits = (within + 1 <= target_risk * (answered + 1) + 1e-9).nonzero()[:, 0]
        return float(values[fits[-1]]) if len(fits) else None
    # Given the score at the edge, only the rows strictly below it are a sample of what is accepted. Rows at the edge
    # count if they are mistakes, never as right answers.
    sample = answered - (counts - wrong).long()
    # The first to try must not depend on the mistakes: the fewest rows that could pass, with none among them.
    fewest = math.log(1 - confidence) / math.log1p(-target_risk)  # infinite for the smallest risks
    start = int(torch.searchsorted(answered, math.ceil(fewest) + 1)) if fewest < len(errors) else len(values)
    passes = special.bdtr(within.numpy(), sample.numpy(), target_risk) <= 1 - confidence
    failing = (~torch.from_numpy(passes)[start:]).nonzero()[:, 0]
    end = start + int(failing[0]) if len(failing) else len(values)
    return float(values[end - 1]) if end > start else None


def _check_levels(**levels: float) -> None:
    for name, level in levels.items():
        if not 0 < level < 1:
            raise ConfigError(f"{name} must be in (0, 1), got {level}")


def _quantile(values: torch.Tensor, level: float) -> float:
    return float(values.double().quantile(level))
