"""The priors that can be chosen for one adapter's posterior, and how far its weights are from where they began."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import get_args

import torch

from laplora.classifier import Classifier
from laplora.errors import LaploraError, warn
from laplora.fitting.projected import ProjectedSplit
from laplora.fitting.settings import FitSettings
from laplora.jacobians.blocks import Block
from laplora.models.classifier_head import with_head_blocks
from laplora.models.readout import head_name
from laplora.posterior.base import Covariances, Granularity, Posterior
from laplora.predictive.lora_weights import lora_parameters
from laplora.prior.evidence import choose_by_evidence
from laplora.prior.search import PriorChoice
from laplora.prior.validation import choose_by_validation
from laplora.readouts.label_tokens import LabelTokens


def choose_priors(
    settings: FitSettings,
    posterior: Posterior,
    calibration: ProjectedSplit,
    distances: torch.Tensor,
    log_likelihood: float,
    judge: Covariances | None = None,
) -> list[PriorChoice]:
    """Return every prior choice that is reported: by validation and by evidence, scalar and per group.

    One that cannot be made is left out, which is said, unless the settings ask to serve it: its error is raised then.

    Args:
        judge: of the calibration rows, where that is not ``posterior``.
    """
    held_out = (calibration.projected, calibration.labels, calibration.class_mask)
    choices = []
    for granularity in get_args(Granularity):
        ways: dict[str, Callable[[], PriorChoice]] = {
            "evidence": partial(choose_by_evidence, posterior, distances, log_likelihood, granularity),
            "validation": partial(choose_by_validation, judge or posterior, *held_out, granularity),
        }
        for method, choose in ways.items():
            try:
                choices.append(choose())
            except LaploraError as error:
                if (method, granularity) == (settings.laplace.prior, settings.laplace.granularity):
                    raise
                warn(f"no prior by {method} ({granularity}) is reported: {error}")
    return choices


def served_choice(settings: FitSettings, choices: list[PriorChoice]) -> PriorChoice:
    """Return the choice that the settings ask to serve."""
    wanted = (settings.laplace.prior, settings.laplace.granularity)
    return next(c for c in choices if (c.method, c.prior.granularity) == wanted)


def squared_distances(
    weights: Mapping[str, torch.Tensor], blocks: Sequence[Block], start: Mapping[str, torch.Tensor] | None
) -> torch.Tensor:
    """Return each block's squared Frobenius distance from the prior's centre, (blocks,) float64.

    Args:
        weights: the trained ones by block name.
        start: the initial ones: PEFT starts A at random, so the norm itself is not evidence. None where nobody kept
            them: the centre is zero.
    """
    moved = []
    for block in blocks:
        weight = weights[block.name].detach().double().cpu()
        origin = torch.zeros(()) if start is None else start[block.name].detach().double().cpu()
        moved.append((weight - origin).square().sum())
    return torch.stack(moved)


def block_weights(classifier: Classifier) -> dict[str, torch.Tensor]:
    """Return the trained weights that the posterior is around, by block name, as ``label_rows``."""
    weights = {name: weight.detach() for name, weight in lora_parameters(classifier.model).items()}
    return label_rows(weights, classifier)


def label_rows(weights: Mapping[str, torch.Tensor], classifier: Classifier) -> dict[str, torch.Tensor]:
    """Return weights by block name: of the output embedding's ``lora_B`` the labels' rows, of a head with its bias."""
    readout = classifier.readout
    if readout.trained:
        return with_head_blocks(weights, readout.trained)
    if not isinstance(readout, LabelTokens):
        return dict(weights)
    head = head_name(classifier.model) + ".lora_B"
    rows = list(readout.token_ids)
    return {name: weight[rows] if name == head else weight for name, weight in weights.items()}
