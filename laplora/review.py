"""Fitting when a prediction is flagged or goes to a person, on a calibration split.

Two questions are answered for each predictive. Which score ranks its mistakes best: the entropy of the served
probabilities, unless another one leads by more than the noise of the few mistakes there are. And up to which
score answers are accepted: as far as the error rate of the accepted ones stays within a target risk, either
among the calibration rows (``empirical``) or, with a stated confidence, among new rows like them
(``upper_bound``).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch

from laplora.calibration import FEWEST_ROWS, SmallCalibrationWarning, warn_about_labels
from laplora.errors import ConfigError, DataError, NonFiniteError
from laplora.predictive import PosteriorPredictive
from laplora.ranking import compare_auroc, error_auroc, tie_groups
from laplora.thresholds import Flag, FlagThreshold, Guarantee, ModeThresholds, ReviewRule, Score, Thresholds
from laplora.uncertainty import check_columns, decompose, entropy

#: Fewer mistakes than this cannot tell scores apart.
_FEWEST_ERRORS = 5

#: One-sided 90 % of a normal: a lead in AUROC beyond this many of its standard errors is not noise.
_BEYOND_NOISE = 1.2816


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
) -> Thresholds:
    """Return every threshold of every predictive, from the predictions on a calibration split.

    Args:
        predictives: by name, ``map`` among them, each with rows of (classes,) probabilities.
        labels: (rows,) int64.
        label_mass: (rows,) probability that the full vocabulary gives the label tokens.
        split: the split's name, recorded.
        target_risk: error rate that accepted rows should stay within.
        guarantee: of the target risk: see ``accept_threshold``.
        confidence: of the guarantee ``upper_bound``.
        epistemic_level: quantile above which ``high_epistemic`` is raised.
        label_mass_level: quantile below which ``low_label_mass`` is raised.

    Raises:
        ConfigError: a level outside (0, 1), an unknown guarantee, or no ``map``.
        DataError: no rows, or shapes that do not fit.
        NonFiniteError: NaN or infinity.

    Warns:
        SmallCalibrationWarning: fewer than 20 rows, or labels that do not occur among them.
    """
    for name, level in (("epistemic", epistemic_level), ("label_mass", label_mass_level)):
        if not 0 < level < 1:
            raise ConfigError(f"{name} level must be in (0, 1), got {level}")
    if "map" not in predictives:
        raise ConfigError(f"thresholds need the predictive 'map', whose entropy is a score, got {list(predictives)}")
    rows, labels = len(labels), labels.detach().cpu()
    check_columns(rows, labels=labels, label_mass=label_mass)
    for name, predictive in predictives.items():
        probs = predictive.probs
        if probs.ndim != 2 or len(probs) != rows or predictive.expected_entropy.shape != (rows,):
            raise DataError(f"the predictive {name!r} must have {rows} rows, got {tuple(probs.shape)}")
        if not (probs.isfinite().all() and predictive.expected_entropy.isfinite().all()):
            raise NonFiniteError(f"the predictive {name!r} holds NaN or infinity")
    if rows < FEWEST_ROWS:
        warnings.warn(
            f"thresholds from {rows} calibration rows mean little: use at least {FEWEST_ROWS}",
            SmallCalibrationWarning,
            stacklevel=2,
        )
    warn_about_labels(labels, predictives["map"].probs.shape[1], split)
    low_mass = FlagThreshold(
        value=_quantile(label_mass, label_mass_level),
        level=label_mass_level,
        origin=f"{label_mass_level:g} quantile of the label mass of {rows} rows of {split!r}",
    )
    map_entropy = entropy(predictives["map"].probs)

    def one(name: str, predictive: PosteriorPredictive) -> ModeThresholds:
        confidences, predicted = predictive.probs.double().max(1)
        errors = predicted != labels
        lowest = accept_threshold(-confidences, errors, target_risk, guarantee=guarantee, confidence=confidence)
        flags: dict[Flag, FlagThreshold] = {
            "low_confidence": FlagThreshold(
                value=None if lowest is None else -lowest,
                level=target_risk,
                origin=f"lowest confidence from which {rows} rows of {split!r} err at most {target_risk:g}"
                + (f" ({confidence:.0%} upper bound)" if guarantee == "upper_bound" else ""),
            ),
            "low_label_mass": low_mass,
        }
        scores: dict[Score, torch.Tensor] = {"map_entropy": map_entropy}
        if name != "map":
            scores["total_entropy"] = entropy(predictive.probs)
        if bool((predictive.std > 0).any()):  # a point has no epistemic part, only its rounding
            scores["epistemic"] = decompose(predictive).epistemic
            flags["high_epistemic"] = FlagThreshold(
                value=_quantile(scores["epistemic"], epistemic_level),
                level=epistemic_level,
                origin=f"{epistemic_level:g} quantile of the epistemic uncertainty of {rows} rows of {split!r}",
            )
        auroc: dict[Score, float | None] = {score: error_auroc(values, errors) for score, values in scores.items()}
        score, reason = choose_score(scores, errors)
        threshold = accept_threshold(scores[score], errors, target_risk, guarantee=guarantee, confidence=confidence)
        accepted = scores[score] <= (-math.inf if threshold is None else threshold)
        review = ReviewRule(
            score=score,
            threshold=threshold,
            target_risk=target_risk,
            guarantee=guarantee,
            confidence=confidence if guarantee == "upper_bound" else None,
            accepted=int(accepted.sum()),
            accepted_risk=float(errors[accepted].double().mean()) if accepted.any() else None,
            auroc=auroc,
            reason=reason,
        )
        return ModeThresholds(errors=int(errors.sum()), flags=flags, review=review)

    fitted = {name: one(name, predictive) for name, predictive in predictives.items()}
    return Thresholds(split=split, rows=rows, predictives=fitted)


def choose_score(scores: Mapping[Score, torch.Tensor], errors: torch.Tensor) -> tuple[Score, str]:
    """Return the score to review by, and why: ``total_entropy`` unless another one's lead in AUROC is beyond noise.

    The entropy of the served probabilities comes first because a decision by it agrees with the probabilities that the
    client sees (without it, ``map_entropy``). Another score's lead counts when it is more than 1.28 of its own standard
    errors, those of the paired difference (DeLong, DeLong and Clarke-Pearson 1988): one-sided 90 %. Among several such
    scores the best one is taken.

    Args:
        scores: (rows,) each, ``map_entropy`` among them, higher meaning less trusted.
        errors: (rows,) bool, true at mistakes.
    """
    mistakes = int(errors.sum())
    if len(scores) == 1:
        return "map_entropy", "the only score without a posterior"
    first: Score = "total_entropy" if "total_entropy" in scores else "map_entropy"
    if min(mistakes, len(errors) - mistakes) < _FEWEST_ERRORS:
        return first, (
            f"{mistakes} mistakes in {len(errors)} calibration rows: comparing scores takes {_FEWEST_ERRORS} mistakes "
            f"and {_FEWEST_ERRORS} right answers"
        )
    values = {name: error_auroc(score, errors) or 0.0 for name, score in scores.items()}
    leads = {n: compare_auroc(s, scores[first], errors) for n, s in scores.items() if n != first}
    clear = [n for n, (lead, error) in leads.items() if lead > _BEYOND_NOISE * error and lead > 0]
    chosen: Score = max(clear, key=lambda n: values[n]) if clear else first
    figures = ", ".join(f"{n} {values[n]:.3f}" + (_lead(*leads[n]) if n in leads else "") for n in scores)
    return chosen, f"AUROC for {mistakes} calibration mistakes: {figures}; {first} unless a lead is beyond noise"


def _lead(lead: float, error: float) -> str:
    # Twice rounded, and 0.0 + -0.0 is 0.0: the order of sums must not decide a digit, or the sign of no lead.
    return f" (lead {0.0 + round(round(lead, 9), 3):+.3f}, standard error {error:.3f})"


def accept_threshold(
    scores: torch.Tensor,
    errors: torch.Tensor,
    target_risk: float,
    *,
    guarantee: Guarantee = "empirical",
    confidence: float = 0.9,
) -> float | None:
    """Return the largest score up to which answers may be accepted at a target risk; None accepts nothing.

    ``empirical``: the largest calibration score t whose rows with score <= t err at a rate of at most
    ``target_risk``. It is tuned on the rows it is judged by, so about half of all splits give a rate above the
    target on new rows.

    ``upper_bound``: with probability at least ``confidence`` over the draw of the calibration rows, the error
    rate among new exchangeable rows with score <= t is at most ``target_risk``. A score passes when its
    Clopper-Pearson bound (Clopper and Pearson 1934) does. Many are tried, so they are tried in a fixed order,
    from few accepted rows to many, up to the first that fails, which costs no confidence (fixed-sequence
    testing: Angelopoulos et al., Learn then Test, arXiv 2110.01052). Conformal risk control (arXiv 2208.02814)
    does not apply: the error rate among accepted rows need not grow with t. At a target of 5 % and a confidence
    of 90 %, nothing passes with fewer than 46 calibration rows, nor when one of the 46 surest is a mistake.

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
    for name, level in (("target_risk", target_risk), ("confidence", confidence)):
        if not 0 < level < 1:
            raise ConfigError(f"{name} must be in (0, 1), got {level}")
    if guarantee not in ("empirical", "upper_bound"):
        raise ConfigError(f"guarantee must be empirical or upper_bound, got {guarantee!r}")
    check_columns(len(errors), scores=scores)
    values, group, counts = tie_groups(scores.detach().double().cpu())
    wrong = torch.bincount(group, weights=errors.detach().cpu().double(), minlength=len(values))
    within, answered = wrong.cumsum(0), counts.cumsum(0)
    if guarantee == "empirical":
        # 1 of 20 is not above 0.05 only because of rounding.
        fits = (within <= target_risk * answered + 1e-9).nonzero()[:, 0]
        return float(values[fits[-1]]) if len(fits) else None
    # Given the score at the edge, only the rows strictly below it are a sample from what is accepted: rows at
    # the edge count as mistakes if they are, but not as right answers.
    sample = answered - (counts - wrong).long()
    passes = binomial_cdf(within.long(), sample, target_risk) <= 1 - confidence
    # The first to try must not depend on the mistakes: the fewest rows that could pass, with none among them.
    fewest = math.ceil(math.log(1 - confidence) / math.log1p(-target_risk)) + 1
    start = int(torch.searchsorted(answered, fewest))
    passed = int(passes[start:].long().cumprod(0).sum())
    return float(values[start + passed - 1]) if passed else None


def binomial_cdf(successes: torch.Tensor, trials: torch.Tensor, probability: float) -> torch.Tensor:
    """Return P(X <= successes) for X ~ Binomial(trials, probability), elementwise, float64.

    Args:
        successes: (n,) int64, 0 to trials; trials: (n,) int64, from 0.
    """
    k = torch.arange(int(successes.max()) + 1, dtype=torch.float64)
    n = trials.double()[:, None]
    log_choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp_min(0) + 1)
    log_mass = log_choose + k * math.log(probability) + (n - k) * math.log1p(-probability)
    return log_mass.exp().masked_fill(k > successes[:, None], 0).sum(1).clamp_max(1)


def _quantile(values: torch.Tensor, level: float) -> float:
    return float(values.double().quantile(level))
