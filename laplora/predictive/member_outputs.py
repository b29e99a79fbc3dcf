"""Logits and covariances of a batch under every member of an artifact: the passes through the model.

The trained adapter always runs once, each further member once more with its weights in place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from laplora.errors import ModelError
from laplora.familiarity.percentile import Familiarity
from laplora.jacobians.contrasts import contrast_jacobians
from laplora.jacobians.states import StateTape, pooling_of
from laplora.linearised import mean_of
from laplora.metrics.checks import check_finite
from laplora.models.readout import base_of
from laplora.posterior.base import Posterior
from laplora.posterior.many_classes import choose_of
from laplora.predictive.distilled import DistilledCovariance, Estimate
from laplora.predictive.kinds import Corrected, Members
from laplora.predictive.member_adapters import Weights, in_place
from laplora.predictive.shift import Shift, label_tempering, tempering
from laplora.prompts.rows import Batch
from laplora.readouts.base import ReadOut


@dataclass(frozen=True)
class Member:
    """One adapter.

    Attributes:
        weights: what takes the place of the trained adapter's; empty for the trained one itself.
        posterior: None where the member has none.
        precisions: (blocks,) float64, the prior's for the posterior's blocks; with a posterior.
    """

    weights: Weights = field(default_factory=dict)
    posterior: Posterior | None = None
    precisions: torch.Tensor | None = None


@dataclass(frozen=True)
class MemberSet:
    """A model with everything that its predictives average over.

    Attributes:
        parameters: the model's LoRA matrices by block name.
        readout: how class logits are read from the model.
        trained: the attached adapter.
        distilled: what predicts the covariance of its posterior from its forward pass; None where nothing does.
        shifts: by kind of members, how far the calibration rows' labels move its log probabilities.
        familiarity: what says from its forward pass how familiar an input is; None where nothing does.
        checkpoints: the ensemble's other adapters; the trained one is its first member.
        dropout: the trained adapter under each dropout mask.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    readout: ReadOut
    trained: Member
    distilled: DistilledCovariance | None = None
    shifts: Mapping[Corrected, Shift] = field(default_factory=dict)
    familiarity: Familiarity | None = None
    checkpoints: tuple[Member, ...] = ()
    dropout: tuple[Member, ...] = ()


@dataclass(frozen=True)
class MemberOutputs:
    """Logits and covariances of a batch; on the CPU, float64.

    Attributes:
        logits: (batch, classes), the trained adapter's, nats.
        label_mass: (batch,), the trained adapter's.
        class_mask: (batch, classes) bool.
        means: by kind of members (members, batch, classes - 1), ``Q^T f``, nats.
        covariances: by kind of members (members, batch, classes - 1, classes - 1), nats squared; of the kinds that were
            wanted with their posteriors.
        estimate: the distilled covariance with its error; None unless the kind ``distilled`` was wanted.
        familiarity: (batch,), by the trained adapter's pass; None where nothing says it.
    """

    logits: torch.Tensor
    label_mass: torch.Tensor
    class_mask: torch.Tensor
    means: dict[Members, torch.Tensor]
    covariances: dict[Members, torch.Tensor]
    estimate: Estimate | None = None
    familiarity: torch.Tensor | None = None


#: A kind of members, and whether with their posteriors.
Wanted = tuple[Members, bool]


def member_outputs(members: MemberSet, batch: Batch, wanted: Collection[Wanted]) -> MemberOutputs:
    """Return the outputs of the members for a batch on the model's device.

    Args:
        wanted: beside the trained adapter's logits, which are always there.

    Raises:
        ModelError: a model in training mode.
        NonFiniteError: NaN or infinity in a logit, a variance or the label mass.
    """
    if members.model.training or base_of(members.model).training:
        raise ModelError(
            "the model is in training mode, in which its dropout would change every answer: call model.eval()"
        )
    kinds = {kind for kind, _ in wanted}
    posteriors = {kind for kind, covariance in wanted if covariance}
    distilled = members.distilled if "distilled" in kinds else None
    familiarity = members.familiarity
    layers = sorted({*(distilled.layers if distilled else ()), *(familiarity.layers if familiarity else ())})
    pooling = pooling_of(members.readout.side)
    with StateTape(members.model, layers, batch.attention_mask, pooling) if layers else nullcontext() as tape:
        wants = posteriors & {"single", "checkpoints", "laplace_conditioned"}
        trained = _pass(members, members.trained, batch, bool(wants))
    logits, hidden, covariance = trained.logits, trained.hidden, trained.covariance
    likelihood = members.readout.likelihood
    mass = members.readout.label_mass(members.model, hidden, batch.class_mask).double().cpu()
    means: dict[Members, torch.Tensor] = {"single": mean_of(likelihood, logits)[None]}
    covariances: dict[Members, torch.Tensor] = {} if covariance is None else {"single": covariance[None]}
    for moved, shift in members.shifts.items():
        if moved == "laplace_conditioned" and covariance is not None:
            several = likelihood == "bernoulli"
            kappa = label_tempering(covariance) if several else tempering(covariance, batch.class_mask.cpu())
            means[moved], covariances[moved] = means["single"] + kappa * shift.of(hidden), covariance[None]
        elif moved == "conditioned":
            means[moved] = means["single"] + shift.temperature * shift.of(hidden)
    estimate = familiar = None
    states = tape.states(logits) if tape else None
    if familiarity is not None and states is not None:
        familiar = familiarity.of(states)
    if distilled is not None and states is not None:
        estimate = distilled.estimate(states.after(distilled.layers))
        means["distilled"] = means["single"]
        covariances["distilled"] = estimate.covariance[None]
    further: dict[Members, tuple[Member, ...]] = {"checkpoints": members.checkpoints, "dropout": members.dropout}
    for kind, some in further.items():
        if kind not in kinds:
            continue
        passes = [_pass(members, member, batch, kind in posteriors) for member in some]
        if kind == "checkpoints":
            passes = [trained, *passes]
        means[kind] = torch.stack([mean_of(likelihood, one.logits) for one in passes])
        if kind in posteriors:
            covariances[kind] = torch.stack([one.covariance for one in passes if one.covariance is not None])
    outputs = MemberOutputs(logits, mass, batch.class_mask.cpu(), means, covariances, estimate, familiar)
    for value in (mass, *means.values(), *covariances.values()):
        check_finite(value, "the model's output for this input")
    return outputs


@dataclass(frozen=True)
class _Pass:
    """One member's logits (batch, classes), last hidden states and covariance."""

    logits: torch.Tensor
    hidden: torch.Tensor
    covariance: torch.Tensor | None = None


def _pass(members: MemberSet, member: Member, batch: Batch, jacobians: bool) -> _Pass:
    """Return a member's pass through the model: on the CPU in float64, but for the hidden states."""
    with in_place(members.parameters, member.weights):
        if not jacobians:
            with torch.no_grad():
                scores = members.readout.scores(members.model, batch)
            return _Pass(scores.logits.double().cpu(), scores.hidden)
        assert member.posterior is not None
        assert member.precisions is not None
        posterior = member.posterior
        result = contrast_jacobians(
            members.model, batch, members.readout, posterior.blocks, sums=False, choose=choose_of(posterior)
        )
        covariance = posterior.covariance_of(result, member.precisions).cpu()
        return _Pass(result.logits.double().cpu(), result.hidden, covariance)
