"""The predictives of a fit that learn from the calibration rows' labels: ``conditioned``, ``laplace_conditioned``.

No row is answered by its own label: what thresholds, sets and the recommendation are set on comes from folds. What a
fold's answers are corrected by, temperature, prior and head, is chosen on the other folds' rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from laplora.experts.laplace import logged
from laplora.experts.last_state import LastState, corrected_answers, fit_last_state
from laplora.fitting.outputs import Fitted
from laplora.fitting.projected import ProjectedSplit
from laplora.linearised import PosteriorPredictive
from laplora.posterior.base import Prior
from laplora.predictive.kinds import Corrected, PredictiveName
from laplora.predictive.shift import Shift


@dataclass(frozen=True)
class Conditioning:
    """The calibration rows, ready to condition and to be conditioned.

    Attributes:
        trained: the adapter's posterior, its prior and the rows; split: the same rows' states and labels.
        before: by predictive, what earlier labels add; empty where there were none.
        always: so many rows, the first ones, are in no fold and condition each, but for those of a group in it.
    """

    trained: Fitted
    split: ProjectedSplit
    before: Mapping[Corrected, Shift] = field(default_factory=dict)
    always: int = 0

    def served(self, kind: Corrected) -> LastState:
        """Return the correction of a predictive that all rows' labels ask for, on top of that of earlier ones."""
        return self._learned(kind, torch.arange(len(self.split)), self.trained.prior)

    def predictive(
        self, kind: Corrected, fit: torch.Tensor, answered: torch.Tensor, prior: Callable[[], Prior]
    ) -> PosteriorPredictive:
        """Return some rows' predictive under the labels of others.

        Args:
            fit: row numbers, counted after those of ``always``, whose labels condition; answered: the rows to answer.
            prior: of the covariance, chosen on the rows of ``fit``; asked for where there is one.
        """
        answered = answered + self.always
        groups, fit = self.split.row_groups, torch.cat([torch.arange(self.always), fit + self.always])
        fit = fit[~torch.isin(groups[fit], groups[answered])]  # rows of ``always`` may join groups of other folds
        chosen = prior() if kind == "laplace_conditioned" else self.trained.prior
        shift = self._learned(kind, fit, chosen).shift
        return corrected_answers(kind, shift, *self._rows(kind, answered, chosen))

    def _learned(self, kind: Corrected, rows: torch.Tensor, prior: Prior) -> LastState:
        split, before = self.split, self.before.get(kind)
        given = self._rows(kind, rows, prior)
        return fit_last_state(kind, *given, split.labels[rows], split.row_groups[rows], before)

    def _rows(
        self, kind: Corrected, rows: torch.Tensor, prior: Prior
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """Return mean, covariance, class mask and states of some rows, all of an input's or none."""
        split = self.split
        assert split.last is not None
        covariance = self.trained.covariance(prior)[rows] if kind == "laplace_conditioned" else None
        states = split.last[rows[:: split.together] // split.together]
        return split.projected.contrast_mean[rows], covariance, split.class_mask[rows], states


def with_held_out(
    conditioned: Mapping[Corrected, LastState],
    held_out: Mapping[PredictiveName, PosteriorPredictive],
    split: ProjectedSplit,
) -> dict[Corrected, LastState]:
    """Return the corrections with the log probabilities that each row has by the folds without it."""
    return {
        kind: replace(one, held_out=logged(held_out[kind].probs, split.class_mask, split.together))
        for kind, one in conditioned.items()
    }


def shifts_of(conditioned: Mapping[Corrected, LastState]) -> dict[Corrected, Shift]:
    """Return the shifts, as ``AdaptedModel`` has them."""
    return {kind: one.shift for kind, one in conditioned.items()}
