"""One adapter's posterior: its curvature over the training rows, and the priors that can be chosen for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from laplora.jacobians.blocks import Block
from laplora.posterior.base import Granularity, Posterior, Prior
from laplora.posterior.passes import StructureSettings
from laplora.posterior.structures import fit_posterior, granularities
from laplora.prior.evidence import choose_by_evidence
from laplora.prior.leave_one_out import choose_by_leave_one_out
from laplora.prior.search import PriorChoice
from laplora.prior.validation import choose_by_validation
from training.calibration.passes import ResumablePass
from training.calibration.projected import ProjectedSplit
from training.config import RunConfig
from training.workspace.run import Run


def fit_curvature(
    run: Run, model: nn.Module, blocks: tuple[Block, ...], folder: Path, adapter: Path | None = None
) -> tuple[Posterior, float]:
    """Return the curvature over the training rows, and their log-likelihood (summed, nats).

    Args:
        folder: where the passes keep their state; adapter: folder of the one in the model; None: the trained one.
    """
    laplace = run.config.laplace
    settings = StructureSettings(
        structure=laplace.structure,
        rank=laplace.rank,
        oversampling=laplace.oversampling,
        joint_rank=laplace.joint_rank,
        seed=run.config.seed,
        basis_dtype=getattr(torch, laplace.factor_dtype),
    )
    run_pass = ResumablePass(run, model, blocks, folder, adapter)
    return fit_posterior(settings, blocks, run_pass), run_pass.log_likelihood


def choose_priors(
    config: RunConfig,
    posterior: Posterior,
    calibration: ProjectedSplit,
    distances: torch.Tensor,
    log_likelihood: float,
    train: ProjectedSplit | None = None,
) -> list[PriorChoice]:
    """Return every prior choice that is reported: by validation and by evidence, scalar and per group.

    Args:
        train: the training rows as the posterior sees them, for a choice by leave-one-out too.
    """
    wanted: list[Granularity] = ["scalar", "group", config.laplace.granularity]
    choices = []
    for granularity in dict.fromkeys(g for g in wanted if g in granularities(posterior.structure)):
        choices.append(choose_by_evidence(posterior, distances, log_likelihood, granularity))
        if granularity != "module":
            choices.append(
                choose_by_validation(
                    posterior, calibration.projected, calibration.labels, calibration.class_mask, granularity
                )
            )
    if train is not None:
        # The trained adapter is the optimum under a prior that nobody stated; the evidence names one.
        choices.append(
            choose_by_leave_one_out(
                posterior,
                train.projected,
                train.labels,
                train.class_mask,
                config.laplace.granularity,
                trained_under=choices[0].prior,
            )
        )
    return choices


def served_choice(config: RunConfig, choices: list[PriorChoice]) -> PriorChoice:
    """Return the choice that the configuration asks to serve."""
    wanted = (config.laplace.prior, config.laplace.granularity)
    return next(c for c in choices if (c.method, c.prior.granularity) == wanted)


def read_choices(folder: Path) -> list[PriorChoice]:
    """Return the prior choices that the fit recorded."""
    return [_choice(fields) for fields in json.loads((folder / "fit.json").read_text())["choices"]]


def read_member_choice(folder: Path) -> PriorChoice:
    """Return the prior that was chosen for one further adapter."""
    return _choice(json.loads((folder / "fit.json").read_text())["choice"])


def _choice(fields: dict[str, Any]) -> PriorChoice:
    return PriorChoice(Prior(**fields["prior"]), fields["method"], fields["objective"], tuple(fields["at_bound"]))


def squared_distances(config: RunConfig, blocks: tuple[Block, ...], adapter: Path | None = None) -> torch.Tensor:
    """Return each block's squared Frobenius distance from its initial value, (blocks,) float64.

    PEFT starts A at random, so the norm itself is not evidence. ``adapter`` is a folder; None: the trained one.
    """
    start = load_file(config.run_dir / "initial_adapter" / "adapter_model.safetensors")
    end = load_file((adapter or config.run_dir / "adapter") / "adapter_model.safetensors")
    keys = {k.removeprefix("base_model.model.").removesuffix(".weight"): k for k in end}
    moved = [(end[keys[b.name]].double() - start[keys[b.name]].double()).square().sum() for b in blocks]
    return torch.stack(moved)
