"""Which predictive an artifact should serve by default, from losses on its calibration split."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from laplora.errors import ConfigError, DataError
from laplora.metrics.checks import check_columns
from laplora.metrics.groups import mean_and_error
from laplora.metrics.scores import bootstrap_interval

#: Resamples of the paired bootstrap.
_RESAMPLES = 2000
#: Of the trained adapter's posterior: preferred for their variance, and no candidates without one.
_OF_POSTERIOR = ("laplace", "laplace_conditioned")
#: Nats over the rows, how far above MAP a predictive may be at most: five times the 1 / 2 that a needless fit of one
#: number costs. Standard errors cannot see it: one outlier d among n rows makes mean and standard error both d / n.
_COST = 5 / 2
#: Standard errors by which a predictive may be above MAP, and within which a variance is worth a higher NLL.
_GUARD, _VARIANCE = 1.0, 0.25
#: Nats summed over the rows, below which two predictives' losses differ by nothing: these rows could not tell them
#: apart if every difference counted the same way.
_ALIKE = 1 / 2


@dataclass(frozen=True)
class Recommendation:
    """The predictive to serve by default.

    Attributes:
        predictive: its name.
        reason: one sentence with figures. They are of the rows that chose, so of several that are level the luckiest.
        table: by name ``nll`` (cross-fitted calibration NLL, mean over rows, nats), ``difference_to_map``, and
            ``low`` and ``high``, the difference's paired-bootstrap interval at 95 %.
    """

    predictive: str
    reason: str
    table: dict[str, dict[str, float]]


def recommend(
    losses: Mapping[str, torch.Tensor],
    seed: int = 0,
    *,
    has_variance: bool = True,
    accepting: Collection[str] | None = None,
    groups: torch.Tensor | None = None,
) -> Recommendation:
    """Return the predictive to serve by default.

    Differences are paired, row by row, and measured in their standard errors, of groups. In this order:

    0. Where ``laplace`` answers as MAP does, its losses no further from MAP's than 1 / 2 nat summed over the rows, the
       posterior has no variance to speak of. Its prior's precision is then large, often at the end of its search. No
       predictive of the posterior is a candidate.
    1. Every other predictive is fitted, and could have come out as MAP. It is a candidate unless its NLL is above MAP's
       by one standard error, or by more than 5 / 2n nats on n rows. If there is no candidate, MAP is served.
    2. The best candidate has the lowest NLL.
    3. But one of the posterior, if it is a candidate within 0.25 standard errors of the best one, is preferred to one
       without: it has a variance and an epistemic part. Of two it is the one of lower NLL.
    4. One that accepts nothing at the target risk gives way to one that does: to the choice among these by the same
       rule, MAP if that alone does. So it is only where one does.

    Why these numbers: docs/lab-notes.md. Calibration rows speak for rows like them: of shifted rows no rule promises
    anything.

    Args:
        losses: by predictive (rows,) the NLL of the same calibration rows, cross-fitted; ``map`` among them.
        seed: of the bootstrap behind the reported intervals; the choice does not depend on it.
        has_variance: False where what is served is without one by the same measure, whatever the folds had.
        accepting: those that accept something at the target risk; None: not known.
        groups: (rows,) int64, rows of one number are one unit of errors and intervals; None: each row is.

    Raises:
        ConfigError: no ``map``.
        DataError: fewer than two rows, or losses of different length.
        NonFiniteError: NaN or infinity in a loss.
    """
    if "map" not in losses:
        raise ConfigError(f"a recommendation compares with map, which is not among {sorted(losses)}")
    columns = {name: column.detach().to("cpu", torch.float64) for name, column in losses.items()}
    rows = len(columns["map"])
    check_columns(rows, **columns)
    if rows < 2:
        raise DataError("a recommendation needs at least two rows, got 1")
    table = _table(columns, seed, groups)
    if "laplace" in columns and answer_alike(columns["laplace"], columns["map"]):
        has_variance = False
    chosen, why = _choose(columns, groups, has_variance=has_variance)
    if accepting is not None and chosen not in accepting:
        some = {name: column for name, column in columns.items() if name in {"map", *accepting}}
        able, _ = _choose(some, groups, has_variance=has_variance)
        if able in accepting:
            chosen, why = able, f"preferred to {chosen}, which accepts nothing at the target risk"
    entry = table[chosen]
    figures = f"an NLL of {entry['nll']:.3f} nats on the {rows} calibration rows that chose it"
    if chosen != "map":
        interval = f"95 % {entry['low']:+.3f} to {entry['high']:+.3f}"
        figures += f", {entry['difference_to_map']:+.3f} against map, the fine-tuned model alone ({interval})"
    without = "" if has_variance else "; laplace answers as map does, so nothing of the posterior is a candidate"
    return Recommendation(chosen, f"{chosen} has {figures}; {why}{without}", table)


def answer_alike(losses: torch.Tensor, of_map: torch.Tensor) -> bool:
    """Return whether rows cannot tell a predictive from MAP: (rows,) losses of both, nats."""
    return float((losses - of_map).abs().sum()) < _ALIKE


def _choose(columns: Mapping[str, torch.Tensor], groups: torch.Tensor | None, *, has_variance: bool) -> tuple[str, str]:
    """Return the predictive and why."""
    means = {name: float(column.mean()) for name, column in columns.items()}
    rows = len(columns["map"])

    def clear_of(name: str, other: str) -> float:
        """Return the NLL above another's, in standard errors of the paired difference; 0 for equal losses."""
        mean, error = mean_and_error(columns[name] - columns[other], groups)
        return mean / error if error > 0 else math.copysign(math.inf, mean) if mean else 0.0

    def is_candidate(name: str) -> bool:
        if name == "map" or means[name] - means["map"] > _COST / rows:
            return False
        if name in _OF_POSTERIOR and not has_variance:
            return False
        above = clear_of(name, "map")
        return above != 0 and above < _GUARD

    candidates = [name for name in columns if is_candidate(name)]
    best = min(candidates, key=means.__getitem__, default="map")
    varied = [name for name in _OF_POSTERIOR if name in candidates and clear_of(name, best) <= _VARIANCE]
    chosen = min(varied, key=means.__getitem__, default=best)
    if chosen != best:
        return chosen, f"within {_VARIANCE:g} standard errors of {best}, and it has a variance"
    if means[best] == min(means.values()):
        return best, "the lowest of all"
    return best, "none that is lower leads beyond noise"


def _table(columns: Mapping[str, torch.Tensor], seed: int, groups: torch.Tensor | None) -> dict[str, dict[str, float]]:
    """Return the NLLs and their differences to MAP; the bootstrap intervals are paired, from the same resamples."""
    table = {}
    for name, column in columns.items():
        difference = column - columns["map"]

        def mean(rows: torch.Tensor, difference: torch.Tensor = difference) -> torch.Tensor:
            return difference[rows].mean(1)

        generator = torch.Generator().manual_seed(seed)
        low, high = bootstrap_interval(mean, len(column), resamples=_RESAMPLES, generator=generator, groups=groups)
        means = {"nll": float(column.mean()), "difference_to_map": float(difference.mean())}
        table[name] = means | {"low": low, "high": high}
    return table
