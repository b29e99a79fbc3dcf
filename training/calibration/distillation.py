"""The fast predictive's covariance, distilled from those of calibration rows, training rows and further inputs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from laplora.artifact.manifest import DISTILLED, DistilledRecord
from laplora.jacobians.states import decoder_layers, join_states, spread_layers
from laplora.posterior.base import Posterior, Prior, block_precisions
from laplora.predictive.distilled import Estimate, distill
from laplora.predictive.distilled_error import FALSE_ALARMS, log_error
from laplora.predictive.distilled_file import distilled_tensors, read_distilled_for
from training.calibration.projected import ProjectedSplit, project_split, read_split, split_tensors
from training.config import RunConfig
from training.data.examples import Example
from training.data.files import read_inputs
from training.data.variants import variants
from training.workspace.files import write_json, write_tensors
from training.workspace.provenance import curvature_inputs, rows_digest
from training.workspace.run import Run

#: Inputs whose passes are kept in one file: what a stopped job loses at most.
_PART = 128


def watched_layers(config: RunConfig, model: Any) -> tuple[int, ...]:
    """Return the layers whose states are looked at; none without the fast predictive."""
    return spread_layers(len(decoder_layers(model))) if config.predictives.fast else ()


def distill_covariance(
    run: Run, model: nn.Module, posterior: Posterior, prior: Prior, calibration: ProjectedSplit, folder: Path
) -> torch.Tensor | None:
    """Distil a predictor from a posterior under its served prior and write it into a folder; None where it is off.

    Returns the calibration rows' covariances, (rows, classes - 1, classes - 1), each predicted from inputs that do not
    hold it.
    """
    if calibration.states is None:
        return None
    layers = watched_layers(run.config, model)
    inputs = further_inputs(run)
    parts = [calibration, *_passes(run, model, posterior, [e for e, _ in inputs], layers, folder / "distillation")]
    count = len(calibration.labels)
    groups = torch.tensor([*range(count), *(count + origin for _, origin in inputs)])
    precisions = block_precisions(prior, posterior.blocks)
    exact = torch.cat([posterior.covariance(part.projected, precisions) for part in parts])
    states = join_states([part.states for part in parts if part.states is not None])
    distilled = distill(states, exact, groups, layers, run.config.seed, calibration.class_mask)
    held_out = distilled.held_out[:count]
    error = log_error(held_out, exact[:count], calibration.class_mask)
    record = DistilledRecord(inputs=len(groups), error=error, false_alarms=FALSE_ALARMS)
    write_tensors(folder / DISTILLED, *distilled_tensors(distilled.predictor))
    write_json(folder / "distilled.json", record.model_dump(mode="json"))
    return held_out


def further_inputs(run: Run) -> list[tuple[Example, int]]:
    """Return training rows, then the user's inputs, then variants, each with the number of the row that it varies."""
    config, train = run.config.predictives, run.splits.train
    draw = random.Random(f"{run.config.seed}/distillation")

    def drawn(available: int) -> list[int]:
        return sorted(draw.sample(range(available), min(config.fast, available)))

    rows = [(train[i], i) for i in drawn(len(train))]
    unlabelled: list[Example] = []
    if config.fast_inputs:
        given = read_inputs(config.fast_inputs, run.splits.task)
        unlabelled = [given[i] for i in drawn(len(given))]
    made = variants(train, config.fast - len(unlabelled), run.config.seed)
    return rows + [(example, len(train) + i) for i, example in enumerate(unlabelled)] + made


def _passes(
    run: Run, model: nn.Module, posterior: Posterior, examples: list[Example], layers: tuple[int, ...], folder: Path
) -> list[ProjectedSplit]:
    """Return the inputs' projected Jacobians and states, part by part; those that are kept are read."""
    parts, model_mark = [], curvature_inputs(run)  # which reads all of the base's weights
    for number, start in enumerate(range(0, len(examples), _PART)):
        part = examples[start : start + _PART]
        path = folder / f"{number}.safetensors"
        mark = "/".join((model_mark, rows_digest(part), repr(layers)))
        if not _is_from(path, mark):
            title = f"inputs of fast, {start + 1} to {start + len(part)} of {len(examples)}"
            split = project_split(run, model, posterior, part, title, layers)
            write_tensors(path, split_tensors(split), {"mark": mark})
        parts.append(read_split(path))
    return parts


def _is_from(path: Path, mark: str) -> bool:
    if not path.is_file():
        return False
    with safe_open(path, framework="pt") as handle:
        return bool((handle.metadata() or {}).get("mark") == mark)


def read_record(config: RunConfig) -> DistilledRecord | None:
    """Return the record of what a run distilled; None where the fast predictive is off."""
    if not config.predictives.fast:
        return None
    return DistilledRecord.model_validate_json((config.run_dir / "laplace" / "distilled.json").read_text())


def predicted(config: RunConfig, model: Any, split: ProjectedSplit, classes: int) -> Estimate | None:
    """Return the covariances that a run's predictor gives for a split with states, and their errors; None: off."""
    if split.states is None:
        return None
    return read_distilled_for(model, config.run_dir / "laplace" / DISTILLED, classes).estimate(split.states)
