"""The posterior's inputs from a split's rows, computed once and kept; the means and covariances that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from laplora.classifier import Classifier
from laplora.execution.progress import Progress
from laplora.fitting.rows import groups_of
from laplora.jacobians.contrasts import contrast_jacobians
from laplora.jacobians.states import States, StateTape, join_states, pooling_of
from laplora.posterior.base import Covariances, Posterior, Prior, ProjectedJacobians, block_precisions
from laplora.posterior.binary import binary_projected
from laplora.posterior.many_classes import choose_of
from laplora.predictive.binary_rows import binary_logits
from laplora.predictive.kinds import PredictiveName, has_jacobians
from laplora.prompts.examples import Example, label_tensor
from laplora.prompts.rows import Batch


@dataclass(frozen=True)
class ProjectedSplit:
    """A split's rows as far as the posterior looks at them.

    Attributes:
        projected: in the split's row order.
        logits: (rows, classes); class_mask: (rows, classes) bool; labels: (rows,) int64, or soft
            (``laplora.linearised.cross_entropy``); label_mass: (rows,).
        states: of the inputs' forward passes; None where they were not noted.
        together: so many consecutive rows are of one input: 1, or where several labels may be right their number. Each
            row is then the question of one label of the input, with the classes absent and present
            (``laplora.predictive.binary_rows``).
        last: (inputs, width) float32, the states that the logits are read from; None of split files without them.
        groups: (inputs,) int64, inputs of one number are the same question, or of one group of their user's; None: each
            is its own.
    """

    projected: ProjectedJacobians
    logits: torch.Tensor
    class_mask: torch.Tensor
    labels: torch.Tensor
    label_mass: torch.Tensor
    states: States | None = None
    together: int = 1
    last: torch.Tensor | None = None
    groups: torch.Tensor | None = None

    @property
    def input_groups(self) -> torch.Tensor:
        """Which group each input is of, (inputs,) int64."""
        return torch.arange(len(self) // self.together) if self.groups is None else self.groups

    @property
    def row_groups(self) -> torch.Tensor:
        """Which group each row is of, (rows,) int64; the rows of an input are of one."""
        return self.input_groups.repeat_interleave(self.together)

    @property
    def judged(self) -> tuple[ProjectedJacobians, torch.Tensor, torch.Tensor]:
        """The rows as the posterior sees them, their labels and class mask."""
        return self.projected, self.labels, self.class_mask

    def __len__(self) -> int:
        return len(self.labels)


def project_split(
    classifier: Classifier,
    posterior: Posterior,
    examples: Sequence[Example],
    progress: Progress,
    title: str,
    *,
    batch_size: int = 8,
    layers: tuple[int, ...] = (),
    tokens: int = 1,
) -> ProjectedSplit:
    """Return a split's projected Jacobians, logits, label mass and states after some layers, on the CPU.

    If several labels may be right, an input is as many binary rows as there are labels, with one row of states.
    """
    model, readout = classifier.model, classifier.readout
    pooling = pooling_of(readout.side, tokens)
    by_block = classifier.block_devices(block.name for block in posterior.blocks)
    placed = posterior.to(classifier.device, torch.float32, by_block)

    def seen(batch: Batch) -> tuple[dict[str, torch.Tensor], States | None]:
        with StateTape(model, layers, batch.attention_mask, pooling) if layers else nullcontext() as tape:
            jacobians = contrast_jacobians(
                model, batch, readout, posterior.blocks, sums=False, choose=choose_of(placed)
            )
        projected = placed.project(jacobians)
        tensors = {
            "contrast_mean": projected.contrast_mean,
            "kept": projected.kept,
            "rest": projected.rest,
            "logits": jacobians.logits,
            "class_mask": batch.class_mask,
            "label_mass": readout.label_mass(model, jacobians.hidden, batch.class_mask),
            "last": jacobians.hidden.float(),
        }
        if projected.directions is not None:
            tensors["directions"] = projected.directions
        states = None if tape is None else tape.states(jacobians.logits)
        return {name: tensor.cpu() for name, tensor in tensors.items()}, states

    parts, order = classifier.over_batches(examples, batch_size, seen, lambda items: progress.track(items, title))
    joined = {name: torch.cat([tensors[name] for tensors, _ in parts])[order] for name in parts[0][0]}
    states = [states for _, states in parts if states is not None]
    logits, mask, mass = (joined[name] for name in ("logits", "class_mask", "label_mass"))
    labels = label_tensor(examples, classifier.class_count)
    read_from, noted = joined["last"], join_states(states).take(order) if states else None
    rows = ProjectedJacobians(joined["contrast_mean"], joined["kept"], joined["rest"], joined.get("directions"))
    groups = groups_of(classifier, examples)
    split = ProjectedSplit(rows, logits, mask, labels, mass, noted, last=read_from, groups=groups)
    return binary_split(split) if readout.likelihood == "bernoulli" else split


def binary_split(split: ProjectedSplit) -> ProjectedSplit:
    """Return a split of inputs with several labels, (rows, classes), as binary rows."""
    logits, labels = binary_logits(split.logits), split.labels.flatten()
    mask, mass = torch.ones_like(logits, dtype=torch.bool), split.label_mass.repeat_interleave(split.logits.shape[1])
    projected = binary_projected(split.projected)
    together = split.logits.shape[1]
    return ProjectedSplit(projected, logits, mask, labels, mass, split.states, together, split.last, split.groups)


def split_tensors(split: ProjectedSplit) -> dict[str, torch.Tensor]:
    """Return a projected split as named tensors, for a file."""
    plain: dict[str, Any] = {k: v for k, v in vars(split).items() if isinstance(v, torch.Tensor)}
    if split.together > 1:
        plain["together"] = torch.tensor(split.together)
    states = {} if split.states is None else state_tensors(split.states)
    projected = {name: tensor for name, tensor in vars(split.projected).items() if tensor is not None}
    return plain | projected | states


def split_of(named: Mapping[str, torch.Tensor]) -> ProjectedSplit:
    """Return a projected split from its named tensors."""
    tensors: dict[str, Any] = dict(named)
    mean, kept, rest = (tensors.pop(k) for k in ("contrast_mean", "kept", "rest"))
    projected = ProjectedJacobians(mean, kept, rest, tensors.pop("directions", None), tensors.pop("fold", None))
    states = states_of(tensors) if "states.hidden" in tensors else None
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("states.")}
    together = int(tensors.pop("together", torch.ones(())))
    return ProjectedSplit(projected=projected, states=states, together=together, **tensors)


def state_tensors(states: States) -> dict[str, torch.Tensor]:
    """Return states as named tensors, for a file."""
    return {
        "states.layers": torch.tensor(states.layers),
        "states.hidden": states.hidden,
        "states.contrast_mean": states.contrast_mean,
    }


def states_of(tensors: Mapping[str, torch.Tensor]) -> States:
    """Return states from their named tensors."""
    return States(tuple(tensors["states.layers"].tolist()), tensors["states.hidden"], tensors["states.contrast_mean"])


@dataclass(frozen=True)
class Fitted:
    """One adapter's posterior under its prior, and a split's rows as it sees them, in the split's row order.

    For out-of-fold rows, it is that of several adapters, with one prior for all.
    """

    posterior: Covariances
    prior: Prior
    projected: ProjectedJacobians

    def covariance(self, prior: Prior | None = None) -> torch.Tensor:
        """Return the contrasts' covariance, (rows, classes - 1, classes - 1) float64, under its prior by default."""
        return self.posterior.covariance(self.projected, block_precisions(prior or self.prior, self.posterior.blocks))


@dataclass(frozen=True)
class SplitOutputs:
    """Everything that an adapter's predictives need of one split."""

    split: ProjectedSplit
    fitted: Fitted

    def moments(self, name: PredictiveName, prior: Prior | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a predictive's mean (rows, classes - 1) and covariance, under its prior by default."""
        covariance = self.fitted.covariance(prior) if has_jacobians(name) else None
        return self.split.projected.contrast_mean, covariance
