"""Fit the posterior: curvature over the training rows, then the prior precision.

One or two passes over the training rows and one over the calibration rows. The passes over the training rows are
saved as they go, so a job that was stopped continues where it was.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from laplora.blocks import Block
from laplora.errors import ConfigError
from laplora.jacobians import find_blocks
from laplora.model import attach_adapter
from laplora.posterior import Granularity, Posterior, Prior, block_precisions
from laplora.posterior_file import posterior_tensors
from laplora.prior import PriorChoice, choose_by_evidence, choose_by_validation
from laplora.structures import StructureSettings, fit_posterior, granularities
from laplora.subset import select_blocks
from training.calibrate import calibrate
from training.config import RunConfig
from training.finetune import trained_as
from training.passes import ResumablePass
from training.projected import ProjectedSplit, covariance_under, project_split, split_tensors
from training.provenance import fit_inputs
from training.runtime import Run, open_run, say, write_json, write_tensors


def fit_laplace(config: RunConfig) -> Path:
    """Fit the posterior of a trained run and return its folder.

    Raises:
        ConfigError: the run has no trained adapter.
    """
    run = open_run(config)
    folder = config.run_dir / "laplace"
    model = load_trained(run)
    blocks = select_blocks(find_blocks(model, run.class_count), config.laplace.subset)
    posterior, log_likelihood = fit_curvature(run, model, blocks, folder)
    calibration = project_split(run, model, posterior, run.splits.calibration, "calibration rows")
    distances = squared_distances(config, blocks)
    choices = choose_priors(config, posterior, calibration, distances, log_likelihood)
    write_tensors(folder / "posterior.safetensors", *posterior_tensors(posterior, config.laplace.factor_dtype))
    write_tensors(folder / "calibration.safetensors", split_tensors(calibration))
    served = served_choice(config, choices)
    record = calibrate(config, calibration, covariance_under(posterior, served.prior, calibration))
    write_json(folder / "calibrators.json", record.model_dump(mode="json"))
    summary = {
        "served": {"method": served.method, "granularity": served.prior.granularity},
        "choices": [asdict(c) for c in choices],
        "log_likelihood": log_likelihood,
        "train_rows": posterior.rows,
        "made_from": fit_inputs(run),
        "squared_distances": dict(zip((b.name for b in blocks), distances.tolist(), strict=True)),
        "effective_dimension": float(posterior.effective_dimension(block_precisions(served.prior, blocks)).sum()),
    }
    write_json(folder / "fit.json", summary)
    for choice in choices:
        say(
            f"prior by {choice.method} ({choice.prior.granularity}): "
            + ", ".join(f"{k} {v:.4g}" for k, v in list(choice.prior.precision.items())[:4])
            + (" (at the edge of the searched range)" if choice.at_bound else "")
        )
    return folder


def load_trained(run: Run) -> Any:
    """Return the run's base with its trained adapter, as it will be served.

    Raises:
        ConfigError: no adapter, or one that was trained from something else.
    """
    folder = run.config.run_dir / "adapter"
    if not (folder / "adapter_model.safetensors").is_file():
        raise ConfigError(f"no trained adapter in {folder}: run 'python -m training finetune' first")
    if not trained_as(run):
        raise ConfigError(
            f"the adapter in {folder} was trained from another configuration, other rows or another base: run "
            "'python -m training finetune' again, or give this run another name"
        )
    return attach_adapter(run.load_base(), folder)


def fit_curvature(run: Run, model: nn.Module, blocks: tuple[Block, ...], folder: Path) -> tuple[Posterior, float]:
    """Return the curvature over the training rows, and their log-likelihood (summed, nats)."""
    run_pass = ResumablePass(run, model, blocks, folder)
    return fit_posterior(structure_settings(run.config), blocks, run_pass), run_pass.log_likelihood


def structure_settings(config: RunConfig) -> StructureSettings:
    """Return which posterior a run fits."""
    settings = config.laplace
    return StructureSettings(
        structure=settings.structure,
        rank=settings.rank,
        oversampling=settings.oversampling,
        joint_rank=settings.joint_rank,
        seed=config.seed,
        basis_dtype=getattr(torch, settings.factor_dtype),
    )


def choose_priors(
    config: RunConfig,
    posterior: Posterior,
    calibration: ProjectedSplit,
    distances: torch.Tensor,
    log_likelihood: float,
) -> list[PriorChoice]:
    """Return every prior choice that is reported: by validation and by evidence, scalar and per group.

    One per group only where the posterior's structure takes it.
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
    return choices


def served_choice(config: RunConfig, choices: list[PriorChoice]) -> PriorChoice:
    """Return the choice that the configuration asks to serve."""
    wanted = (config.laplace.prior, config.laplace.granularity)
    return next(c for c in choices if (c.method, c.prior.granularity) == wanted)


def squared_distances(config: RunConfig, blocks: tuple[Block, ...]) -> torch.Tensor:
    """Return each block's squared Frobenius distance from its initial value, (blocks,) float64.

    PEFT starts A at random, so the norm itself is not evidence; rows of ``lm_head``'s ``lora_B`` that are no
    label never move and add nothing.
    """
    start = load_file(config.run_dir / "initial_adapter" / "adapter_model.safetensors")
    end = load_file(config.run_dir / "adapter" / "adapter_model.safetensors")
    keys = {k.removeprefix("base_model.model.").removesuffix(".weight"): k for k in end}
    moved = [(end[keys[b.name]].double() - start[keys[b.name]].double()).square().sum() for b in blocks]
    return torch.stack(moved)


def verify_fitted(run: Run) -> None:
    """Raise ConfigError where there is no fitted posterior, or it was fitted from something else."""
    path = run.config.run_dir / "laplace" / "fit.json"
    if not path.is_file():
        raise ConfigError(f"no fitted posterior in {path.parent}: run 'python -m training fit' first")
    if json.loads(path.read_text()).get("made_from") != fit_inputs(run):
        raise ConfigError(
            f"the posterior in {path.parent} was fitted from another configuration, other rows or another adapter: "
            "run 'python -m training fit' again"
        )


def read_choices(folder: Path) -> list[PriorChoice]:
    """Return the prior choices recorded by ``fit_laplace``."""
    record = json.loads((folder / "fit.json").read_text())
    return [
        PriorChoice(Prior(**c["prior"]), c["method"], c["objective"], tuple(c["at_bound"])) for c in record["choices"]
    ]
