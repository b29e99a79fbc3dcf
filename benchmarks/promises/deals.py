"""Dealing a table's rows into calibration and new rows again and again, and how often what was promised came true."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from benchmarks.promises.models import Table
from benchmarks.promises.rules import Fitted, fit_cross_fitted
from laplora.decisions.conformal import label_sets
from laplora.decisions.thresholds import Guarantee
from laplora.decisions.uncertainty import decompose, review_score
from laplora.linearised import entropy


@dataclass(frozen=True)
class Kept:
    """What one predictive did over all deals, one number a deal each.

    Attributes:
        risk: error rate of the new rows that were accepted; NaN where none was.
        below: error rate of those up to the threshold whatever their flags, a row of another label than MAP's under
            ``upper_bound`` counting as right, as what is promised there counts it.
        accepted: share of the new rows; wrong: share that were accepted and wrong.
        coverage: share whose label set holds the label; size: labels in a set.
    """

    risk: torch.Tensor
    below: torch.Tensor
    accepted: torch.Tensor
    wrong: torch.Tensor
    coverage: torch.Tensor
    size: torch.Tensor


def deal(
    table: Table, *, calibration_rows: int, draws: int, risk: float, level: float
) -> dict[tuple[Guarantee, str], Kept]:
    """Return by guarantee and predictive what each deal gave: fitted on some rows as served, judged on all others."""
    g = torch.Generator().manual_seed(0)
    lines: dict[tuple[Guarantee, str], list[list[float]]] = {}
    for _ in range(draws):
        order = torch.randperm(len(table.labels), generator=g)
        rows, new = order[:calibration_rows].sort().values, order[calibration_rows:]
        for guarantee, predictives in fit_cross_fitted(table, rows, risk, level).items():
            for name, one in predictives.items():
                lines.setdefault((guarantee, name), []).append(judged(table, name, one, new))
    return {key: Kept(*torch.tensor(fields, dtype=torch.float64).T) for key, fields in lines.items()}


def judged(table: Table, name: str, fitted: Fitted, new: torch.Tensor) -> list[float]:
    """Return the fields of ``Kept`` for one deal."""
    predictive, map_probs = table.columns[name].at(fitted.setting, new), table.columns["map"].at(0, new).probs
    labels, rule, flags = table.labels[new], fitted.thresholds.review, fitted.thresholds.flags
    wrong = predictive.probs.argmax(1) != labels
    score = review_score(fitted.thresholds, probs=predictive.probs, map_probs=map_probs)
    limit = -math.inf if rule.threshold is None else rule.threshold
    up_to = score <= limit
    # What decide and raise_flags give, for many rows at once: the flags that send a row to review.
    flagged = table.label_mass[new] < (flags["low_label_mass"].value or 0.0)
    if "high_epistemic" in flags:
        flagged |= decompose(predictive).epistemic > (flags["high_epistemic"].value or 0.0)
    accepted = up_to & ~flagged
    promised = entropy(map_probs) <= limit if rule.guarantee == "upper_bound" else up_to
    sets = label_sets("lac", predictive.probs, fitted.sets, table.class_mask[new])
    return [
        rate(wrong, accepted),
        rate(wrong & up_to, promised),
        float(accepted.double().mean()),
        float((wrong & accepted).double().mean()),
        float(sets.gather(1, labels[:, None]).double().mean()),
        float(sets.sum(1).double().mean()),
    ]


def rate(events: torch.Tensor, among: torch.Tensor) -> float:
    """Return the share of events among some rows; NaN where there are none."""
    return float(events[among].double().mean()) if among.any() else math.nan
