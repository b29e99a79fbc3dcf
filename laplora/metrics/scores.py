"""How good class probabilities are: accuracy, NLL, ECE, Brier, and everything of one method with its intervals.

Everywhere: ``probs`` is (rows, classes), each row summing to 1, exactly 0 at classes that are not possible for
the row; ``labels`` is (rows,) int64, or soft: (rows, classes) float64, their probabilities. The most probable one is
then right, the NLL is the cross-entropy, and the Brier score the squared distance to them. Everything is computed in
float64 on the CPU and returned as plain floats.

Every function raises DataError for no rows, shapes that do not fit, labels out of range and rows that are not
probabilities, and NonFiniteError for NaN or infinity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch

from laplora.errors import ConfigError, DataError
from laplora.linearised import cross_entropy, entropy, most_probable, targets_of
from laplora.metrics.checks import checked_probs, checked_score
from laplora.metrics.groups import resampled
from laplora.metrics.ranking import (
    RiskCoverage,
    grouped_area,
    grouped_auprc,
    grouped_auroc,
    none_if_nan,
    risk_coverage,
    tie_groups,
)

#: A label of probability 0 would make the NLL infinite: it counts as the smallest normal float64 (708 nats).
_SMALLEST = torch.finfo(torch.float64).tiny

#: The level of every interval.
_LEVEL = 0.95

#: Row numbers of the bootstrap that are held at a time: what is made of so many stays in a core's cache.
_DRAWN_AT_ONCE = 2**13

#: Metrics of soft labels, or of those that have an order.
_SOME = ("kl", "mae", "rps")

#: A served curve has at most this many points.
_CURVE_POINTS = 200


@dataclass(frozen=True)
class ReliabilityBin:
    """One bar of a reliability diagram.

    Attributes:
        lower, upper: the bin is (lower, upper]; the first one also holds a confidence of 0.
        count: rows in the bin.
        confidence: their mean largest probability; None in an empty bin.
        accuracy: their share of right answers; None in an empty bin.
    """

    lower: float
    upper: float
    count: int
    confidence: float | None
    accuracy: float | None


class RowScores(NamedTuple):
    """The scores of single rows that metrics average, (rows,) float64 each.

    Attributes:
        nll: nats; brier: squared error summed over classes.
        confidence: the largest probability; hits: 1 where its class is right, else 0.
        score: the uncertainty that ranks the mistakes.
    """

    nll: torch.Tensor
    brier: torch.Tensor
    confidence: torch.Tensor
    hits: torch.Tensor
    score: torch.Tensor


@dataclass(frozen=True)
class Evaluation:
    """Every metric of one method on one split.

    Attributes:
        rows: how many.
        accuracy: share of right answers.
        nll: mean negative log-likelihood, nats.
        ece: expected calibration error.
        brier: squared error summed over classes, mean over rows; 0 to 2.
        auroc_error: how well the score ranks the mistakes; None when all or no rows are mistakes.
        auprc_error: average precision of finding the mistakes by the score; None without a mistake.
        intervals: name of a metric -> (low, high), bootstrap percentile interval at 95 %.
        reliability: bins of the reliability diagram.
        risk_coverage: the curve over the same score as ``auroc_error``.
        mae: of labels that have an order the mean distance of the answer from the label, in places; rps: their ranked
            probability score; None of others.
        kl: of soft labels the NLL less the labels' own entropy, nats: 0 where answers equal labels; None of hard ones.
    """

    rows: int
    accuracy: float
    nll: float
    ece: float
    brier: float
    auroc_error: float | None
    auprc_error: float | None
    intervals: dict[str, tuple[float, float]]
    reliability: tuple[ReliabilityBin, ...]
    risk_coverage: RiskCoverage
    kl: float | None = None
    mae: float | None = None
    rps: float | None = None

    @property
    def aurc(self) -> float:
        """Area under the risk-coverage curve: the mean error rate over all coverages."""
        return self.risk_coverage.area

    @property
    def excess_aurc(self) -> float:
        """``aurc`` above that of a perfect ranking at the same accuracy."""
        return self.risk_coverage.excess

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, lists and dicts; a long risk-coverage curve is thinned to 200 points.

        It leaves out ``kl``, ``mae`` and ``rps`` where they are None.
        """
        points = torch.linspace(0, self.rows - 1, min(self.rows, _CURVE_POINTS), dtype=torch.float64).round().long()
        plain = {name: value for name, value in asdict(self).items() if name not in _SOME or value is not None}
        return plain | {
            "aurc": self.aurc,
            "excess_aurc": self.excess_aurc,
            "intervals": {name: list(pair) for name, pair in self.intervals.items()},
            "reliability": [asdict(one) for one in self.reliability],
            "risk_coverage": {
                "coverage": self.risk_coverage.coverage[points].tolist(),
                "risk": self.risk_coverage.risk[points].tolist(),
                "area": self.risk_coverage.area,
            },
        }


def accuracy(probs: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of rows whose largest probability is the label's; the first of equal ones counts."""
    probs, labels = checked_probs(probs, labels)
    return _mean(probs.argmax(1) == most_probable(labels))


def nll(probs: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the mean of -ln p(label), nats; a label of probability 0 counts 708."""
    probs, labels = checked_probs(probs, labels)
    return _mean(row_nll(probs, labels))


def brier(probs: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the squared distance to the label's probabilities, summed over classes, mean over rows (Brier 1950)."""
    probs, labels = checked_probs(probs, labels)
    return _mean(_row_brier(probs, labels))


def ece(probs: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """Return the expected calibration error over equal-width bins (Guo et al., arXiv 1706.04599, equation 3).

    The mean over rows of |accuracy - confidence| of their bin. Bins are (lower, upper], so a confidence of
    exactly 1 is in the last bin; one of 0 is in the first.
    """
    return ece_of(reliability_bins(probs, labels, bins))


def ece_of(bins: Sequence[ReliabilityBin]) -> float:
    """Return ``ece``, of ``reliability_bins``."""
    gaps = [
        b.count * abs(b.accuracy - b.confidence) for b in bins if b.accuracy is not None and b.confidence is not None
    ]
    return sum(gaps) / sum(b.count for b in bins)


def reliability_bins(probs: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> list[ReliabilityBin]:
    """Return one entry for each of ``bins`` equal-width confidence bins, empty ones included."""
    return bins_of(row_scores(probs, labels), bins)


def bins_of(rows: RowScores, bins: int) -> list[ReliabilityBin]:
    """Return ``reliability_bins`` of rows whose scores are there already."""
    index = bin_index(rows.confidence, bins)
    counts = torch.bincount(index, minlength=bins).tolist()
    confidences = torch.bincount(index, weights=rows.confidence, minlength=bins).tolist()
    hits = torch.bincount(index, weights=rows.hits, minlength=bins).tolist()
    return [
        ReliabilityBin(i / bins, (i + 1) / bins, int(n), c / n if n else None, h / n if n else None)
        for i, (n, c, h) in enumerate(zip(counts, confidences, hits, strict=True))
    ]


def bootstrap_interval(
    statistic: Callable[[torch.Tensor], torch.Tensor],
    n: int,
    *,
    resamples: int = 1000,
    generator: torch.Generator,
    groups: torch.Tensor | None = None,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval at 95 % of a statistic over ``n`` rows (Efron 1979).

    Args:
        statistic: takes (draws, rows) int64 row numbers, drawn with replacement, and returns (draws,) its values; a
            NaN leaves that resample out.
        generator: of the row numbers; the same seed gives two methods the same resamples.
        groups: (n,) int64, rows of one number are drawn together; None: each row is drawn by itself.

    Raises:
        DataError: NaN on every resample.
    """
    at_once = max(1, _DRAWN_AT_ONCE // n)
    values = []
    for done in range(0, resamples, at_once):
        draws = min(at_once, resamples - done)
        drawn = (
            [torch.randint(n, (draws, n), generator=generator)]
            if groups is None
            else resampled(groups, draws, generator)
        )
        values += [statistic(rows).double() for rows in drawn]
    kept = torch.cat(values)
    kept = kept[~kept.isnan()]
    if not len(kept):
        raise DataError("the statistic is NaN on every resample")
    ends = torch.tensor([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], dtype=torch.float64)
    low, high = kept.quantile(ends).tolist()
    return low, high


def evaluate_probs(
    probs: torch.Tensor,
    labels: torch.Tensor,
    score: torch.Tensor | None = None,
    *,
    bins: int = 15,
    resamples: int = 1000,
    seed: int = 0,
    groups: torch.Tensor | None = None,
    ordered: bool = False,
) -> Evaluation:
    """Return every metric of one method, with 95 % bootstrap intervals.

    The ECE has none: drawing rows anew pushes it up, and the interval could leave out the ECE itself.
    ``laplora.metrics.noise.ece_limit`` says how large chance alone makes it.

    Args:
        probs: (rows, classes), each row summing to 1; labels: (rows,) int64.
        score: (rows,) the uncertainty that should rank the mistakes; the entropy of ``probs`` when None.
        resamples: of the bootstrap; 0 leaves the intervals out.
        seed: of the bootstrap. The same seed and rows give paired resamples for two methods.
        groups: as of ``bootstrap_interval``; ordered: whether the labels are in an order.
    """
    rows = row_scores(probs, labels, score)
    found = evaluate_rows(rows, bins=bins, resamples=resamples, seed=seed, groups=groups)
    order: Any = order_errors(probs, labels) if ordered else {}
    return replace(found, kl=kl_of(found.nll, labels), **order)


def order_errors(probs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return the ``mae`` and the ``rps`` of labels that have an order.

    The first is the mean distance of the most probable label from the right one, in places. The second is the ranked
    probability score (Epstein 1969): the squared distance of the cumulated probabilities from those of the label, 0 or
    1 of a hard one, mean over the cuts between labels and over rows; 0 to 1.
    """
    probs, labels = checked_probs(probs, labels)
    apart = (probs.cumsum(1) - targets_of(labels, probs.shape[1]).cumsum(1))[:, :-1]
    return {"mae": _mean((probs.argmax(1) - most_probable(labels)).abs()), "rps": _mean(apart.square())}


def kl_of(nll: float, labels: torch.Tensor) -> float | None:
    """Return an NLL less the mean entropy of soft labels, the KL divergence from them, nats; None of hard ones."""
    return nll - _mean(entropy(labels)) if labels.is_floating_point() else None


def row_scores(probs: torch.Tensor, labels: torch.Tensor, score: torch.Tensor | None = None) -> RowScores:
    """Return what ``evaluate_rows`` makes metrics of, so that many rows can come a page at a time; as there."""
    probs, labels = checked_probs(probs, labels)
    confidence, predicted = probs.max(1)
    hits = predicted == most_probable(labels)
    score, _ = checked_score(entropy(probs) if score is None else score, ~hits)
    return RowScores(row_nll(probs, labels), _row_brier(probs, labels), confidence, hits.double(), score)


def evaluate_rows(
    rows: RowScores, *, bins: int = 15, resamples: int = 1000, seed: int = 0, groups: torch.Tensor | None = None
) -> Evaluation:
    """Return what ``evaluate_probs`` does, of rows whose scores are there already."""
    losses, row_brier, _, hits, score = rows
    errors = hits == 0
    _, group, _ = tie_groups(score)
    auroc, auprc = none_if_nan(float(grouped_auroc(group, errors))), none_if_nan(float(grouped_auprc(group, errors)))
    # The same numbers as the public functions, from per-row parts made once, of many resamples at a time.
    statistics: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "accuracy": lambda i: hits[i].mean(1),
        "nll": lambda i: losses[i].mean(1),
        "brier": lambda i: row_brier[i].mean(1),
        "aurc": lambda i: grouped_area(group[i], errors[i]),
    }
    if auroc is not None:
        statistics["auroc_error"] = lambda i: grouped_auroc(group[i], errors[i])
        statistics["auprc_error"] = lambda i: grouped_auprc(group[i], errors[i])
    intervals = {
        name: bootstrap_interval(
            statistic,
            len(hits),
            resamples=resamples,
            generator=torch.Generator().manual_seed(seed),
            groups=groups,
        )
        for name, statistic in (statistics.items() if resamples else ())
    }
    reliability = tuple(bins_of(rows, bins))
    return Evaluation(
        rows=len(hits),
        accuracy=_mean(hits),
        nll=_mean(losses),
        ece=ece_of(reliability),
        brier=_mean(row_brier),
        auroc_error=auroc,
        auprc_error=auprc,
        intervals=intervals,
        reliability=reliability,
        risk_coverage=risk_coverage(score, errors),
    )


def _mean(values: torch.Tensor) -> float:
    return float(values.double().mean())


def row_nll(probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return (rows,) -ln p(label), nats, of soft ones the cross-entropy; a label of probability 0 counts 708."""
    return cross_entropy(probs.clamp_min(_SMALLEST).log(), labels)


def _row_brier(probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (probs - targets_of(labels, probs.shape[1])).square().sum(1)


def bin_index(confidence: torch.Tensor, bins: int) -> torch.Tensor:
    """Return (rows,) the bin of each confidence; bins are closed on the right."""
    if bins < 1:
        raise ConfigError(f"bins must be at least 1, got {bins}")
    inner = torch.arange(1, bins, dtype=torch.float64) / bins
    return torch.bucketize(confidence, inner)
