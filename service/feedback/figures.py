"""The figures of labelled predictions beside what the artifact records, and the drift of all answers. Pure.

Each figure has the limit that chance alone passes once in a thousand looks. If several labels may be right, each
label of an input is a question of its own, of whether it is present, and the figures are over all of them. Labels of an
input err together, so chance is then reckoned by input, and what has no limit that holds has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import get_args

import torch

from laplora.linearised import entropy
from laplora.metrics.drift import Drift, kolmogorov_smirnov
from laplora.metrics.noise import calibrated_ece, highest_risk, lowest_coverage
from laplora.metrics.ranking import error_auroc
from laplora.metrics.scores import accuracy, brier, ece, nll, row_nll, row_scores
from laplora.metrics.several_labels import binary_probs, evaluate_labels
from service.feedback.records import (
    AnswerSignals,
    Baseline,
    Figure,
    Figures,
    FlagErrors,
    Measured,
    Reference,
    Signal,
    SignalDrift,
    StoredPrediction,
    share,
)

#: One-sided probability of passing a limit by chance, and the normal's quantile of it.
CHANCE = 0.001
NORMAL = 3.0902
#: Fewer rows have no standard error: their spread says too little of the rows to come, and of equal rows it is 0.
FEWEST_ROWS = 30
#: Fewer mistakes of MAP give its gain no limit. Its rare confident mistakes are what the served predictive gains by;
#: without them MAP, being surer, looks better.
FEWEST_MISTAKES = 5
#: Drift is not looked for in fewer recent answers.
FEWEST_RECENT = 50


def measure(labelled: Sequence[tuple[StoredPrediction, int]], reference: Reference) -> Measured:
    """Return the figures of labelled predictions, each given with the bits of its right labels."""
    if not labelled:
        return Measured()
    predictions, right = zip(*labelled, strict=True)
    inputs, first = len(predictions), predictions[0]
    at_map, served = zip(*(one.probabilities() for one in predictions), strict=True)
    tables, has_map = (at_map if at_map[0] else served, served), bool(at_map[0])
    if first.several:
        map_probs, probs = (binary_probs(torch.tensor(table, dtype=torch.float64)) for table in tables)
        truth = torch.tensor([bits >> k & 1 for bits in right for k in range(len(first.labels))])
        scores = entropy(map_probs if reference.ranked_by_map else probs)
    else:
        map_probs, probs = (_padded(table) for table in tables)
        truth = torch.tensor([bits.bit_length() - 1 for bits in right])
        scores = _column([one.score for one in predictions])

    def by_input(questions: torch.Tensor) -> torch.Tensor:
        return questions.view(inputs, -1)

    answered = probs.argmax(1)
    if not first.several:  # of costs another label answers
        told = torch.tensor([one.label for one in predictions])
        answered = torch.where(told < 0, answered, told)
    wrong = by_input(probs.argmax(1) != truth)
    losses, map_losses = (by_input(row_nll(table, truth)).mean(1) for table in (probs, map_probs))
    map_mistakes = int(by_input(map_probs.argmax(1) != truth).any(1).sum())
    accepted = torch.tensor([one.accepted for one in predictions])
    risks = [one.target_risk for one in predictions if one.accepted]
    risk = math.fsum(risks) / len(risks) if risks else None
    labels_right = sum(bits.bit_count() for bits in right)
    held = sum((one.prediction_set & bits).bit_count() for one, bits in labelled)
    limits = _Limits(inputs, reference, several=first.several)
    calibrated = calibrated_ece(probs.amax(1), chance=CHANCE)
    figures = Figures(
        accuracy=Figure(accuracy(probs, truth), None, reference.accuracy),
        nll=Figure(nll(probs, truth), limits.nll(losses), reference.nll),
        ece=Figure(ece(probs, truth), limits.ece(calibrated.mean, calibrated.limit), reference.ece),
        ece_expected=calibrated.mean,
        brier=Figure(brier(probs, truth), None, reference.brier),
        auroc_error=Figure(error_auroc(scores, wrong.flatten()), None, reference.auroc_error),
        coverage=Figure(held / labels_right if labels_right else None, limits.coverage, reference.coverage),
        accepted=len(risks),
        # The share of an input's labels that are wrong varies less than one answer of the same risk: where several
        # may be right, the limit is too high, if anything.
        accepted_risk=Figure(
            float(by_input(answered != truth)[accepted].double().mean()) if risks else None,
            None if risk is None else highest_risk(risk, len(risks), chance=CHANCE),
            risk,
        ),
        map_nll=nll(map_probs, truth) if has_map else None,
        map_gain=_gain(map_losses - losses, map_mistakes) if has_map else Figure(None, None, 0.0),
    )
    labels = None
    if first.several:
        questions = row_scores(probs, truth, scores)
        _, quality = evaluate_labels(questions, truth, together=len(first.labels), resamples=0)
        labels = quality.to_json(first.labels)["labels"]
    return Measured(figures, labels, _by_flag(predictions, wrong.any(1).tolist()))


@dataclass(frozen=True)
class _Limits:
    """How far chance alone leads, of so many inputs beside an artifact's reference."""

    inputs: int
    reference: Reference
    several: bool

    @property
    def _both(self) -> float:
        """The factor of noise from the reference, which is a sample too: noise falls with the root of the rows."""
        return math.sqrt(1 + self.inputs / self.reference.rows)

    def nll(self, losses: torch.Tensor) -> float | None:
        """The highest within chance of the reference, whose noise is taken to be that of as many such rows."""
        noise = _standard_error(losses)
        if self.reference.nll is None or not self.reference.rows or noise is None:
            return None
        return self.reference.nll + NORMAL * noise * self._both

    def ece(self, expected: float, limit: float) -> float | None:
        """The highest within chance of a calibrated model's, and of the reference's where that is worse."""
        if self.several:
            return None
        if self.reference.ece is None or not self.reference.rows:
            return limit
        return max(limit, self.reference.ece + (limit - expected) * self._both)

    @property
    def coverage(self) -> float | None:
        """The lowest within chance of the stated level."""
        if self.several or self.reference.coverage is None:
            return None
        return lowest_coverage(self.reference.coverage, self.inputs, self.reference.calibration_rows, chance=CHANCE)


def drifts(
    reference: Reference,
    *,
    recent: Sequence[AnswerSignals],
    first: Sequence[AnswerSignals],
    later: Sequence[AnswerSignals],
) -> list[SignalDrift]:
    """Return every signal against every baseline there is for it; the rest as of ``Snapshot``."""
    drifts: list[SignalDrift] = []
    for signal in get_args(Signal):
        compared: dict[Baseline, Drift] = {}
        if reference.scores is not None and signal in reference.scores_rank and len(recent) >= FEWEST_RECENT:
            # Recent answers are compared by their scores, which order rows as this signal does.
            compared["calibration"] = kolmogorov_smirnov(reference.scores, _values(recent, "score"))
        early, late = _values(first, signal), _values(later, signal)
        if len(late) >= FEWEST_RECENT and len(early):
            compared["activation"] = kolmogorov_smirnov(early, late)
        drifts += [SignalDrift(signal, baseline, **asdict(drift)) for baseline, drift in compared.items()]
    return drifts


def _by_flag(predictions: Sequence[StoredPrediction], wrong: Sequence[bool]) -> dict[str, FlagErrors]:
    errors: dict[str, list[bool]] = {}
    for one, is_wrong in zip(predictions, wrong, strict=True):
        for name in one.flags:
            errors.setdefault(name, []).append(is_wrong)
    return {name: FlagErrors(len(some), share(some) or 0.0) for name, some in sorted(errors.items())}


def _gain(gains: torch.Tensor, map_mistakes: int) -> Figure:
    """Return the mean gain over MAP beside its limit, of (inputs,) MAP's losses less the served ones, nats."""
    noise = _standard_error(gains) if map_mistakes >= FEWEST_MISTAKES else None
    return Figure(float(gains.mean()), None if noise is None else -NORMAL * noise, 0.0)


def _standard_error(values: torch.Tensor) -> float | None:
    return float(values.std()) / math.sqrt(len(values)) if len(values) >= FEWEST_ROWS else None


def _values(rows: Sequence[AnswerSignals], signal: Signal) -> torch.Tensor:
    """Return (rows,) float64 the signal of the rows that have it."""
    values = [getattr(one, signal) for one in rows]
    return _column([value for value in values if value is not None])


def _column(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _padded(table: Sequence[Sequence[float]]) -> torch.Tensor:
    """Return (rows, classes) float64, 0 where a row had fewer labels."""
    classes = max(len(row) for row in table)
    return torch.tensor([[*row, *[0.0] * (classes - len(row))] for row in table], dtype=torch.float64)
