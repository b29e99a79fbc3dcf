"""Fit the posterior: curvature over the training rows, then the prior precision.

One or two passes over the training rows and one over the calibration rows. The passes over the training rows are
saved as they go, so a job that was stopped continues where it was.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from laplora.errors import ConfigError
from laplora.jacobians.contrasts import find_blocks
from laplora.models.adapters import attach_adapter
from laplora.posterior.base import Prior, block_precisions
from laplora.posterior.file import posterior_tensors
from laplora.posterior.prior import PriorChoice
from laplora.posterior.subset import select_blocks
from training.calibration.calibrate import calibrate, write_calibrated
from training.calibration.distillation import distill_covariance, watched_layers
from training.calibration.members import Fitted, fit_members, split_outputs
from training.calibration.posteriors import choose_priors, fit_curvature, served_choice, squared_distances
from training.calibration.projected import project_split, split_tensors
from training.config import RunConfig
from training.finetune import trained_as
from training.workspace.provenance import fit_inputs
from training.workspace.runtime import Run, open_run, say, write_json, write_tensors


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
    layers = watched_layers(config, model)
    calibration = project_split(run, model, posterior, run.splits.calibration, "calibration rows", layers)
    distances = squared_distances(config, blocks)
    train = None
    if config.laplace.prior == "leave_one_out":
        train = project_split(run, model, posterior, run.splits.train, "training rows")
    choices = choose_priors(config, posterior, calibration, distances, log_likelihood, train)
    write_tensors(folder / "posterior.safetensors", *posterior_tensors(posterior, config.laplace.factor_dtype))
    write_tensors(folder / "calibration.safetensors", split_tensors(calibration))
    served = served_choice(config, choices)
    fits = fit_members(run, model, posterior.blocks)
    trained = Fitted(posterior, served.prior, calibration.projected)
    distilled = distill_covariance(run, model, posterior, served.prior, calibration, folder)
    outputs = split_outputs(run, model, trained, calibration, fits, run.splits.calibration, "calibration rows")
    if distilled:
        outputs = replace(outputs, distilled=distilled.calibration)
    calibrated = calibrate(config, outputs)
    write_calibrated(folder, calibrated)
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
    if distilled:
        factor = math.exp(distilled.record.error)
        say(f"fast: distilled from {distilled.record.inputs} inputs, variances within a factor of {factor:.2f}")
    for choice in choices:
        say(
            f"prior by {choice.method} ({choice.prior.granularity}): "
            + ", ".join(f"{k} {v:.4g}" for k, v in list(choice.prior.precision.items())[:4])
            + (" (at the edge of the searched range)" if choice.at_bound else "")
        )
    say(f"served, chosen by the {calibrated.recommended.chosen_by}: {calibrated.recommended.reason}")
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
