"""Logits and covariances of a batch: the pass through the model, and what is read from it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from laplora.errors import ModelError
from laplora.familiarity.percentile import Familiarity
from laplora.jacobians.contrasts import contrast_jacobians
from laplora.jacobians.states import States, StateTape, pooling_of
from laplora.linearised import mean_of
from laplora.metrics.checks import check_finite
from laplora.models.beginning import Beginning, continued
from laplora.models.readout import base_of
from laplora.posterior.base import Posterior
from laplora.posterior.many_classes import choose_of
from laplora.prompts.rows import Batch
from laplora.readouts.base import ReadOut


@dataclass(frozen=True)
class AdaptedModel:
    """A model with everything that its predictives are made of.

    Attributes:
        parameters: the model's LoRA matrices by block name.
        readout: how class logits are read from the model.
        posterior: the adapter's; None where there is none.
        precisions: (blocks,) float64, the prior's for the posterior's blocks; with a posterior.
        familiarity: what says from its forward pass how familiar an input is; None where nothing does.
        beginning: what prompts begin with, as the trained adapter reads it; None where nothing is shared.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    readout: ReadOut
    posterior: Posterior | None = None
    precisions: torch.Tensor | None = None
    familiarity: Familiarity | None = None
    beginning: Beginning | None = None


@dataclass(frozen=True)
class BatchOutputs:
    """Logits and covariances of a batch; on the CPU, float64.

    Attributes:
        logits: (batch, classes), nats.
        label_mass: (batch,); None of heads alone, whose answers are labels.
        class_mask: (batch, classes) bool.
        mean: (batch, classes - 1) ``Q^T f``, nats; None of heads alone.
        covariance: (batch, classes - 1, classes - 1), nats squared, of the mean; None without the posterior.
        familiarity: (batch,), None where nothing says it.
        hidden: (batch, width), the state that the logits were read from; None of heads alone.
    """

    logits: torch.Tensor
    label_mass: torch.Tensor | None
    class_mask: torch.Tensor
    mean: torch.Tensor | None
    covariance: torch.Tensor | None = None
    familiarity: torch.Tensor | None = None
    hidden: torch.Tensor | None = None


def batch_outputs(adapted: AdaptedModel, batch: Batch, *, covariance: bool) -> BatchOutputs:
    """Return the outputs for a batch on the model's device.

    Args:
        covariance: whether the posterior's are wanted beside the logits.

    Raises:
        ModelError: a model in training mode.
        NonFiniteError: NaN or infinity in a logit, a variance or the label mass.
    """
    check_evaluating(adapted.model)
    familiarity = adapted.familiarity
    logits, hidden, spread, states = _pass(adapted, batch, covariance=covariance)
    likelihood = adapted.readout.likelihood
    mass = adapted.readout.label_mass(adapted.model, hidden, batch.class_mask).double().cpu()
    mean = mean_of(likelihood, logits)
    familiar = None if familiarity is None or states is None else familiarity.of(states)
    outputs = BatchOutputs(logits, mass, batch.class_mask.cpu(), mean, spread, familiar, hidden.float().cpu())
    for value in (mass, mean, *([] if spread is None else [spread])):
        check_finite(value, "the model's output for this input")
    return outputs


def check_evaluating(model: nn.Module) -> None:
    """Raise ModelError for a model in training mode."""
    if model.training or base_of(model).training:
        raise ModelError(
            "the model is in training mode, in which its dropout would change every answer: call model.eval()"
        )


def _pass(
    adapted: AdaptedModel, batch: Batch, *, covariance: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, States | None]:
    """Return logits (batch, classes), last hidden states, covariance of the contrasts and the states.

    All but the hidden states are on the CPU; logits and covariance are float64. With a covariance the gradients go
    through every token, so that no beginning is shared.
    """
    shared = None if covariance else adapted.beginning
    if shared is not None and not shared.begins(batch):
        shared = None
    skipped, familiar = 0 if shared is None else len(shared), adapted.familiarity
    pooling = pooling_of(adapted.readout.side, familiar.tokens if familiar else 1)
    seen = (adapted.model, familiar.layers, batch.attention_mask, pooling, skipped) if familiar else None
    with StateTape(*seen) if seen else nullcontext() as tape:
        if covariance:
            logits, hidden, spread = _with_covariance(adapted, batch)
        else:
            beginning = nullcontext() if shared is None else continued(adapted.model, shared)
            with torch.no_grad(), beginning:
                scores = adapted.readout.scores(adapted.model, batch)
            logits, hidden, spread = scores.logits, scores.hidden, None
        logits = logits.double().cpu()
    return logits, hidden, spread, tape.states(logits) if tape else None


def _with_covariance(adapted: AdaptedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    assert adapted.posterior is not None
    assert adapted.precisions is not None
    posterior = adapted.posterior
    result = contrast_jacobians(
        adapted.model, batch, adapted.readout, posterior.blocks, sums=False, choose=choose_of(posterior)
    )
    covariance = posterior.covariance_of(result, adapted.precisions).cpu()
    return result.logits, result.hidden, covariance
