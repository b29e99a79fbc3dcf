"""The figures of labelled predictions beside what the artifact records, and the drift of all answers. Pure.

Each figure has the limit that chance alone passes once in a thousand looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import get_args

import torch

from laplora.metrics.drift import Drift, gap_above, kolmogorov_smirnov
from laplora.metrics.noise import calibrated_ece, highest_risk, lowest_coverage
from laplora.metrics.ranking import error_auroc
from laplora.metrics.scores import accuracy, brier, ece, nll, row_nll
from service.feedback.limits import CHANCE, NORMAL, standard_error, watched, watched_gain
from service.feedback.records import Answered, Kept, Reference
from service.feedback.several_labels import any_wrong
from service.http.schemas.feedback import Baseline, DriftOut, FiguresOut, FlagOut, Signal

#: Drift is not looked for in fewer recent answers.
FEWEST_RECENT = 50


def measure(labelled: Sequence[tuple[Kept, int]], reference: Reference) -> FiguresOut:
    """Return the figures of labelled predictions, at least one, given with the places of their labels."""
    rows = len(labelled)
    map_probs, probs = (_padded(table) for table in zip(*(k.probabilities() for k, _ in labelled), strict=True))
    labels = torch.tensor([label for _, label in labelled])
    losses, map_losses = row_nll(probs, labels), row_nll(map_probs, labels)
    wrong = (probs.argmax(1) != labels).tolist()
    accepted = [error for (kept, _), error in zip(labelled, wrong, strict=True) if kept.accepted]
    risks = [kept.target_risk for kept, _ in labelled if kept.accepted]
    calibrated = calibrated_ece(probs.amax(1), chance=CHANCE)
    noise = standard_error(losses)
    # The reference was measured on a sample too; noise falls with the root of the rows.
    both = math.sqrt(1 + rows / reference.rows) if reference.rows else math.nan
    nll_limit = None
    if reference.nll is not None and reference.rows and noise is not None:
        nll_limit = reference.nll + NORMAL * noise * both
    ece_limit = calibrated.limit
    if reference.ece is not None and reference.rows:
        ece_limit = max(ece_limit, reference.ece + (calibrated.limit - calibrated.mean) * both)
    coverage_limit = None
    if reference.coverage is not None:
        coverage_limit = lowest_coverage(reference.coverage, rows, reference.calibration_rows, chance=CHANCE)
    risk = math.fsum(risks) / len(risks) if risks else None
    risk_limit = None if risk is None else highest_risk(risk, len(risks), chance=CHANCE)
    auroc = error_auroc(_column([kept.score for kept, _ in labelled]), torch.tensor(wrong))
    covered = sum(kept.prediction_set >> label & 1 for kept, label in labelled)
    return FiguresOut(
        accuracy=watched(accuracy(probs, labels), None, reference.accuracy),
        # The highest within chance of the reference, whose noise is taken to be that of as many such rows.
        nll=watched(nll(probs, labels), nll_limit, reference.nll),
        # The highest within chance of a calibrated model's, and of the reference's where that is worse.
        ece=watched(ece(probs, labels), ece_limit, reference.ece),
        ece_expected=calibrated.mean,
        brier=watched(brier(probs, labels), None, reference.brier),
        auroc_error=watched(auroc, None, reference.auroc_error),
        coverage=watched(covered / rows, coverage_limit, reference.coverage),
        accepted=len(accepted),
        accepted_risk=watched(share(accepted), risk_limit, risk),
        map_nll=nll(map_probs, labels),
        map_gain=watched_gain(map_losses - losses, int((map_probs.argmax(1) != labels).sum())),
    )


def by_flag(labelled: Sequence[tuple[Kept, int]]) -> dict[str, FlagOut]:
    """Return, by flag, how many labelled predictions had it and how often they, or a label of them, were wrong."""
    errors: dict[str, list[bool]] = {}
    for kept, label in labelled:
        _, probs = kept.probabilities()
        wrong = any_wrong(kept, label) if kept.several else probs.index(max(probs)) != label
        for name in kept.flags:
            errors.setdefault(name, []).append(wrong)
    return {name: FlagOut(rows=len(some), error_rate=share(some) or 0.0) for name, some in sorted(errors.items())}


def drifts(
    reference: Reference, *, recent: Sequence[Answered], first: Sequence[Answered], later: Sequence[Answered]
) -> list[DriftOut]:
    """Return every signal against every baseline there is for it; the rest as of ``Snapshot``."""
    figures: list[DriftOut] = []
    for signal in get_args(Signal):
        found: dict[Baseline, Drift] = {}
        values = _values(recent, signal)
        if len(values) >= FEWEST_RECENT:
            if reference.scores is not None and signal in reference.scores_rank:
                # Recent answers are compared by their scores, which order rows as this signal does.
                found["calibration"] = kolmogorov_smirnov(reference.scores, _values(recent, "score"))
            elif signal == "epistemic" and reference.epistemic_above is not None:
                threshold, above = reference.epistemic_above
                found["calibration_quantile"] = gap_above(threshold, above, reference.calibration_rows, values)
        early, late = _values(first, signal), _values(later, signal)
        if len(late) >= FEWEST_RECENT and len(early):
            found["activation"] = kolmogorov_smirnov(early, late)
        figures += [DriftOut(**asdict(drift), signal=signal, reference=name) for name, drift in found.items()]
    return figures


def share(values: Sequence[bool]) -> float | None:
    """Return the share of true values, 0 to 1; None of none."""
    return sum(values) / len(values) if values else None


def _values(rows: Sequence[Answered], signal: Signal) -> torch.Tensor:
    """Return (rows,) float64 the signal of the rows that have it."""
    values = [getattr(one, signal) for one in rows]
    return _column([value for value in values if value is not None])


def _column(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _padded(table: Sequence[Sequence[float]]) -> torch.Tensor:
    """Return (rows, classes) float64, 0 where a row had fewer labels."""
    classes = max(len(row) for row in table)
    return torch.tensor([[*row, *[0.0] * (classes - len(row))] for row in table], dtype=torch.float64)
