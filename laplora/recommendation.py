"""Which predictive an artifact should serve by default, from losses on its calibration split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from laplora.errors import ConfigError, DataError, NonFiniteError

FitScore = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

#: Resamples of the paired bootstrap.
_RESAMPLES = 2000


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


def cross_fitted_nll(fit_score: FitScore, rows: int, folds: int = 5, seed: int = 0) -> torch.Tensor:
    """Return (rows,) the NLL of every row under parameters fitted without it, float64, nats.

    What is fitted on the calibration split (a temperature, a prior precision) is fitted once per fold on the
    other folds. Fold membership depends on the seed and the number of rows alone.

    Args:
        fit_score: takes the row numbers to fit on and those to score, both int64 and ascending, and returns the
            latter's NLL, (scored,).
        rows: of the calibration split; with fewer than ``folds``, each row is a fold.

    Raises:
        ConfigError: fewer than two folds.
        DataError: fewer than two rows, or scores of another shape.
        NonFiniteError: NaN or infinity in a score.
    """
    if folds < 2:
        raise ConfigError(f"cross-fitting needs at least two folds, got {folds}")
    if rows < 2:
        raise DataError(f"cross-fitting needs at least two rows, got {rows}")
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    scores = torch.zeros(rows, dtype=torch.float64)
    for fold in order.tensor_split(min(folds, rows)):
        held_out = torch.zeros(rows, dtype=torch.bool)
        held_out[fold] = True
        scored = held_out.nonzero()[:, 0]
        got = fit_score((~held_out).nonzero()[:, 0], scored).detach().to("cpu", torch.float64)
        if got.shape != scored.shape:
            raise DataError(f"fit_score must return ({len(scored)},) losses, got {tuple(got.shape)}")
        if not got.isfinite().all():
            raise NonFiniteError("fit_score returned NaN or infinity")
        scores[scored] = got
    return scores


def recommend(losses: Mapping[str, torch.Tensor], order: Sequence[str], seed: int = 0) -> Recommendation:
    """Return the predictive to serve by default.

    Args:
        losses: by predictive (rows,) the NLL of the same calibration rows, cross-fitted; ``map`` among them.
        order: the same names from the cheapest to serve to the dearest.
        seed: of the bootstrap.

    Raises:
        ConfigError: no ``map``, or ``order`` that does not name every predictive once.
        DataError: no rows, or losses of different length.
        NonFiniteError: NaN or infinity in a loss.
    """
    names = list(order)
    if "map" not in losses or sorted(names) != sorted(losses):
        raise ConfigError(f"order must name every predictive once, map among them: {names} for {sorted(losses)}")
    table = _table(losses, names, seed)
    stacked = torch.stack([losses[name].detach().to("cpu", torch.float64) for name in names], 1)
    eligible = [n for n in names if n == "map" or table[n]["high"] < 0]
    best = min(eligible, key=lambda n: table[n]["nll"])

    def within_noise(name: str) -> bool:
        difference = stacked[:, names.index(name)] - stacked[:, names.index(best)]
        return float(difference.mean()) <= float(difference.std() / len(difference) ** 0.5)

    close = [n for n in eligible if within_noise(n)] if best != "map" else ["map"]
    chosen = "laplace" if "laplace" in close else close[0]
    entry = table[chosen]
    reason = (
        f"{chosen}: calibration NLL {entry['nll']:.3f}, {entry['difference_to_map']:+.3f} against map "
        f"(95 % {entry['low']:+.3f} to {entry['high']:+.3f}, {len(stacked)} rows)"
    )
    return Recommendation(chosen, reason, table)


def _table(losses: Mapping[str, torch.Tensor], names: Sequence[str], seed: int) -> dict[str, dict[str, float]]:
    """Return the NLLs and their paired differences to MAP with bootstrap intervals."""
    stacked = torch.stack([losses[name].detach().to("cpu", torch.float64) for name in names], 1)
    if stacked.ndim != 2 or not len(stacked):
        raise DataError(f"losses must be (rows,) with at least one row, got {tuple(losses['map'].shape)}")
    if not stacked.isfinite().all():
        raise NonFiniteError("a loss is NaN or infinite")
    rows = len(stacked)
    drawn = torch.randint(rows, (_RESAMPLES, rows), generator=torch.Generator().manual_seed(seed))
    differences = stacked - stacked[:, [list(names).index("map")]]
    resampled = torch.stack([differences[i].mean(0) for i in drawn])
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    return {
        name: {
            "nll": float(stacked[:, i].mean()),
            "difference_to_map": float(differences[:, i].mean()),
            "low": float(low[i]),
            "high": float(high[i]),
        }
        for i, name in enumerate(names)
    }
