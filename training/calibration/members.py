"""The ensemble's further adapters: each one's posterior and prior, and how dropout masks are drawn."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from laplora.artifact.manifest import DropoutRecord
from laplora.jacobians.blocks import Block
from laplora.jacobians.contrasts import find_blocks
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
    """A further adapter's posterior.

    Attributes:
        step: at which the adapter was kept; folder: of its posterior's file.
    """

    step: int
    folder: Path
    posterior: Posterior
    choice: PriorChoice


def fit_members(run: Run, model: nn.Module, blocks: tuple[Block, ...]) -> tuple[MemberFit, ...]:
    """Fit the ensemble's other adapters a posterior each, as the trained one's; what is there is read.

    Args:
        blocks: those that the posterior covers.

    Raises:
        ConfigError: an adapter that was not kept.
    """
    config = run.config
    if not config.predictives.laplace_ensemble:
        return ()
    check_kept(config)
    fits = []
    for step in member_steps(config):
        adapter, folder = member_folder(config, step), fit_folder(config, step)
        mark = member_mark(run, step)
        if not _is_fitted(folder, mark):
            with in_place(lora_parameters(model), read_weights(model, adapter)):
                posterior, log_likelihood = fit_curvature(run, model, blocks, folder, adapter)
                split = project_split(run, model, posterior, run.splits.calibration, f"calibration rows, step {step}")
            distances = squared_distances(config, blocks, adapter)
            choice = served_choice(config, choose_priors(config, posterior, split, distances, log_likelihood))
            write_tensors(folder / "posterior.safetensors", *posterior_tensors(posterior, config.laplace.factor_dtype))
            write_json(folder / "fit.json", {"made_from": mark, "choice": asdict(choice)})
        fits.append(read_member_fit(run, model, step))
    return tuple(fits)


def read_member_fits(run: Run, model: nn.Module) -> tuple[MemberFit, ...]:
    """Return what ``fit_members`` fitted."""
    steps = member_steps(run.config) if run.config.predictives.laplace_ensemble else ()
    return tuple(read_member_fit(run, model, step) for step in steps)


def read_member_fit(run: Run, model: nn.Module, step: int) -> MemberFit:
    """Return the posterior fitted to one further adapter."""
    folder = fit_folder(run.config, step)
    posterior = read_posterior(folder / "posterior.safetensors", find_blocks(model, run.class_count))
    return MemberFit(step, folder, posterior, read_member_choice(folder))


def fit_folder(config: RunConfig, step: int) -> Path:
    """Return the folder of the posterior of the adapter kept at a step."""
    return config.run_dir / "laplace" / "members" / f"step-{step}"


def member_mark(run: Run, step: int) -> str:
    """Return the digest of what a further adapter's posterior and prior depend on."""
    laplace = json.dumps(run.config.laplace.model_dump(mode="json"), sort_keys=True)
    rows = rows_digest(run.splits.calibration)
    return "/".join((curvature_inputs(run, member_folder(run.config, step)), rows, laplace))


def _is_fitted(folder: Path, mark: str) -> bool:
    path = folder / "fit.json"
    return path.is_file() and json.loads(path.read_text())["made_from"] == mark


def dropout_record(config: RunConfig) -> DropoutRecord | None:
    """Return how the run's dropout masks are drawn; None without MC dropout."""
    members = config.predictives.mc_dropout
    if not members:
        return None
    return DropoutRecord(probability=config.adapter.dropout, members=members, seed=config.seed)
