"""The ensemble's further adapters, each one's posterior and prior, and how dropout masks are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from laplora.artifact.manifest import DropoutRecord
from laplora.classifier import Classifier
from laplora.errors import ConfigError
from laplora.fitting.curvature import fit_curvature
from laplora.fitting.priors import block_weights, choose_priors, served_choice, squared_distances
from laplora.fitting.progress import Progress
from laplora.fitting.projected import project_split
from laplora.fitting.settings import FitSettings
from laplora.fitting.store import Store
from laplora.jacobians.blocks import Block
from laplora.models.lora import lora_layers, lora_of
from laplora.posterior.base import Posterior
from laplora.predictive.member_adapters import Weights, in_place, lora_parameters
from laplora.prior.search import PriorChoice
from laplora.prompts.examples import Example


@dataclass(frozen=True)
class MemberAdapter:
    """One further adapter of an ensemble.

    Attributes:
        step: optimizer step at which it was kept.
        weights: by block name.
        fold: that it was trained without, from 1; None where it was kept while the trained one was.
    """

    step: int
    weights: Weights
    fold: int | None = None


@dataclass(frozen=True)
class MemberFit:
    """The posterior and the prior of a further adapter."""

    step: int
    posterior: Posterior
    choice: PriorChoice


def fit_member(
    classifier: Classifier,
    member: MemberAdapter,
    train: Sequence[Example],
    calibration: Sequence[Example],
    blocks: tuple[Block, ...],
    settings: FitSettings,
    start: Mapping[str, torch.Tensor] | None,
    store: Store,
    progress: Progress,
) -> MemberFit:
    """Return a further adapter's posterior over the same blocks, under a prior of its own."""
    with in_place(lora_parameters(classifier.model), member.weights):
        posterior, log_likelihood = fit_curvature(classifier, train, blocks, settings, store, progress)
        title = f"calibration rows, step {member.step}"
        size = settings.laplace.batch_size
        split = project_split(classifier, posterior, calibration, progress, title, batch_size=size)
        distances = squared_distances(block_weights(classifier), blocks, start)
    choices = choose_priors(settings, posterior, split, distances, log_likelihood)
    return MemberFit(member.step, posterior, served_choice(settings, choices))


#: Where the fit of the adapter of a step keeps its passes.
MemberStore = Callable[[int], Store]


def dropout_record(classifier: Classifier, settings: FitSettings) -> DropoutRecord | None:
    """Return how dropout masks are drawn; None without MC dropout. ConfigError where the adapter has no dropout."""
    members = settings.predictives.mc_dropout
    if not members:
        return None
    layers = lora_layers(classifier.model).values()
    rates = {float(getattr(lora_of(layer).dropout, "p", 0.0)) for layer in layers}
    if len(rates) != 1 or not 0 < max(rates) < 1:
        raise ConfigError(
            f"mc_dropout needs one dropout of the adapter above 0 to average over, it has {sorted(rates)}"
        )
    return DropoutRecord(probability=rates.pop(), members=members, seed=settings.seed)
