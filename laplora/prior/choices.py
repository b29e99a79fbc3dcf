"""The priors that can be chosen for one adapter's posterior, and how far its weights are from where they began."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import get_args

import torch

from laplora.errors import LaploraError, warn
from laplora.jacobians.blocks import Block
from laplora.posterior.base import Covariances, Granularity, Posterior, ProjectedJacobians
from laplora.prior.evidence import choose_by_evidence
from laplora.prior.search import PriorChoice, choose_by_validation


def choose_priors(
    requested: tuple[str, str],
    posterior: Posterior,
    held_out: tuple[ProjectedJacobians, torch.Tensor, torch.Tensor],
    distances: torch.Tensor,
    log_likelihood: float,
    judge: Covariances | None = None,
) -> list[PriorChoice]:
    """Return every prior choice that is reported: by validation and by evidence, scalar and per group.

    One that cannot be made is dropped with a warning, or raises its error if it is requested.

    Args:
        requested: method and granularity of the prior that is served.
        held_out: calibration rows as the posterior sees them, their labels and class mask.
        judge: of the calibration rows, where that is not ``posterior``.
    """
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
                if (method, granularity) == requested:
                    raise
                warn(f"no prior by {method} ({granularity}) is reported: {error}")
    return choices


def served_choice(requested: tuple[str, str], choices: list[PriorChoice]) -> PriorChoice:
    """Return the choice that is asked for."""
    return next(c for c in choices if (c.method, c.prior.granularity) == requested)


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
