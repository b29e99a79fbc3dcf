"""The predictives of a fit that learn from the calibration rows' labels: ``conditioned``, ``laplace_conditioned``.

The labels of the calibration rows are data of their own. They correct a predictive's log probabilities through the
state that the logits are read from (``laplora.conditioning``). No row is answered by its own label: what thresholds,
sets and the recommendation are set on comes from folds, and so do temperatures and priors in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from laplora.classifier import Classifier
from laplora.conditioning.choice import choose_kernel
from laplora.conditioning.labelled import LabelledRows, log_contrasts
from laplora.conditioning.last_layer import LastStates
from laplora.decisions.temperature import fit_temperature
from laplora.errors import ConfigError, warn
from laplora.fitting.outputs import Fitted
from laplora.fitting.projected import ProjectedSplit
from laplora.fitting.settings import FitSettings
from laplora.linearised import PosteriorPredictive, class_probs, contrast_logits, entropy
from laplora.posterior.base import Prior
from laplora.posterior.binary import binary_means
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.kinds import CONDITIONED, Corrected
from laplora.predictive.shift import Shift, tempering
from laplora.prompts.examples import Example
from laplora.readouts.label_sequences import LabelSequences

#: Rows times contrasts up to which a fit conditions: minutes of a processor at this, by the width of the states.
MOST = 150_000


@dataclass(frozen=True)
class Conditioned:
    """How the calibration rows' labels correct one predictive.

    Attributes:
        shift: of its log probabilities.
        precision: of the last layer's prior; bias: prior variance of a constant, nats squared.
        left_out: (rows, classes - 1) float64, what the labels of the other inputs add to each calibration row's log
            probabilities, nats.
        loss: mean NLL of the calibration rows so, nats.
    """

    shift: Shift
    precision: float
    bias: float
    left_out: torch.Tensor
    loss: float


@dataclass(frozen=True)
class Conditioning:
    """The calibration rows, ready to condition and to be conditioned.

    Attributes:
        trained: the adapter's posterior, its prior and the rows; split: the same rows' states and labels.
        states: of the rows' inputs, that the kernels are made of.
        before: by predictive (rows, classes - 1) float64, what earlier labels add to the log probabilities, nats, and
            the predictive's temperature; empty where there were none.
        always: so many rows, the first ones, are in no fold and condition each, but for those of a group in it.
    """

    trained: Fitted
    split: ProjectedSplit
    states: LastStates
    before: Mapping[Corrected, tuple[torch.Tensor, float]]
    always: int

    @classmethod
    def of(
        cls,
        trained: Fitted,
        split: ProjectedSplit,
        before: Mapping[Corrected, tuple[torch.Tensor, float]] | None = None,
        always: int = 0,
        class_weights: Sequence[float] = (),
    ) -> Conditioning:
        """Return the conditioning of a split whose last states were kept; labels move it on from ``before``.

        Args:
            class_weights: of the loss that trained the adapter, as of ``FitSettings``.
        """
        assert split.last is not None
        probs = class_probs(split.logits, split.class_mask)
        rows = trained.posterior.rows
        if split.together == 1:
            weights = torch.tensor(class_weights, dtype=torch.float64) if class_weights else None
            states = LastStates(split.last, probs, rows, class_weights=weights)
        else:
            states = LastStates(split.last, probs[:, 1].view(-1, split.together), rows, "bernoulli")
        return cls(trained, split, states, before or {}, always)

    def served(self, kind: Corrected) -> Conditioned:
        """Return the correction of a predictive that all rows' labels ask for, on top of that of earlier ones."""
        everything = torch.arange(len(self.split))
        base = self._base(kind, everything, self.trained.prior)
        found, rows = self._conditioned(base, everything)
        return replace(found, left_out=found.left_out - rows.mean + base.before)

    def predictive(
        self, kind: Corrected, fit: torch.Tensor, answered: torch.Tensor, prior: Callable[[], Prior]
    ) -> PosteriorPredictive:
        """Return some rows' predictive under the labels of others.

        Args:
            fit: row numbers, counted after those of ``always``, whose labels condition; answered: the rows to answer.
            prior: of the covariance, chosen on the rows of ``fit``; asked for where there is one.
        """
        answered = answered + self.always
        groups, always = self.split.row_groups, torch.arange(self.always)
        always = always[~torch.isin(groups[always], groups[answered])]
        fit = torch.cat([always, fit + self.always])
        base = self._base(kind, fit, prior() if kind == "laplace_conditioned" else None)
        shift = self._conditioned(base, fit)[0].shift
        moved = shift.of(self.states.states[self._inputs(answered)])
        if self.split.together > 1:
            moved = binary_means(moved)
        return base.answer(self.trained.projected.contrast_mean[answered], moved, answered, self.split.class_mask)

    def _conditioned(self, base: _Base, rows: torch.Tensor) -> tuple[Conditioned, LabelledRows]:
        """Return the correction that some rows' labels ask for, and the rows; ``left_out`` holds their means.

        The last layer is that of these rows alone: a row's own state in its moments would make the kernel between it
        and the others smaller than that of a new row. A fold chooses among the kernels that all rows choose among.
        """
        labelled, size = self._labelled(base, rows), self.trained.projected.contrast_mean.numel()
        choice = choose_kernel(self.states.take(self._inputs(rows)), labelled, size=size)
        chosen, loss = choice.kernel, choice.losses[choice.place]
        shift = Shift(*chosen.layer_weights(choice.weights), base.temperature)
        return Conditioned(shift, chosen.precision, chosen.bias, choice.left_out, loss), labelled

    def _inputs(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the numbers of the inputs that rows, all of an input's or none, are of."""
        return rows[:: self.split.together] // self.split.together

    def _base(self, kind: Corrected, fit: torch.Tensor, prior: Prior | None) -> _Base:
        """Return the predictive that labels correct: as earlier labels have, or fitted on some rows."""
        split = self.split
        before, temperature = self.before.get(kind, (torch.zeros_like(self.trained.projected.contrast_mean), None))
        if kind == "laplace_conditioned":
            return _Base(1.0, self.trained.covariance(prior), before.double())
        if temperature is not None:
            return _Base(temperature, None, before.double())
        logits = contrast_logits(self.trained.projected.contrast_mean[fit].double())
        return _Base(fit_temperature(logits, split.labels[fit], split.class_mask[fit]), None, before.double())

    def _labelled(self, base: _Base, rows: torch.Tensor) -> LabelledRows:
        split = self.split
        nothing = torch.zeros((), dtype=torch.float64)
        before = base.answer(self.trained.projected.contrast_mean[rows], nothing, rows, split.class_mask)
        mask = split.class_mask[rows]
        log_probs, groups = log_contrasts(before.probs, mask), split.row_groups[rows]
        return LabelledRows(log_probs, split.labels[rows], mask, split.together, groups)


@dataclass(frozen=True)
class _Base:
    """A predictive that labels correct: MAP with a temperature, or every row's Gaussian; and earlier corrections."""

    temperature: float
    covariance: torch.Tensor | None
    before: torch.Tensor

    def answer(
        self, mean: torch.Tensor, moved: torch.Tensor, rows: torch.Tensor, class_mask: torch.Tensor
    ) -> PosteriorPredictive:
        """Return the predictive of some rows, their log probabilities moved."""
        mask, moved = class_mask[rows], self.before[rows] + moved
        if self.covariance is not None:
            covariance = self.covariance[rows]
            return posterior_predictive(mean + tempering(covariance, mask) * moved, covariance, mask)
        probs = class_probs(contrast_logits(mean.double() / self.temperature + moved), mask)
        return PosteriorPredictive(probs, torch.zeros_like(probs), entropy(probs))


def shifts_of(conditioned: Mapping[Corrected, Conditioned]) -> dict[Corrected, Shift]:
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
