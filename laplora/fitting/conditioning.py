"""The predictives of a fit that learn from the calibration rows' labels: ``conditioned``, ``laplace_conditioned``.

No row is answered by its own label: what thresholds, sets and the recommendation are set on comes from folds. What a
fold's answers are corrected by, temperature, prior and head, is chosen on the other folds' rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from laplora.classifier import Classifier
from laplora.errors import ConfigError, warn
from laplora.experts.laplace import logged
from laplora.experts.last_state import LastState, corrected_answers, fit_last_state
from laplora.fitting.outputs import Fitted
from laplora.fitting.projected import ProjectedSplit
from laplora.fitting.settings import FitSettings
from laplora.linearised import PosteriorPredictive
from laplora.posterior.base import Prior
from laplora.predictive.kinds import CONDITIONED, Corrected, PredictiveName
from laplora.predictive.shift import Shift
from laplora.prompts.examples import Example
from laplora.readouts.label_sequences import LabelSequences

#: Rows times contrasts up to which a fit conditions: minutes of a processor at this, by the width of the states.
MOST = 300_000


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


def possible_conditioning(
    classifier: Classifier,
    settings: FitSettings,
    calibration: Sequence[Example],
) -> FitSettings:
    """Return settings in which labels condition only where they can; warns of why they cannot.

    Raises:
        ConfigError: settings that ask to serve what cannot be.
    """
    if not settings.predictives.conditioned:
        return settings
    try:
        check_conditioning(classifier, len(calibration))
    except ConfigError as error:
        return without_conditioning(settings, error)
    return settings


def without_conditioning(settings: FitSettings, error: Exception) -> FitSettings:
    """Return settings in which no labels condition, and say why; ConfigError where these are to be served."""
    if settings.predictives.serve in CONDITIONED:
        raise ConfigError(f"serve: {settings.predictives.serve} cannot be: {error}") from error
    warn(f"conditioned is off: {error}")
    off = settings.predictives.model_copy(update={"conditioned": False})
    return settings.model_copy(update={"predictives": off})


def check_conditioning(classifier: Classifier, rows: int) -> None:
    """Raise ConfigError where labels of so many rows cannot condition."""
    readout = classifier.readout
    directions = readout.class_count - (readout.likelihood == "categorical")
    if isinstance(readout, LabelSequences):
        raise ConfigError("the logits of label sequences are read from several states")
    if rows * directions > MOST:
        raise ConfigError(f"{rows} labelled rows of {directions} contrasts are more than {MOST:,} in all")
