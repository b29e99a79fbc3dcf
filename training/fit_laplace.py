"""Fit the posterior: curvature over the training rows, then the prior precision and the calibrators.

The passes over the training rows are saved as they go, so a job that was stopped continues where it was.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

from laplora.jacobians.contrasts import covered_blocks
from laplora.posterior.base import block_precisions
from laplora.posterior.file import posterior_tensors
from laplora.posterior.subset import select_blocks
from training.calibration.calibrate import calibrate, write_calibrated
from training.calibration.distillation import distill_covariance, read_record, watched_layers
from training.calibration.members import fit_members
from training.calibration.outputs import Fitted, split_outputs
from training.calibration.posteriors import choose_priors, fit_curvature, served_choice, squared_distances
from training.calibration.projected import project_split, split_tensors
from training.config import RunConfig
from training.workspace.files import write_json, write_tensors
from training.workspace.provenance import fit_inputs
from training.workspace.results import load_trained
from training.workspace.runtime import open_run
from training.workspace.terminal import say


def fit_laplace(config: RunConfig) -> Path:
    """Fit the posterior of a trained run and return its folder; ConfigError where there is no trained adapter."""
    run = open_run(config)
    folder = config.run_dir / "laplace"
    model = load_trained(run)
    blocks = select_blocks(covered_blocks(model, run.readout), config.laplace.subset)
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
    calibrated, scores = calibrate(config, replace(outputs, distilled=distilled))
    write_calibrated(folder, calibrated, scores)
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
    if record := read_record(config):
        say(f"fast: distilled from {record.inputs} inputs, variances within a factor of {math.exp(record.error):.2f}")
    for choice in choices:
        say(
            f"prior by {choice.method} ({choice.prior.granularity}): "
            + ", ".join(f"{k} {v:.4g}" for k, v in list(choice.prior.precision.items())[:4])
            + (" (at the edge of the searched range)" if choice.at_bound else "")
        )
    say(f"served, chosen by the {calibrated.recommended.chosen_by}: {calibrated.recommended.reason}")
    return folder
