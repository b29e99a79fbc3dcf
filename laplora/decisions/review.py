"""Fitting, on a calibration split, when a prediction is flagged or goes to a person.

Every row of the split should come with the predictive that was fitted without it
(``laplora.predictive.cross_fitting``). docs/promises.md says what each guarantee promises.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy import special

from laplora.decisions.error_curve import error_curve
from laplora.decisions.thresholds import (
    Flag,
    FlagThreshold,
    Guarantee,
    PredictiveThresholds,
    ReviewRule,
    ReviewScore,
    Score,
)
from laplora.decisions.uncertainty import agreed_entropy, decompose
from laplora.errors import ConfigError, DataError
from laplora.linearised import PosteriorPredictive, entropy
from laplora.metrics.checks import check_columns
from laplora.metrics.ranking import error_auroc, tie_groups

#: Quantile above which ``high_epistemic`` is raised.
EPISTEMIC_LEVEL = 0.95
#: Quantile below which ``low_label_mass`` is raised.
LABEL_MASS_LEVEL = 0.01

#: By how much an entropy may be below 0.
ROUNDING = 1e-6
#: Calibration rows that the curve of errors counts for, at most; chosen with its prior.
_CURVE_ROWS = 100

#: Why each guarantee reviews by the score that it does.
_REASONS: dict[Guarantee, str] = {
    "empirical": "the entropy of the served probabilities, fixed before any mistake was seen",
    "upper_bound": "MAP's entropy, which nothing fitted on the calibration rows changes; a row with another label than "
    "MAP's is reviewed",
}


def fit_thresholds(
    predictives: Mapping[str, PosteriorPredictive],
    labels: torch.Tensor,
    label_mass: torch.Tensor,
    *,
    target_risk: float = 0.05,
    guarantee: Guarantee = "empirical",
    confidence: float = 0.9,
    entropies: Mapping[str, torch.Tensor] | None = None,
    together: int = 1,
    split: str = "calibration",
) -> dict[str, PredictiveThresholds]:
    """Return every threshold of every predictive by name, from the predictions on a calibration split.

    The review score is the entropy of the predictive's probabilities. For ``upper_bound`` it is MAP's: the bound is on
    MAP's mistakes, and a row where the predictive has another label is not accepted, so the bound holds whatever was
    fitted on the same rows.

    Args:
        predictives: by name, each row's under what was fitted without it. Without ``map`` among them, there is no upper
            bound.
        labels: (rows,) int64.
        label_mass: (rows,) probability that the full vocabulary gives the label tokens.
        target_risk, guarantee, confidence: as of ``accept_threshold``.
        entropies: by name (rows,) what review compares in place of the predictive's entropy: out-of-fold entropies on
            the scale of what is served (``laplora.predictive.cross_fitting.rank_aligned``).
        together: so many consecutive rows are the labels of one input, which is accepted or not as a whole: by
            ``of_inputs``, and ``high_epistemic`` compares their sum.
        split: what the rows are called where a threshold says whence it is.

    Raises:
        ConfigError: a level outside (0, 1), or an unknown guarantee.
        DataError: no rows, or columns of different length.
        NonFiniteError: NaN or infinity.
    """
    labels = labels.detach().cpu()
    check_columns(len(labels), labels=labels, label_mass=label_mass)
    bound, has_map = guarantee == "upper_bound", "map" in predictives
    if bound and not has_map:
        raise ConfigError("guarantee upper_bound is on MAP's mistakes, and there is no MAP here: use empirical")
    map_probs = predictives["map" if has_map else next(iter(predictives))].probs
    # Checks the options under either guarantee.
    map_threshold = accept_threshold(
        *of_inputs(entropy(map_probs), map_probs.argmax(1) != labels, together),
        target_risk,
        guarantee=guarantee,
        confidence=confidence,
    )
    fitted = {}
    for name, predictive in predictives.items():
        total = entropy(predictive.probs) if entropies is None else entropies[name]
        errors = predictive.probs.argmax(1) != labels
        flags: dict[Flag, FlagThreshold] = {
            "low_label_mass": _quantile_flag(label_mass, LABEL_MASS_LEVEL, "label mass", split),
        }
        scores: dict[Score, torch.Tensor] = {"map_entropy": entropy(map_probs)} if has_map else {}
        if name != "map":
            scores["total_entropy"] = total
        if (predictive.std > 0).any():  # the epistemic part of a point is only rounding
            scores["epistemic"] = decompose(predictive).epistemic
            summed = scores["epistemic"].view(-1, together).sum(1)
            flags["high_epistemic"] = _quantile_flag(summed, EPISTEMIC_LEVEL, "epistemic uncertainty", split)
        score: ReviewScore = "map_entropy" if bound or name == "map" else "total_entropy"
        compared = agreed_entropy(map_probs, predictive.probs) if bound else scores[score]
        compared, wrong = of_inputs(compared, errors, together)
        threshold = map_threshold if bound else accept_threshold(compared, wrong, target_risk)
        accepted = compared <= (-math.inf if threshold is None else threshold)
        rule = ReviewRule(
            score=score,
            threshold=threshold,
            target_risk=target_risk,
            guarantee=guarantee,
            confidence=confidence if bound else None,
            accepted=int(accepted.sum()),
            accepted_risk=float(wrong[accepted].double().mean()) if accepted.any() else None,
            auroc={key: error_auroc(values, errors) for key, values in scores.items()},
            reason=_REASONS[guarantee],
        )
        fitted[name] = PredictiveThresholds(errors=int(errors.sum()), flags=flags, review=rule)
    return fitted


def of_inputs(scores: torch.Tensor, wrong: torch.Tensor, together: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what ``accept_threshold`` takes, of rows of which so many consecutive ones are the labels of one input.

    An input's score is the largest of its labels', since it is reviewed if any of them is, and its error the share of
    its labels that is wrong. Exchangeable are inputs, not labels.

    Args:
        scores: (rows,); wrong: (rows,) bool.
    """
    if together == 1:
        return scores, wrong
    return scores.view(-1, together).amax(1), wrong.double().view(-1, together).mean(1)


def _quantile_flag(values: torch.Tensor, level: float, what: str, split: str) -> FlagThreshold:
    return FlagThreshold(
        value=float(values.double().quantile(level)),
        level=level,
        origin=f"{level:g} quantile of the {what} of {len(values)} rows of {split!r}",
    )


def accept_threshold(
    scores: torch.Tensor,
    errors: torch.Tensor,
    target_risk: float,
    *,
    guarantee: Guarantee = "empirical",
    confidence: float = 0.9,
) -> float | None:
    """Return the largest score up to which answers may be accepted at a target risk; None accepts nothing.

    ``empirical``: the largest calibration score t with ``(errors + 1 + k q) / (accepted + 1 + k)`` at most
    ``target_risk`` among the rows with score <= t. The new row counts as a mistake in advance, as in conformal risk
    control (Angelopoulos et al., arXiv 2208.02814), and k further rows, as many as there are and at most 100, err as
    often as a smooth curve says that the accepted ones do, q (``laplora.decisions.error_curve``).

    ``upper_bound``: with probability at least ``confidence`` over the draw of the calibration rows, the error
    rate among new exchangeable rows with score <= t is at most ``target_risk``. A score passes when its
    Clopper-Pearson bound (Clopper and Pearson 1934) does. Scores are tried from few accepted rows to many, up to the
    first that fails (fixed-sequence testing: Angelopoulos et al., Learn then Test, arXiv 2110.01052). It holds for
    scores that were not chosen or fitted on the same rows.

    Args:
        scores: (rows,) uncertainty, higher meaning less trusted; of ``empirical`` entropies, nats.
        errors: (rows,) bool, true at mistakes; of ``empirical`` also the share of a row that is wrong, in [0, 1].
        target_risk: in (0, 1).
        confidence: in (0, 1); of ``upper_bound`` only.

    Raises:
        ConfigError: a target risk or confidence outside (0, 1), or an unknown guarantee.
        DataError: no rows, shapes that do not fit, or of ``empirical`` a score below 0.
        NonFiniteError: NaN or infinity in a score.
    """
    for name, level in (("target_risk", target_risk), ("confidence", confidence)):
        if not 0 < level < 1:
            raise ConfigError(f"{name} must be in (0, 1), got {level}")
    if guarantee not in ("empirical", "upper_bound"):
        raise ConfigError(f"guarantee must be empirical or upper_bound, got {guarantee!r}")
    check_columns(len(errors), scores=scores)
    ranked = _Ranked.of(scores, errors)
    if guarantee == "empirical":
        if float(ranked.values[0]) < -ROUNDING:
            raise DataError(
                f"empirical reads scores as entropies, in nats, at least 0, got {float(ranked.values[0]):.4g}: give "
                "entropies, or take guarantee upper_bound"
            )
        # 1 of 20 is not above 0.05 only because of rounding.
        fits = (ranked.expected() <= target_risk + 1e-12).nonzero()[:, 0]
        return float(ranked.values[fits[-1]]) if len(fits) else None
    start = int(ranked.first_tried(torch.tensor([target_risk], dtype=torch.float64), confidence))
    passes = special.bdtr(ranked.within.numpy(), ranked.sample.numpy(), target_risk) <= 1 - confidence
    failing = (~torch.from_numpy(passes)[start:]).nonzero()[:, 0]
    end = start + int(failing[0]) if len(failing) else len(passes)
    return float(ranked.values[end - 1]) if end > start else None


def least_risk(
    scores: torch.Tensor,
    errors: torch.Tensor,
    *,
    above: float,
    guarantee: Guarantee = "empirical",
    confidence: float = 0.9,
) -> float | None:
    """Return the least target risk above another one, in tenths of a percent, with an ``accept_threshold``.

    None where there is none. Arguments as of ``accept_threshold``.
    """
    ranked, risks = _Ranked.of(scores, errors), torch.arange(1, 1000, dtype=torch.float64) / 1000
    if guarantee == "empirical":
        fits = ranked.expected().min() <= risks + 1e-12
    else:
        start = ranked.first_tried(risks, confidence)
        risks, start = risks[start < len(ranked.values)], start[start < len(ranked.values)]
        passes = special.bdtr(ranked.within[start].numpy(), ranked.sample[start].numpy(), risks.numpy())
        fits = torch.from_numpy(passes <= 1 - confidence)
    found = risks[fits & (risks > above)]
    return float(found[0]) if len(found) else None


@dataclass(frozen=True)
class _Ranked:
    """The calibration rows by score, equal ones together, each (groups,).

    Attributes:
        values: their scores, ascending; answered: rows up to each; within: mistakes among them.
        sample: rows that a bound on each is of. Given the score at the edge, only the rows strictly below it are a
            sample of what is accepted. Rows at the edge count if they are mistakes, never as right answers.
    """

    values: torch.Tensor
    answered: torch.Tensor
    within: torch.Tensor
    sample: torch.Tensor

    @classmethod
    def of(cls, scores: torch.Tensor, errors: torch.Tensor) -> _Ranked:
        values, group, counts = tie_groups(scores.detach().double().cpu())
        wrong = torch.bincount(group, weights=errors.detach().cpu().double(), minlength=len(values))
        answered = counts.cumsum(0)
        return cls(values, answered, wrong.cumsum(0), answered - (counts - wrong).long())

    def expected(self) -> torch.Tensor:
        """Return (groups,) the error rate to expect of new rows up to each value, as ``empirical`` has it."""
        counts = self.answered.diff(prepend=self.answered.new_zeros(1))
        curve = error_curve(self.values, self.within.diff(prepend=self.within.new_zeros(1)), counts)
        further = self.answered[-1].clamp_max(_CURVE_ROWS)
        return (self.within + 1 + further * (curve * counts).cumsum(0) / self.answered) / (self.answered + 1 + further)

    def first_tried(self, risks: torch.Tensor, confidence: float) -> torch.Tensor:
        """Return the group that is tried first for each risk (risks,) float64, which must not depend on the mistakes.

        It has the fewest rows below it that could pass, with no mistake; where there are too few, it is one past the
        last.
        """
        fewest = math.log(1 - confidence) / torch.log1p(-risks)  # infinite for the smallest
        below = torch.cat([self.answered.new_zeros(1), self.answered[:-1]])
        return torch.searchsorted(below.double(), fewest.ceil())
