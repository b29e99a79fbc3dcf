"""Which predictive an artifact should serve by default, from losses on its calibration split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from laplora.errors import ConfigError, DataError
from laplora.metrics.checks import check_columns
from laplora.metrics.scores import bootstrap_interval

#: Resamples of the paired bootstrap.
_RESAMPLES = 2000

#: Predictives that are MAP for one value of what is fitted: a temperature of 1, a prior of no variance, labels that
#: correct nothing.
NESTING = frozenset({"temperature", "conditioned", "laplace", "laplace_conditioned"})
#: Of one forward pass, and nothing else that takes time.
ONE_FORWARD = frozenset({"temperature", "conditioned"})
#: Preferred for their variance.
WITH_VARIANCE = ("laplace", "laplace_conditioned")
#: Of the trained adapter's posterior, dearer than a forward pass: without a variance nothing is left to pay for.
OF_POSTERIOR = frozenset({"laplace", "laplace_conditioned"})


@dataclass(frozen=True)
class Rule:
    """The limits by which ``choose`` decides.

    Attributes:
        cost: nats over the rows, how far above MAP a predictive may be at most: five times the 1 / 2 that a needless
            fit of one number costs. Standard errors cannot see it: one outlier d among n rows makes mean and
            standard error both d / n.
        nested_guard: standard errors by which a predictive that could have been MAP may be above it.
        guard: standard errors by which any other must be below it.
        cheaper: standard errors within which a cheaper one is as good as the best.
        variance: standard errors within which one of ``WITH_VARIANCE`` is.
        alike: nats summed over the rows, below which two predictives' losses differ by nothing: these rows could not
            tell them apart if every difference counted the same way.
    """

    cost: float = 5 / 2
    nested_guard: float = 1.0
    guard: float = 0.5
    cheaper: float = 1.0
    variance: float = 0.25
    alike: float = 1 / 2


@dataclass(frozen=True)
class Recommendation:
    """The predictive to serve by default.

    Attributes:
        predictive: its name.
        reason: one sentence with figures.
        table: by name ``nll`` (cross-fitted calibration NLL, mean over rows, nats), ``difference_to_map``, and
            ``low`` and ``high``, the difference's paired-bootstrap interval at 95 %.
    """

    predictive: str
    reason: str
    table: dict[str, dict[str, float]]


def recommend(
    losses: Mapping[str, torch.Tensor], order: Sequence[str], seed: int = 0, *, has_variance: bool = True
) -> Recommendation:
    """Return the predictive to serve by default.

    Differences are paired, row by row, and measured in their standard errors. In this order:

    0. Where ``laplace`` answers as MAP does, its losses no further from MAP's than 1 / 2 nat summed over the rows, the
       posterior has no variance to speak of. Its prior's precision is then large, often at the end of its search. No
       predictive of the posterior (``OF_POSTERIOR``) is a candidate.
    1. A predictive that is fitted and could have come out as MAP (``NESTING``) is a candidate unless its NLL is above
       MAP's by one standard error, or by more than 5 / 2n nats on n rows. Any other must be below MAP by more than
       0.5 standard errors. If there is no candidate, MAP is served.
    2. The best candidate has the lowest NLL.
    3. Among the candidates within one standard error of it, the cheapest is chosen (the one-standard-error rule:
       Breiman et al. 1984). Of those that cost one forward pass (``ONE_FORWARD``) it is the one of lowest NLL.
    4. But one of ``WITH_VARIANCE``, if it is a candidate within 0.25 standard errors of the best one, is preferred to a
       cheaper one: it has a variance and an epistemic part. Of two it is the one of lower NLL.

    Why these numbers: docs/lab-notes.md. Calibration rows speak for rows like them: of shifted rows no rule promises
    anything.

    Args:
        losses: by predictive (rows,) the NLL of the same calibration rows, cross-fitted; ``map`` among them.
        order: the same names from the cheapest to serve to the dearest.
        seed: of the bootstrap behind the reported intervals; the choice does not depend on it.
        has_variance: False where what is served is without one by the same measure, whatever the folds had.

    Raises:
        ConfigError: no ``map``, or ``order`` that does not name every predictive once.
        DataError: fewer than two rows, or losses of different length.
        NonFiniteError: NaN or infinity in a loss.
    """
    names = list(order)
    if "map" not in losses or sorted(names) != sorted(losses):
        raise ConfigError(f"order must name every predictive once, map among them: {names} for {sorted(losses)}")
    columns = {name: losses[name].detach().to("cpu", torch.float64) for name in names}
    rows = len(columns["map"])
    check_columns(rows, **columns)
    if rows < 2:
        raise DataError("a recommendation needs at least two rows, got 1")
    table = _table(columns, seed)
    has_variance = has_variance and not _laplace_is_map(columns)
    chosen, why = choose(columns, has_variance=has_variance)
    entry = table[chosen]
    figures = f"an NLL of {entry['nll']:.3f} nats on {rows} calibration rows"
    if chosen != "map":
        interval = f"95 % {entry['low']:+.3f} to {entry['high']:+.3f}"
        figures += f", {entry['difference_to_map']:+.3f} against map, the fine-tuned model alone ({interval})"
    without = "" if has_variance else "; laplace answers as map does, so nothing of the posterior is a candidate"
    return Recommendation(chosen, f"{chosen} has {figures}; {why}{without}", table)


def answer_alike(losses: torch.Tensor, of_map: torch.Tensor, rule: Rule = Rule()) -> bool:
    """Return whether rows cannot tell a predictive from MAP: (rows,) losses of both, nats."""
    return float((losses - of_map).abs().sum()) < rule.alike


def _laplace_is_map(columns: Mapping[str, torch.Tensor], rule: Rule = Rule()) -> bool:
    return "laplace" in columns and answer_alike(columns["laplace"], columns["map"], rule)


def choose(columns: Mapping[str, torch.Tensor], rule: Rule = Rule(), *, has_variance: bool = True) -> tuple[str, str]:
    """Return the predictive and why.

    Args:
        columns: losses as ``recommend`` takes them, from the cheapest predictive to the dearest.
        rule: the one that is served; benchmarks compare others with it.
        has_variance: as of ``recommend``.
    """
    has_variance = has_variance and not _laplace_is_map(columns, rule)
    means = {name: float(column.mean()) for name, column in columns.items()}
    rows = len(columns["map"])

    def clear_of(name: str, other: str) -> float:
        """Return the NLL above another's, in standard errors of the paired difference; 0 for equal losses."""
        difference = columns[name] - columns[other]
        mean, error = float(difference.mean()), float(difference.std()) / math.sqrt(rows)
        return mean / error if error > 0 else math.copysign(math.inf, mean) if mean else 0.0

    def is_candidate(name: str) -> bool:
        if name == "map" or means[name] - means["map"] > rule.cost / rows:
            return False
        if name in OF_POSTERIOR and not has_variance:
            return False
        lead = -clear_of(name, "map")
        return lead != 0 and lead > (-rule.nested_guard if name in NESTING else rule.guard)

    candidates = [name for name in columns if is_candidate(name)]
    best = min(candidates, key=means.__getitem__, default="map")
    close = [name for name in candidates if clear_of(name, best) <= rule.cheaper]
    varied = [name for name in WITH_VARIANCE if name in candidates and clear_of(name, best) <= rule.variance]
    if varied:
        chosen = min(varied, key=means.__getitem__)
        why = f"within {rule.variance:g} standard errors of {best}, and it has a variance"
    else:
        cheapest = close[0] if close else "map"
        alike = [name for name in close if name in ONE_FORWARD] if cheapest in ONE_FORWARD else [cheapest]
        chosen = min(alike, key=means.__getitem__)
        why = f"within one standard error of {best}, and cheaper"
    if chosen != best:
        return chosen, why
    if means[best] == min(means.values()):
        return best, "the lowest of all"
    return best, "none that is lower leads beyond noise"


def _table(columns: Mapping[str, torch.Tensor], seed: int) -> dict[str, dict[str, float]]:
    """Return the NLLs and their differences to MAP; the bootstrap intervals are paired, from the same resamples."""
    table = {}
    for name, column in columns.items():
        difference = column - columns["map"]

        def mean(rows: torch.Tensor, difference: torch.Tensor = difference) -> torch.Tensor:
            return difference[rows].mean(1)

        generator = torch.Generator().manual_seed(seed)
        low, high = bootstrap_interval(mean, len(column), resamples=_RESAMPLES, generator=generator)
        means = {"nll": float(column.mean()), "difference_to_map": float(difference.mean())}
        table[name] = means | {"low": low, "high": high}
    return table
