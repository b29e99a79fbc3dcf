"""Predictives that the calibration rows' labels correct, dealt as the others are.

No grid of settings can hold them: a draw's labels move every row. So each draw is fitted anew, on the last states that
a trained model of ``benchmarks.evidence`` has of its pool and test rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from benchmarks.evidence.methods.conditioned import corrected, corrected_probs
from benchmarks.evidence.outputs import Outputs, Rows
from benchmarks.promises.models import TEMPERATURES, Column, Table
from laplora.linearised import PosteriorPredictive, class_probs, entropy
from laplora.metrics.scores import row_nll
from laplora.predictive.shift import Shift


@dataclass(frozen=True)
class ConditionedColumn:
    """``conditioned`` of all rows; a setting is the number of a fit.

    Attributes:
        rows: all of them; trained: rows that trained the adapter.
        fits: every draw's correction and the rows that it was fitted on, in the order of their numbers.
    """

    rows: Rows
    trained: int
    fits: list[Shift] = field(default_factory=list)
    numbers: dict[tuple[int, ...], int] = field(default_factory=dict)

    def fit(self, rows: torch.Tensor) -> int:
        """Return the number of the fit on some rows; each is made once."""
        key = tuple(rows.tolist())
        if key not in self.numbers:
            self.numbers[key] = len(self.fits)
            self.fits.append(corrected(self.rows.at(rows), self.trained))
        return self.numbers[key]

    def at(self, setting: int, rows: torch.Tensor) -> PosteriorPredictive:
        """Return the predictive of some rows under a fit."""
        probs = corrected_probs(self.fits[setting], self.rows.at(rows))
        return PosteriorPredictive(probs, torch.zeros_like(probs), entropy(probs))


def study_table(outputs: Outputs) -> Table:
    """Return a trained model's pool and test rows under MAP, every temperature, and ``conditioned``."""
    pool, test = outputs.pool, outputs.test
    rows = Rows(*(torch.cat([getattr(pool, name), getattr(test, name)]) for name in Rows.__dataclass_fields__))
    columns = {
        name: _tempered(rows, temperatures)
        for name, temperatures in (("map", torch.ones(1).double()), ("temperature", TEMPERATURES))
    }
    conditioned = ConditionedColumn(rows, len(outputs.train))
    mass = torch.ones(len(rows.labels), dtype=torch.float64)
    return Table(columns | {"conditioned": conditioned}, rows.labels, rows.class_mask, mass)


def _tempered(rows: Rows, temperatures: torch.Tensor) -> Column:
    probs = torch.stack([class_probs(rows.logits / t, rows.class_mask) for t in temperatures])
    losses = torch.stack([row_nll(one, rows.labels) for one in probs])
    return Column(probs, torch.zeros_like(probs), torch.stack([entropy(one) for one in probs]), losses)
