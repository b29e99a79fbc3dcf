"""The predictive ``conditioned`` of a fit: what the calibration rows' labels add to the Laplace predictive.

The labels of the calibration rows are data of their own. They move the mean of the linearised posterior
(``laplora.conditioning``). No row is answered by its own label: what thresholds, sets and the recommendation are set
on comes from folds, and so do the priors in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from laplora.classifier import Classifier
from laplora.conditioning.choice import Candidate, LabelledRows, candidates, choose_kernel, log_contrasts
from laplora.conditioning.kernel import RowKernel, check_memory
from laplora.errors import ConfigError
from laplora.fitting.outputs import Fitted
from laplora.fitting.passes import many_classes
from laplora.fitting.progress import Progress
from laplora.fitting.projected import ProjectedSplit
from laplora.fitting.settings import FitSettings
from laplora.jacobians.blocks import Block
from laplora.linearised import PosteriorPredictive
from laplora.posterior.base import Prior
from laplora.posterior.binary import TO_CONTRAST
from laplora.posterior.joint import JOINT_STRUCTURES
from laplora.posterior.joint_solve import joint_of, restrict
from laplora.posterior.subset import select_blocks
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.shift import Shift, tempering

#: Rows times contrasts up to which a fit conditions unasked: the time grows with the cube, 2 CPU minutes at this.
MOST = 1500


@dataclass(frozen=True)
class Conditioned:
    """How the calibration rows' labels move the contrasts.

    Attributes:
        shift: of the weights; prior and bias: that it was chosen under (``laplora.conditioning.choice.Candidate``).
        left_out: (rows, classes - 1) float64, what the labels of the other inputs, and of earlier rows, add to each
            calibration row's log probabilities, nats.
        loss: mean leave-one-out NLL of the calibration rows, nats.
    """

    shift: Shift
    prior: Prior
    bias: float
    left_out: torch.Tensor
    loss: float


@dataclass(frozen=True)
class Conditioning:
    """The calibration rows, ready to condition and to be conditioned.

    Attributes:
        trained: the adapter's posterior, its prior and the rows; split: the same rows' labels.
        kernel: the rows as the posterior sees them together; tried: kernels to choose from.
        before: (rows, classes - 1) float64, what earlier labels add to the log probabilities, nats.
        always: so many rows, the first ones, condition every fold and are in none.
    """

    trained: Fitted
    split: ProjectedSplit
    kernel: RowKernel
    tried: tuple[Candidate, ...]
    before: torch.Tensor
    always: int = 0

    @classmethod
    def of(cls, trained: Fitted, split: ProjectedSplit, blocks: Sequence[Block], always: int = 0) -> Conditioning:
        """Return the conditioning of a split whose Jacobians of ``blocks`` were kept.

        Where earlier labels have moved the split (``split.shift``), its own labels move it on from there.

        Raises:
            ConfigError: another structure of the posterior than the joint ones.
        """
        assert split.jacobians is not None
        kernel = RowKernel.of(restrict(joint_of(trained.posterior), blocks), split.jacobians)
        before = torch.zeros_like(trained.projected.contrast_mean).double() if split.shift is None else split.shift
        return cls(trained, split, kernel, tuple(candidates(kernel, split.together)), before, always)

    def served(self) -> Conditioned:
        """Return the shift that all rows' labels ask for, on top of that of earlier rows."""
        rows = self._labelled(self.trained.covariance(), torch.arange(len(self.split)))
        choice = choose_kernel(self.tried, rows)
        chosen, split = self.tried[choice.place], self.split
        weights = tuple(part.float() for part in self.kernel.shift(choice.mode.alpha, chosen.prior))
        constant = chosen.bias * choice.mode.alpha.view(-1, split.together, rows.mean.shape[1]).sum(0).flatten()
        if split.together > 1:
            constant = constant / TO_CONTRAST
        shift = Shift(self.kernel.posterior.blocks, weights, constant)
        left_out = choice.left_out - rows.mean + self.before
        return Conditioned(shift, chosen.prior, chosen.bias, left_out, choice.losses[choice.place])

    def predictive(self, fit: torch.Tensor, answered: torch.Tensor, prior: Prior) -> PosteriorPredictive:
        """Return some rows' predictive under the labels of others.

        Args:
            fit: row numbers, counted after those of ``always``, whose labels condition; answered: the rows to answer.
            prior: of the covariance, chosen on rows of ``fit``.
        """
        fit, answered = torch.cat([torch.arange(self.always), fit + self.always]), answered + self.always
        covariance = self.trained.covariance(prior)
        choice = choose_kernel([one.take(fit) for one in self.tried], self._labelled(covariance[fit], fit))
        cross = self.tried[choice.place].kernel[answered][:, :, fit]
        moved, mask = self.before[answered] + choice.mode.moved(cross), self.split.class_mask[answered]
        mean = self.trained.projected.contrast_mean[answered] + tempering(covariance[answered], mask) * moved
        return posterior_predictive(mean, covariance[answered], mask)

    def _labelled(self, covariance: torch.Tensor, rows: torch.Tensor) -> LabelledRows:
        """Return rows with what their labels correct: the Laplace predictive, as earlier labels have moved it."""
        split, mean = self.split, self.trained.projected.contrast_mean[rows]
        laplace = posterior_predictive(mean, covariance, split.class_mask[rows])
        return LabelledRows(
            log_contrasts(laplace.probs, split.class_mask[rows]) + self.before[rows],
            split.labels[rows],
            split.class_mask[rows],
            split.together,
        )


def without_conditioned(settings: FitSettings) -> FitSettings:
    """Return settings with the predictive ``conditioned`` off."""
    return settings.model_copy(update={"predictives": settings.predictives.model_copy(update={"conditioned": False})})


def conditioned_blocks(
    classifier: Classifier,
    settings: FitSettings,
    blocks: Sequence[Block],
    rows: int,
    trained_on: bool,
    progress: Progress,
) -> tuple[Block, ...]:
    """Return the blocks that conditioning may move; none where it is off, or where it is not covered, and say why.

    Arguments are those of ``movable_blocks``.

    Raises:
        ConfigError: it is not covered and should answer.
    """
    if not settings.predictives.conditioned:
        return ()
    try:
        return movable_blocks(classifier, settings, blocks, rows, trained_on)
    except ConfigError as error:
        if settings.predictives.serve == "conditioned":
            raise ConfigError(f"serve: conditioned cannot be: {error}") from None
        progress.say(f"conditioned is off: {error}")
        return ()


def movable_blocks(
    classifier: Classifier, settings: FitSettings, blocks: Sequence[Block], rows: int, trained_on: bool
) -> tuple[Block, ...]:
    """Return the blocks that labels of so many rows may move.

    They are the values' ``lora_B`` where there are some: all blocks give the same answers (docs/lab-notes.md) and take
    ten times the memory.

    Args:
        blocks: that the posterior covers; rows: inputs with labels.
        trained_on: whether the adapter was trained on them, and so on their labels.

    Raises:
        ConfigError: the posterior or so many rows are not covered.
    """
    readout = classifier.readout
    directions = readout.class_count - (readout.likelihood == "categorical")
    structure = settings.laplace.structure
    why = None
    if trained_on:
        why = "the adapter was trained on the calibration rows, whose labels it knows"
    elif structure not in JOINT_STRUCTURES:
        why = f"structure {structure} of the posterior has no covariance between rows"
    elif many_classes(settings, classifier):
        why = f"of {readout.class_count} classes not every contrast is computed"
    elif rows * directions > MOST:
        why = f"{rows} labelled rows of {directions} contrasts are more than {MOST}"
    if why is not None:
        raise ConfigError(why)
    try:
        chosen = select_blocks(blocks, "values_b")
    except ConfigError:
        chosen = tuple(blocks)
    check_memory(rows, directions, chosen)
    return chosen
