"""Logits and covariances of a batch under every member of an artifact: the passes through the model.

The trained adapter always runs. Members whose logits alone are wanted run beside it, in one pass with a copy of the
rows for each (``member_adapters.side_by_side``). Those with a covariance run alone, each with its weights in place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property

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
from laplora.predictive.distilled import DistilledCovariance, Estimate
from laplora.predictive.kinds import Corrected, Members
from laplora.predictive.member_adapters import Weights, adapter_linears, in_place, side_by_side
from laplora.predictive.shift import Shift, label_tempering, tempering
from laplora.prompts.rows import Batch
from laplora.readouts.base import ReadOut
from laplora.readouts.label_sequences import model_tokens

#: Most tokens, padding included, that run side by side: members of larger batches run in several passes, down to one
#: each. On a CPU 768 tokens gained and 1,280 did not (docs/lab-notes.md). A batch of the server may have more.
SIDE_BY_SIDE_TOKENS = 1024


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
        beginning: what prompts begin with, as the trained adapter reads it; None where nothing is shared.
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
    beginning: Beginning | None = None

    @cached_property
    def linears(self) -> dict[str, nn.Linear]:
        """The linears that ``parameters`` are of."""
        return adapter_linears(self.model)


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
    distilled = members.distilled if "distilled" in kinds else None
    familiarity = members.familiarity
    layers = sorted({*(distilled.layers if distilled else ()), *(familiarity.layers if familiarity else ())})
    passes, states = _passes(members, batch, wanted, layers)
    (trained,) = passes["single"]
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
    if familiarity is not None and states is not None:
        familiar = familiarity.of(states)
    if distilled is not None and states is not None:
        estimate = distilled.estimate(states.after(distilled.layers))
        means["distilled"] = means["single"]
        covariances["distilled"] = estimate.covariance[None]
    for kind in kinds & {"checkpoints", "dropout"}:
        means[kind] = torch.stack([mean_of(likelihood, one.logits) for one in passes[kind]])
        spread = [one.covariance for one in passes[kind] if one.covariance is not None]
        if (kind, True) in wanted:
            covariances[kind] = torch.stack(spread)
    outputs = MemberOutputs(logits, mass, batch.class_mask.cpu(), means, covariances, estimate, familiar)
    for value in (mass, *means.values(), *covariances.values()):
        check_finite(value, "the model's output for this input")
    return outputs


@dataclass(frozen=True)
class _Pass:
    """One member's logits (batch, classes), on the CPU in float64, last hidden states and covariance."""

    logits: torch.Tensor
    hidden: torch.Tensor
    covariance: torch.Tensor | None = None


def _passes(
    members: MemberSet, batch: Batch, wanted: Collection[Wanted], layers: Sequence[int]
) -> tuple[dict[Members, list[_Pass]], States | None]:
    """Return the passes of the trained adapter (``single``) and of further members by kind, and the former's states."""
    posteriors = {kind for kind, covariance in wanted if covariance}
    kinds = posteriors | {kind for kind, _ in wanted}
    every: dict[Members, tuple[Member, ...]] = {"checkpoints": members.checkpoints, "dropout": members.dropout}
    further = {kind: some for kind, some in every.items() if kind in kinds}
    alone = bool(posteriors & {"single", "checkpoints", "laplace_conditioned"})
    beside = [member for kind, some in further.items() if kind not in posteriors for member in some]
    if alone:
        first, rest = [members.trained], _groups(members, batch, beside)
    else:
        first, *rest = _groups(members, batch, [members.trained, *beside])
    mask, pooling = batch.attention_mask.repeat(len(first), 1), pooling_of(members.readout.side)
    shared = None if alone or len(first) > 1 else members.beginning
    if shared is not None and not shared.begins(batch):
        shared = None
    skipped = 0 if shared is None else len(shared)
    with StateTape(members.model, layers, mask, pooling, skipped) if layers else nullcontext() as tape:
        trained, *ran = [_pass(members, members.trained, batch)] if alone else _beside(members, first, batch, shared)
    states = tape.states(torch.cat([one.logits for one in (trained, *ran)])) if tape else None
    forward = iter([*ran, *(one for group in rest for one in _beside(members, group, batch))])
    passes: dict[Members, list[_Pass]] = {"single": [trained]}
    for kind, some in further.items():
        passes[kind] = [_pass(members, one, batch) if kind in posteriors else next(forward) for one in some]
    if "checkpoints" in further:
        passes["checkpoints"].insert(0, trained)
    return passes, states.take(torch.arange(len(batch))) if states else None


def _groups(members: MemberSet, batch: Batch, some: Sequence[Member]) -> list[list[Member]]:
    """Return members in as few groups of like size as may run side by side."""
    rows, tokens = batch.input_ids.shape
    size = max(1, SIDE_BY_SIDE_TOKENS // (rows * model_tokens(members.model, members.readout, tokens)))
    count = -(-len(some) // size)
    return [[some[i] for i in part.tolist()] for part in torch.arange(len(some)).tensor_split(count)] if some else []


def _beside(
    members: MemberSet, group: Sequence[Member], batch: Batch, beginning: Beginning | None = None
) -> list[_Pass]:
    """Return each member's pass, without covariances: all of them run as one batch.

    ``beginning`` is what the rows begin with, as the one member of the group has read it.
    """
    if len(group) == 1:
        placed = in_place(members.parameters, group[0].weights)
    else:
        placed = side_by_side(members.parameters, members.linears, [one.weights for one in group])
    shared = nullcontext() if beginning is None else continued(members.model, beginning)
    with torch.no_grad(), placed, shared:
        scores = members.readout.scores(members.model, batch.repeated(len(group)))
    logits = scores.logits.double().cpu().view(len(group), len(batch), -1)
    hidden = scores.hidden.view(len(group), len(batch), -1)
    return [_Pass(*parts) for parts in zip(logits, hidden, strict=True)]


def _pass(members: MemberSet, member: Member, batch: Batch) -> _Pass:
    """Return a member's pass with its covariance: on the CPU in float64, but for the hidden states."""
    assert member.posterior is not None
    assert member.precisions is not None
    posterior = member.posterior
    with in_place(members.parameters, member.weights):
        result = contrast_jacobians(
            members.model, batch, members.readout, posterior.blocks, sums=False, choose=choose_of(posterior)
        )
        covariance = posterior.covariance_of(result, member.precisions).cpu()
    return _Pass(result.logits.double().cpu(), result.hidden, covariance)
