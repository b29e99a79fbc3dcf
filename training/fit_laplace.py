"""Fit the posterior: curvature over the training rows, then the prior precision.

Two passes over the training rows and one over the calibration rows. All three are sums or independent
rows, saved as they go, so a job that was stopped continues where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from laplora.blocks import Block, ContrastJacobians
from laplora.curvature import (
    EigenSums,
    KroneckerSums,
    add_batch,
    add_eigen_batch,
    empty_eigen_sums,
    empty_sums,
    kronecker_bases,
    stored_basis,
)
from laplora.errors import ConfigError
from laplora.jacobians import contrast_jacobians, find_blocks
from laplora.model import attach_adapter
from laplora.posterior import (
    Posterior,
    Prior,
    block_precisions,
    build_posterior,
    effective_dimension,
    spectrum,
)
from laplora.posterior_file import posterior_tensors
from laplora.prior import PriorChoice, choose_by_evidence, choose_by_validation
from laplora.prompts import EncodedRow
from training.calibrate import calibrate
from training.config import RunConfig
from training.data import Example
from training.finetune import trained_as
from training.projected import ProjectedSplit, covariance_under, project_split, split_tensors
from training.provenance import curvature_inputs, fit_inputs
from training.runtime import Run, batches, open_run, progress, say, write_json, write_tensors

#: How often the sums are saved, seconds.
SAVE_EVERY_S = 30.0

State = TypeVar("State", KroneckerSums, EigenSums)


def fit_laplace(config: RunConfig) -> Path:
    """Fit the posterior of a trained run and return its folder.

    Raises:
        ConfigError: the run has no trained adapter.
    """
    run = open_run(config)
    folder = config.run_dir / "laplace"
    model = load_trained(run)
    blocks = find_blocks(model, run.class_count)
    posterior, log_likelihood = fit_curvature(run, model, blocks, folder)
    calibration = project_split(run, model, blocks, posterior, run.splits.calibration, "calibration rows")
    distances = squared_distances(config, blocks)
    choices = choose_priors(config, posterior, calibration, distances, log_likelihood)
    write_tensors(folder / "posterior.safetensors", *posterior_tensors(posterior, config.laplace.factor_dtype))
    write_tensors(folder / "calibration.safetensors", split_tensors(calibration))
    served = served_choice(config, choices)
    flat = spectrum(posterior)
    record = calibrate(config, calibration, covariance_under(posterior, served.prior, calibration))
    write_json(folder / "calibrators.json", record.model_dump(mode="json"))
    summary = {
        "served": {"method": served.method, "granularity": served.prior.granularity},
        "choices": [asdict(c) for c in choices],
        "log_likelihood": log_likelihood,
        "train_rows": posterior.rows,
        "made_from": fit_inputs(run),
        "squared_distances": dict(zip((b.name for b in blocks), distances.tolist(), strict=True)),
        "effective_dimension": float(effective_dimension(flat, block_precisions(served.prior, blocks)).sum()),
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
    settings = run.config.laplace
    examples = run.splits.train
    rows = run.encode(examples)
    first = empty_sums(blocks, sketch_columns=settings.rank + settings.oversampling, seed=run.config.seed)
    sums, _ = _pass_over(
        run, model, blocks, rows, examples, first, add_batch, folder / "factors.safetensors", "factors"
    )
    dtype = getattr(torch, settings.factor_dtype)
    bases = [stored_basis(b, dtype) for b in kronecker_bases(sums, settings.rank)]

    def add(state: EigenSums, jacobians: ContrastJacobians, mask: torch.Tensor) -> EigenSums:
        return add_eigen_batch(state, jacobians, bases, mask)

    eigen, log_likelihood = _pass_over(
        run, model, blocks, rows, examples, empty_eigen_sums(bases), add, folder / "scales.safetensors", "scales"
    )
    return build_posterior(blocks, bases, eigen), log_likelihood


def _pass_over(
    run: Run,
    model: nn.Module,
    blocks: tuple[Block, ...],
    rows: list[EncodedRow],
    examples: tuple[Example, ...],
    state: State,
    add: Callable[[State, ContrastJacobians, torch.Tensor], State],
    path: Path,
    title: str,
) -> tuple[State, float]:
    plan = batches(rows, run.config.laplace.batch_size)
    log_likelihood = 0.0
    mark = curvature_inputs(run)
    if path.is_file():
        state, log_likelihood = _read_state(path, state, mark)
    done = 0
    while done < len(plan) and sum(len(b) for b in plan[: done + 1]) <= state.rows:
        done += 1
    saved_at = time.monotonic()
    for number in progress(range(done, len(plan)), len(plan) - done, f"curvature: {title}"):
        batch = run.collate([rows[i] for i in plan[number]])
        jacobians = contrast_jacobians(model, batch, run.label_ids, blocks)
        state = add(state, jacobians, batch.class_mask)
        labels = torch.tensor([examples[i].label for i in plan[number]], device=run.device)
        log_probs = jacobians.logits.double().masked_fill(~batch.class_mask, -torch.inf).log_softmax(-1)
        log_likelihood += float(log_probs.gather(1, labels[:, None]).sum())
        if time.monotonic() - saved_at > SAVE_EVERY_S or number + 1 == len(plan):
            _write_state(path, state, log_likelihood, mark)
            saved_at = time.monotonic()
    return state, log_likelihood


def _write_state(path: Path, state: KroneckerSums | EigenSums, log_likelihood: float, mark: str) -> None:
    first, second = _tensor_fields(state)
    tensors = {f"0.{i}": t for i, t in enumerate(first)} | {f"1.{i}": t for i, t in enumerate(second)}
    write_tensors(path, tensors, {"rows": str(state.rows), "log_likelihood": repr(log_likelihood), "mark": mark})


def _read_state(path: Path, empty: State, mark: str) -> tuple[State, float]:
    tensors = load_file(path)
    with safe_open(path, framework="pt") as handle:
        metadata = handle.metadata()
    if metadata["mark"] != mark:
        return empty, 0.0
    count = len(tensors) // 2
    first = tuple(tensors[f"0.{i}"] for i in range(count))
    second = tuple(tensors[f"1.{i}"] for i in range(count))
    rows, log_likelihood = int(metadata["rows"]), float(metadata["log_likelihood"])
    names = ("wide", "narrow") if isinstance(empty, KroneckerSums) else ("scale", "rest")
    fields: dict[str, Any] = dict(zip(names, (first, second), strict=True))
    return replace(empty, rows=rows, **fields), log_likelihood


def _tensor_fields(state: KroneckerSums | EigenSums) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    return (state.wide, state.narrow) if isinstance(state, KroneckerSums) else (state.scale, state.rest)


def choose_priors(
    config: RunConfig,
    posterior: Posterior,
    calibration: ProjectedSplit,
    distances: torch.Tensor,
    log_likelihood: float,
) -> list[PriorChoice]:
    """Return every prior choice that is reported: by validation and by evidence, scalar and per group."""
    flat, blocks = spectrum(posterior), posterior.blocks
    granularities = dict.fromkeys(["scalar", "group", config.laplace.granularity])
    choices = []
    for granularity in granularities:
        choices.append(choose_by_evidence(flat, blocks, distances, log_likelihood, granularity))
        if granularity != "module":
            choices.append(
                choose_by_validation(
                    flat, blocks, calibration.projected, calibration.labels, calibration.class_mask, granularity
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
