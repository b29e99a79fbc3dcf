"""How far measured figures may be from what was promised by chance alone.

Each limit is passed with a stated probability, ``chance``, when nothing is wrong: for one look at independent rows.
Everything is float64 on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import stats

from laplora.errors import ConfigError
from laplora.metrics.checks import checked_column

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


def calibrated_ece(
    confidence: torch.Tensor, *, bins: int = 15, chance: float = 0.001, seed: int = 0, simulations: int = SIMULATIONS
) -> CalibratedEce:
    """Return the ECE of a calibrated model, by drawing each row's correctness with its confidence as probability.

    Args:
        confidence: (rows,) largest probability of each row; bins and their edges as of ``laplora.metrics.scores.ece``.
        chance: in (0, 1), of a calibrated model's ECE above the limit.
        seed: of the draws.

    Raises:
        ConfigError: no bins, no simulations, or a chance out of range.
        DataError: no rows, or another shape.
        NonFiniteError: a confidence that is no number.
    """
    _check_chance(chance)
    if bins < 1 or simulations < 1:
        raise ConfigError(f"bins and simulations must be at least 1, got {bins} and {simulations}")
    confidence = checked_column(confidence, "confidence")
    rows = len(confidence)
    edges = torch.arange(1, bins, dtype=torch.float64) / bins
    # Float32 counts up to 16 million exactly, and is twice as fast.
    member = torch.nn.functional.one_hot(torch.bucketize(confidence, edges), bins).float()
    expected = confidence @ member.double()
    likely, generator = confidence.float(), torch.Generator().manual_seed(seed)
    gaps, step = [], max(1, _AT_A_TIME // rows)
    for start in range(0, simulations, step):
        hits = torch.rand(min(step, simulations - start), rows, generator=generator) < likely
        gaps.append(((hits.float() @ member).double() - expected).abs().sum(1) / rows)
    values = torch.cat(gaps)
    return CalibratedEce(mean=float(values.mean()), limit=float(values.quantile(1 - chance)))


def lowest_coverage(level: float, rows: int, calibration_rows: int, *, chance: float = 0.001) -> float:
    """Return the lowest coverage of split-conformal sets that is within chance of their stated level.

    Two draws make the noise: the rows that are counted (binomial), and the calibration rows that fixed the sets'
    threshold, over which the true coverage is Beta(k, m + 1 - k) with k = ceil((m + 1) level) (Vovk, 2012, arXiv
    1209.2673; Angelopoulos and Bates, arXiv 2107.07511, section 3.2). Together the count is beta-binomial.

    Args:
        level: stated, in (0, 1); calibration_rows: m; 0 leaves the second draw out.
        rows: counted, at least 1.
        chance: in (0, 1), of a coverage below what is returned.

    Raises:
        ConfigError: a level, a chance or a number of rows out of range.
    """
    _check_chance(chance)
    if not 0 < level < 1 or rows < 1 or calibration_rows < 0:
        raise ConfigError(f"level in (0, 1), rows >= 1, calibration_rows >= 0; got {level}, {rows}, {calibration_rows}")
    if calibration_rows == 0:
        counted = stats.binom(rows, level)
    else:
        # 0.9 of 9 + 1 rows is not above 9 only because of rounding.
        k = math.ceil((calibration_rows + 1) * level - 1e-9)
        if k > calibration_rows:
            return 1.0  # too few calibration rows for the level: every label is in every set
        counted = stats.betabinom(rows, k, calibration_rows + 1 - k)
    return float(counted.ppf(chance)) / rows


def highest_risk(target_risk: float, rows: int, *, chance: float = 0.001) -> float:
    """Return the highest error rate that is within chance of a target risk, by the binomial of independent rows.

    Args:
        target_risk: in (0, 1); the mean one where rows have different ones, which errs to the high side.
        rows: counted, at least 1.
        chance: in (0, 1), of an error rate above what is returned.

    Raises:
        ConfigError: a risk, a chance or a number of rows out of range.
    """
    _check_chance(chance)
    if not 0 < target_risk < 1 or rows < 1:
        raise ConfigError(f"target_risk in (0, 1) and rows >= 1, got {target_risk} and {rows}")
    return float(stats.binom(rows, target_risk).isf(chance)) / rows


def _check_chance(chance: float) -> None:
    if not 0 < chance < 1:
        raise ConfigError(f"chance must be in (0, 1), got {chance}")
