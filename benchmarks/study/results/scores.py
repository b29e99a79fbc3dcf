"""How good one method's probabilities are on one set of test rows, and how two methods differ on the same rows.

Bootstrap throughout (Efron 1979): a resample is written as how often it drew each row, so that every statistic of
every resample is a product with a (resamples, rows) matrix of counts. One such matrix serves all methods and seeds of
a task: whatever is compared is compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from laplora.errors import ConfigError, DataError
from laplora.linearised import entropy
from laplora.metrics.ranking import tie_groups
from laplora.metrics.scores import ReliabilityBin, evaluate_probs, reliability_bins, row_nll

BINS = 15
RESAMPLES = 2000
METRICS = ("nll", "ece", "accuracy", "brier", "auroc_error", "auprc_error", "aurc")
_LEVEL = torch.tensor([0.025, 0.975], dtype=torch.float64)

#: Mean differences below this, in nats, are rounding: two methods that divide the same logits by the same number.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Interval:
    """A statistic with its 95 % bootstrap percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class MethodScores:
    """Every metric of one method on one task's test rows.

    Attributes:
        rows: how many.
        values: metric -> value; NLL in nats, ECE over 15 bins; None for a ranking where all or no rows are mistakes.
        intervals: metric -> (low, high) at 95 %, for the metrics that have a value.
        confidence: mean largest probability.
        reliability: bins of the reliability diagram.
    """

    rows: int
    values: dict[str, float | None]
    intervals: dict[str, tuple[float, float]]
    confidence: float
    reliability: tuple[ReliabilityBin, ...]


def draw_counts(rows: int, resamples: int = RESAMPLES, seed: int = 0) -> torch.Tensor:
    """Return how often each resample drew each row, (resamples, rows) float64; each of its rows sums to ``rows``.

    Raises:
        ConfigError: no resamples.
        DataError: no rows.
    """
    if resamples < 1:
        raise ConfigError(f"a bootstrap needs at least one resample, got {resamples}")
    if rows < 1:
        raise DataError("a bootstrap needs at least one row, got 0")
    drawn = torch.randint(rows, (resamples, rows), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(resamples, rows, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(1, dtype=torch.float64).expand(resamples, rows)
    )


def score_method(
    probs: torch.Tensor, labels: torch.Tensor, score: torch.Tensor | None = None, *, counts: torch.Tensor
) -> MethodScores:
    """Return every metric of one method with its bootstrap interval.

    Args:
        probs: (rows, classes), each row summing to 1; labels: (rows,) int64.
        score: (rows,) the uncertainty that ranks the mistakes; the entropy of ``probs``, in nats, when None.
        counts: (resamples, rows) from ``draw_counts``.

    Raises:
        DataError, NonFiniteError: what laplora.metrics refuses, or counts of another number of rows.
    """
    if counts.shape[1] != len(labels):
        raise DataError(f"counts must be (resamples, {len(labels)}), got {tuple(counts.shape)}")
    whole = evaluate_probs(probs, labels, score, bins=BINS, resamples=0)
    probs = probs.detach().to("cpu", torch.float64)
    labels = labels.cpu()
    confidence, predicted = probs.max(1)
    errors = predicted != labels
    score = entropy(probs) if score is None else score.detach().to("cpu", torch.float64)

    squares = (probs - torch.nn.functional.one_hot(labels, probs.shape[1])).square().sum(1)
    per_row = torch.stack([row_nll(probs, labels), (~errors).double(), squares], 1)
    means = counts @ per_row / len(labels)
    resampled = {"nll": means[:, 0], "accuracy": means[:, 1], "brier": means[:, 2]}
    resampled |= {"ece": _resampled_ece(confidence, errors, counts)} | rankings(score, errors, counts)
    values = {
        "nll": whole.nll,
        "ece": whole.ece,
        "accuracy": whole.accuracy,
        "brier": whole.brier,
        "auroc_error": whole.auroc_error,
        "auprc_error": whole.auprc_error,
        "aurc": whole.risk_coverage.area,
    }
    return MethodScores(
        rows=len(labels),
        values=values,
        intervals={name: _interval(resampled[name]) for name in METRICS if values[name] is not None},
        confidence=float(confidence.mean()),
        reliability=tuple(reliability_bins(probs, labels, BINS)),
    )


def row_gap(probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return each row's largest probability less whether the answer is right, (rows,); its mean > 0: overconfident."""
    confidence, predicted = probs.double().max(1)
    return confidence - (predicted == labels).double()


def rankings(score: torch.Tensor, errors: torch.Tensor, counts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return how well the score ranks the mistakes on every resample, (resamples,) each.

    ``auroc_error``: P(a mistake scores higher than a right answer), ties counting half. ``auprc_error``: average
    precision with mistakes as positives, equal scores entering together. ``aurc``: mean over k of the error rate among
    the k rows of lowest score, rows of equal score counting with their group's rate: all as ``laplora.metrics.ranking``
    has them. The first two are NaN where a resample holds no mistake, the first also where it holds no right answer.

    Args:
        score: (rows,) float64, higher meaning less trusted; errors: (rows,) bool; counts: (resamples, rows).
    """
    order = score.argsort(stable=True)
    _, _, sizes = tie_groups(score)
    ends = sizes.cumsum(0) - 1
    drawn = counts.T[order]  # (rows, resamples): a row's counts lie together
    up_to = drawn.cumsum(0)[ends]
    caught = (drawn * errors[order, None]).cumsum(0)[ends]
    zero = torch.zeros_like(up_to[:1])
    before, found = torch.cat([zero, up_to[:-1]]), torch.cat([zero, caught[:-1]])
    group, wrong = up_to - before, caught - found
    total, mistakes = int(counts[0].sum()), caught[-1]
    answers = total - mistakes
    right, right_before = group - wrong, before - found
    auroc = (wrong * (right_before + right / 2)).sum(0) / (mistakes * answers)

    # From the highest scores down, a group included: flagged and, among them, mistakes.
    precision = (mistakes - found) / (total - before).clamp_min(1)
    auprc = (wrong * precision).sum(0) / mistakes

    # Within a group of size w and rate r, after N rows with E mistakes, the curve is (E + j r) / (N + j), j = 1 .. w:
    # it sums to r w + (E - r N) (H(N + w) - H(N)) with H the harmonic numbers.
    rate = wrong / group.clamp_min(1)
    steps = torch.cat([torch.zeros(1, dtype=torch.float64), 1 / torch.arange(1, total + 1, dtype=torch.float64)])
    at = steps.cumsum(0)[up_to.long()]
    span = torch.cat([at[:1], at[1:] - at[:-1]])
    aurc = (wrong + (found - rate * before) * span).sum(0) / total
    return {"auroc_error": auroc, "auprc_error": auprc, "aurc": aurc.clamp(0, 1)}


def pooled_means(per_row: Mapping[str, torch.Tensor], counts: torch.Tensor) -> dict[str, Interval]:
    """Return the mean over rows and seeds of each quantity, with its cluster bootstrap interval.

    A row's values under all seeds are drawn together: they share the row's difficulty and its label's noise, so that
    seeds are no further rows. The interval is over test rows; the seeds are those that were run.

    Args:
        per_row: name -> (seeds, rows), for example the difference of two methods' NLL.
        counts: (resamples, rows).
    """
    if not per_row:
        return {}
    rows = torch.stack([values.double().mean(0) for values in per_row.values()], 1)
    means, resampled = rows.mean(0), counts @ rows / counts.shape[1]
    low, high = resampled.quantile(_LEVEL, 0)
    return {
        name: Interval(*(0.0 if abs(v) < _ROUNDING else v for v in (float(means[i]), float(low[i]), float(high[i]))))
        for i, name in enumerate(per_row)
    }


def _resampled_ece(confidence: torch.Tensor, errors: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the ECE of every resample, (resamples,); bins (lower, upper] as in ``laplora.metrics.scores.ece``."""
    inner = torch.arange(1, BINS, dtype=torch.float64) / BINS
    index = torch.bucketize(confidence, inner)
    gaps = torch.zeros(len(confidence), BINS, dtype=torch.float64)
    gaps[torch.arange(len(confidence)), index] = (~errors).double() - confidence
    return (counts @ gaps).abs().sum(1) / counts.shape[1]


def _interval(values: torch.Tensor) -> tuple[float, float]:
    """Return the 95 % percentile interval of what is not NaN."""
    low, high = values[~values.isnan()].quantile(_LEVEL).tolist()
    return low, high
