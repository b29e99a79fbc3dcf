"""The ensemble's further adapters: each one's posterior and prior, and how dropout masks are drawn."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from laplora.artifact.manifest import DropoutRecord
from laplora.jacobians.blocks import Block
from laplora.jacobians.contrasts import covered_blocks
from laplora.posterior.base import Posterior
from laplora.posterior.file import posterior_tensors, read_posterior
from laplora.predictive.member_adapters import in_place, lora_parameters, read_weights
from laplora.prior.search import PriorChoice
from training.calibration.posteriors import (
    choose_priors,
    fit_curvature,
    read_member_choice,
    served_choice,
    squared_distances,
)
from training.calibration.projected import project_split
from training.config import RunConfig
from training.workspace.files import write_json, write_tensors
from training.workspace.members import check_kept, member_folder, member_steps
from training.workspace.provenance import curvature_inputs, rows_digest
from training.workspace.run import Run


@dataclass(frozen=True)
class MemberFit:
    """The posterior and the prior of the adapter kept at a step."""

    step: int
    posterior: Posterior
    choice: PriorChoice


def fit_members(run: Run, model: nn.Module, blocks: tuple[Block, ...]) -> tuple[MemberFit, ...]:
    """Fit the ensemble's other adapters a posterior each over the same blocks; what is there is read.

    Raises:
        ConfigError: an adapter that was not kept.
    """
    config = run.config
    if not config.predictives.laplace_ensemble:
        return ()
    check_kept(config)
    for step in member_steps(config):
        adapter, folder = member_folder(config, step), fit_folder(config, step)
        mark, path = _mark(run, adapter), folder / "fit.json"
        if path.is_file() and json.loads(path.read_text())["made_from"] == mark:
            continue
        with in_place(lora_parameters(model), read_weights(model, adapter)):
            posterior, log_likelihood = fit_curvature(run, model, blocks, folder, adapter)
            split = project_split(run, model, posterior, run.splits.calibration, f"calibration rows, step {step}")
        distances = squared_distances(config, blocks, adapter)
        choice = served_choice(config, choose_priors(config, posterior, split, distances, log_likelihood))
        write_tensors(folder / "posterior.safetensors", *posterior_tensors(posterior, config.laplace.factor_dtype))
        write_json(path, {"made_from": mark, "choice": asdict(choice)})
    return read_member_fits(run, model)


def read_member_fits(run: Run, model: nn.Module) -> tuple[MemberFit, ...]:
    """Return what ``fit_members`` fitted."""
    if not run.config.predictives.laplace_ensemble:
        return ()
    blocks, fits = covered_blocks(model, run.readout), []
    for step in member_steps(run.config):
        folder = fit_folder(run.config, step)
        posterior = read_posterior(folder / "posterior.safetensors", blocks)
        fits.append(MemberFit(step, posterior, read_member_choice(folder)))
    return tuple(fits)


def fit_folder(config: RunConfig, step: int) -> Path:
    """Return the folder of the posterior of the adapter kept at a step."""
    return config.run_dir / "laplace" / "members" / f"step-{step}"


def _mark(run: Run, adapter: Path) -> str:
    """Return the digest of what a further adapter's posterior and prior depend on."""
    laplace = json.dumps(run.config.laplace.model_dump(mode="json"), sort_keys=True)
    return "/".join((curvature_inputs(run, adapter), rows_digest(run.splits.calibration), laplace))


def dropout_record(config: RunConfig) -> DropoutRecord | None:
    """Return how the run's dropout masks are drawn; None without MC dropout."""
    members = config.predictives.mc_dropout
    if not members:
        return None
    return DropoutRecord(probability=config.adapter.dropout, members=members, seed=config.seed)
