"""How far measured figures may be from what was promised by chance alone.

Each limit is passed with a stated probability, ``chance``, when nothing is wrong: for one look at independent rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats

from laplora.metrics.checks import checked_column
from laplora.metrics.groups import mean_and_error
from laplora.metrics.scores import bin_index

#: The bins of the ECE, as ``laplora.metrics.scores.ece`` has them by default.
_BINS = 15
#: Simulated draws of the labels; 4 of them are beyond a chance of 0.001.
SIMULATIONS = 4000
#: Numbers drawn at a time: bounds memory to some megabytes.
_AT_A_TIME = 1_000_000


@dataclass(frozen=True)
class CalibratedEce:
    """The ECE that a perfectly calibrated model would measure on the same confidences.

    Attributes:
        mean: above 0, because a bin's accuracy is never exactly its confidence: the upward bias of the ECE.
        limit: passed with the stated chance.
    """

    mean: float
    limit: float


def calibrated_ece(confidence: torch.Tensor, *, chance: float = 0.001) -> CalibratedEce:
    """Return the ECE of a calibrated model, by drawing each row's correctness with its confidence as probability.

    Args:
        confidence: (rows,) largest probability of each row.
        chance: in (0, 1), of a calibrated model's ECE above the limit.

    Raises:
        DataError: no rows, or another shape.
        NonFiniteError: a confidence that is no number.
    """
    confidence = checked_column(confidence, "confidence")
    rows = len(confidence)
    # Float32 counts up to 16 million exactly, and is twice as fast.
    member = torch.nn.functional.one_hot(bin_index(confidence, _BINS), _BINS).float()
    expected = confidence @ member.double()
    likely, generator = confidence.float(), torch.Generator().manual_seed(0)
    gaps, step = [], max(1, _AT_A_TIME // rows)
    for start in range(0, SIMULATIONS, step):
        hits = torch.rand(min(step, SIMULATIONS - start), rows, generator=generator) < likely
        gaps.append(((hits.float() @ member).double() - expected).abs().sum(1) / rows)
    values = torch.cat(gaps)
    return CalibratedEce(mean=float(values.mean()), limit=float(values.quantile(1 - chance)))


def ece_limit(reliability: Sequence[Mapping[str, Any]]) -> float:
    """Return which ECE a calibrated model passes with a chance of 2.5 %, of the bins of a reliability diagram.

    A bin counts as rows of one confidence: its true spread would make the result smaller, by 1 % with 15 bins.

    Args:
        reliability: of each bin ``count`` and ``confidence``, as ``Evaluation.to_json`` gives them.
    """
    used = [(one["count"], one["confidence"]) for one in reliability if one["count"]]
    sizes, means = torch.tensor(used, dtype=torch.float64).T
    generator, wanted = torch.Generator().manual_seed(0), (SIMULATIONS, len(sizes))
    hits = torch.binomial(sizes.expand(wanted).clone(), means.clamp(0, 1).expand(wanted).clone(), generator=generator)
    return float(((hits - sizes * means).abs().sum(1) / sizes.sum()).quantile(0.975))


def lowest_coverage(level: float, rows: int, calibration_rows: int, *, chance: float = 0.001) -> float:
    """Return the lowest coverage of split-conformal sets that is within chance of their stated level.

    Two draws make the noise: the rows that are counted (binomial), and the calibration rows that fixed the sets'
    threshold, over which the true coverage is Beta(k, m + 1 - k) with k = ceil((m + 1) level) (Vovk, 2012, arXiv
    1209.2673; Angelopoulos and Bates, arXiv 2107.07511, section 3.2). Together the count is beta-binomial.

    Args:
        level: stated, in (0, 1); rows: counted, at least 1; calibration_rows: m.
        chance: in (0, 1), of a coverage below what is returned.
    """
    # 0.9 of 9 + 1 rows is not above 9 only because of rounding.
    k = math.ceil((calibration_rows + 1) * level - 1e-9)
    if k > calibration_rows:
        return 1.0  # too few calibration rows for the level: every label is in every set
    return float(stats.betabinom(rows, k, calibration_rows + 1 - k).ppf(chance)) / rows


def highest_risk(target_risk: float, rows: int, *, chance: float = 0.001) -> float:
    """Return the highest error rate that is within chance of a target risk, by the binomial of independent rows.

    Args:
        target_risk: in (0, 1); the mean one where rows have different ones, which errs to the high side.
        rows: counted, at least 1.
        chance: in (0, 1), of an error rate above what is returned.
    """
    return float(stats.binom(rows, target_risk).isf(chance)) / rows


def effective_rows(hits: torch.Tensor, groups: torch.Tensor | None) -> float:
    """Return how many independent rows tell as much of the share of hits as rows in groups (Korn and Graubard 1998).

    As many as there are groups where nothing differs, and never more than there are rows.

    Args:
        hits: (rows,) bool; groups: (rows,) int64, which group each row is of; None: each row is one.
    """
    count = len(hits) if groups is None else len(torch.unique(groups))
    if groups is None or count in (1, len(hits)):
        return count
    share, error = mean_and_error(hits.double(), groups)
    return min(len(hits), share * (1 - share) / error**2) if error > 0 and 0 < share < 1 else count


def share_interval(count: float, rows: float) -> tuple[float, float]:
    """Return the exact 95 % interval of a share, counted ``count`` of ``rows`` times (Clopper and Pearson 1934).

    Args:
        count: 0 to rows; rows: at least 1. For fractions (``effective_rows``), the interval is nearly exact.
    """
    low = float(stats.beta.ppf(0.025, count, rows - count + 1)) if count else 0.0
    high = float(stats.beta.isf(0.025, count + 1, rows - count)) if count < rows else 1.0
    return low, high
