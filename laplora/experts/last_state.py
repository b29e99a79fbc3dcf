"""``conditioned`` and ``laplace_conditioned``: labels that trained no adapter correct answers through the last state.

A head (``laplora.head``) on the state that the logits are read from has the answer's log probabilities as its offset:
the adapter's at the temperature of the same labels, or those of Laplace's average. With its weights W and constant c,

    ``log p(x) + x^T W + c``

is the corrected answer: ``Shift`` holds all of it, and nothing of the labelled rows. The temperature comes first. An
overconfident answer would leave labels of mistakes a long way to go, and those of right ones nothing to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from laplora import head
from laplora.decisions.temperature import fit_temperature
from laplora.errors import DataError, FactorizationError
from laplora.experts.base import Outputs
from laplora.experts.laplace import OfContrasts, logged, moments_of
from laplora.experts.of_head import HeadExpert
from laplora.linearised import Likelihood, PosteriorPredictive, contrast_logits, directions_of
from laplora.metrics.checks import check_finite
from laplora.posterior.binary import binary_means
from laplora.predictive.kinds import Corrected, predictive_probs, predictive_spec
from laplora.predictive.shift import Shift, tempering

#: The head's only block.
BLOCK = "last"


@dataclass(frozen=True)
class LastState(OfContrasts):
    """A predictive that labels correct; an ``Expert``.

    Attributes:
        name: of the predictive.
        shift: what the labels add, on top of earlier ones where there were any.
        precisions: of the head's weights and of its constant, as ``laplora.head`` chose them by folds of the rows.
        size: root mean square of what the shift adds to a contrast of the labelled rows, nats.
        loss: mean NLL of the labelled rows under these precisions, each by the folds without it, nats.
        held_out: as of ``Expert``: NaN unless outer folds have answered the labelled rows.
        inner: by fold number what ``without`` returns.
    """

    name: Corrected
    shift: Shift
    likelihood: Likelihood
    precisions: Mapping[str, float]
    size: float
    loss: float
    held_out: torch.Tensor
    inner: Mapping[int, torch.Tensor] = field(default_factory=dict)

    def without(self, fold: int) -> torch.Tensor:
        """Return ``held_out`` as folds within the others answer it."""
        return self.inner[fold]

    def _answers(self, outputs: Outputs) -> tuple[PosteriorPredictive, torch.Tensor]:
        (states,) = outputs.features["last_state"].values()
        mean, covariance, mask = moments_of(outputs, self.likelihood)
        return corrected_answers(self.name, self.shift, mean, covariance, mask, states), mask


def corrected_answers(
    name: Corrected,
    shift: Shift,
    mean: torch.Tensor,
    covariance: torch.Tensor | None,
    class_mask: torch.Tensor,
    states: torch.Tensor,
) -> PosteriorPredictive:
    """Return the answers of a predictive that a shift corrects; arguments as of ``corrected_mean``."""
    covariance = covariance if name == "laplace_conditioned" else None
    mean = corrected_mean(shift, mean, covariance, class_mask, states)
    return predictive_probs(predictive_spec(name, shift.temperature), mean, covariance, class_mask)


def corrected_mean(
    shift: Shift, mean: torch.Tensor, covariance: torch.Tensor | None, class_mask: torch.Tensor, states: torch.Tensor
) -> torch.Tensor:
    """Return contrasts that a shift has moved, (rows, classes - 1) float64: of Laplace's where there is a covariance.

    Args:
        mean: (rows, classes - 1) contrasts of the adapter; covariance: of them.
        states: (rows, width); or of inputs with several labels each, a row for each label.
    """
    moved = shift.of(states)
    if len(moved) < len(mean):
        moved = binary_means(moved)
    return mean + (shift.temperature if covariance is None else tempering(covariance, class_mask)) * moved


def fit_last_state(
    name: Corrected,
    mean: torch.Tensor,
    covariance: torch.Tensor | None,
    class_mask: torch.Tensor,
    states: torch.Tensor,
    labels: torch.Tensor,
    groups: torch.Tensor | None = None,
    before: Shift | None = None,
) -> LastState:
    """Return the predictive as all of these labels correct it.

    Args:
        mean, covariance, class_mask, states: as of ``corrected_answers``.
        labels: (rows,) int64; groups: (rows,) int64, rows of one number are in one fold; None: each input is its own.
        before: what earlier labels add, which these labels move on; its temperature stays.

    Raises:
        DataError: labels of fewer than two groups, or that are no possible class.
        NonFiniteError: NaN or infinity in a state or a mean.
        FactorizationError: labels that no head fits.
    """
    check_finite(states, "the states that the logits are read from")
    several = len(mean) // len(states)
    likelihood: Likelihood = "categorical" if several == 1 else "bernoulli"
    classes = class_mask.shape[1] if several == 1 else several
    if before is None:
        tempered = name == "conditioned"
        temperature = fit_temperature(contrast_logits(mean.double()), labels, class_mask) if tempered else 1.0
        directions = len(directions_of(likelihood, classes))
        before = Shift(torch.zeros(states.shape[1], directions).double(), torch.zeros(directions).double(), temperature)
    offset = logged(corrected_answers(name, before, mean, covariance, class_mask, states).probs, class_mask, several)
    inputs = None if groups is None else groups[::several]
    if len(set(range(len(states)) if inputs is None else inputs.tolist())) < 2:
        raise DataError("the labels are all of one group: what corrects is chosen on groups that it has not seen")
    mask, right = (class_mask, labels) if several == 1 else (None, labels.view(-1, several))
    try:
        fitted = head.fit(
            {BLOCK: states},
            right,
            offset=offset,
            class_mask=mask,
            groups=inputs,
            likelihood=likelihood,
            honest=False,
            posterior=False,
        )
    except head.HeadError as error:
        raise FactorizationError(f"no head fits the labels: {error}") from error
    shift = before + shift_of(fitted.head, before.temperature)
    added = shift.of(states) if several == 1 else binary_means(shift.of(states))
    loss = min(loss for _, loss in fitted.losses)
    size, unanswered = float(added.square().mean().sqrt()), torch.full_like(fitted.held_out, torch.nan)
    return LastState(name, shift, likelihood, fitted.precisions, size, loss, unanswered)


def last_state_of(expert: HeadExpert, states: torch.Tensor) -> LastState:
    """Return ``conditioned`` as a shift of the adapter's answer; ``states`` are (rows, width) those of its rows."""
    fitted = expert.fitted
    shift = shift_of(fitted.head, 1 / (fitted.head.inverse_temperature or 1.0))
    added = shift.of(states) if fitted.head.likelihood == "categorical" else binary_means(shift.of(states))
    loss, size = min(loss for _, loss in fitted.losses), float(added.square().mean().sqrt())
    return LastState(
        "conditioned", shift, fitted.head.likelihood, fitted.precisions, size, loss, expert.held_out, fitted.inner
    )


def shift_of(fitted: head.Head, temperature: float) -> Shift:
    """Return what a head of one block adds to log probabilities at a temperature, of states as they are."""
    raw = fitted.scaling.factors[BLOCK][:, None] * fitted.weights[BLOCK]
    directions = directions_of(fitted.likelihood, fitted.classes).T
    return Shift(raw @ directions, (fitted.constant - fitted.scaling.means[BLOCK] @ raw) @ directions, temperature)
