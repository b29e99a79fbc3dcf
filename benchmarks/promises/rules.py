"""What is fitted on a draw of calibration rows, cross-fitted as what is served."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.promises.models import Column, Table
from laplora.decisions.conformal import fit_label_sets
from laplora.decisions.review import fit_thresholds
from laplora.decisions.thresholds import Guarantee, PredictiveThresholds
from laplora.linearised import PosteriorPredictive, entropy
from laplora.predictive.cross_fitting import cross_fitted_predictive, rank_aligned

GUARANTEES: tuple[Guarantee, ...] = ("empirical", "upper_bound")


@dataclass(frozen=True)
class Fitted:
    """One predictive as it would be served.

    Attributes:
        setting: fitted on all calibration rows.
        thresholds: flags and review rule; sets: the threshold of its label sets.
    """

    setting: int
    thresholds: PredictiveThresholds
    sets: float


def fit_cross_fitted(table: Table, rows: torch.Tensor, risk: float, level: float) -> dict[Guarantee, dict[str, Fitted]]:
    """Return every predictive as ``laplora.fitting.calibrate`` fits it on these rows, by guarantee and name."""
    held_out = {
        name: cross_fitted_predictive(
            lambda fit, answer, c=column: c.at(c.fit(rows[fit]), rows[answer]),  # type: ignore[misc]
            len(rows),
        )
        for name, column in table.columns.items()
    }
    entropies = {name: _held_out_entropy(column, rows) for name, column in table.columns.items()}
    return {guarantee: _fitted(table, rows, held_out, risk, guarantee, level, entropies) for guarantee in GUARANTEES}


def _held_out_entropy(column: Column, rows: torch.Tensor) -> torch.Tensor:
    def of_fit(fitted: torch.Tensor) -> torch.Tensor:
        return entropy(column.at(column.fit(fitted), rows).probs)[:, None]

    return rank_aligned(lambda fitted: of_fit(rows[fitted]), of_fit(rows))[:, 0]


def _fitted(
    table: Table,
    rows: torch.Tensor,
    on_rows: dict[str, PosteriorPredictive],
    risk: float,
    guarantee: Guarantee,
    level: float,
    entropies: dict[str, torch.Tensor],
) -> dict[str, Fitted]:
    labels, mass = table.labels[rows], table.label_mass[rows]
    thresholds = fit_thresholds(on_rows, labels, mass, target_risk=risk, guarantee=guarantee, entropies=entropies)
    return {
        name: Fitted(column.fit(rows), thresholds[name], fit_label_sets("lac", on_rows[name].probs, labels, level))
        for name, column in table.columns.items()
    }
