"""Evaluate: zero-shot, MAP, temperature scaling and Laplace on the same test rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from laplora.artifact import CalibrationRecord
from laplora.calibration import temperature_probs
from laplora.jacobians import find_blocks
from laplora.metrics import Evaluation, evaluate_probs
from laplora.model import label_logits, last_hidden
from laplora.posterior_file import read_posterior
from laplora.predictive import class_probs
from laplora.uncertainty import decompose, review_score
from training.calibrate import laplace_predictive
from training.config import RunConfig
from training.examples import Example
from training.fit_laplace import load_trained, read_choices, served_choice, verify_fitted
from training.projected import covariance_under, project_split, split_tensors
from training.provenance import evaluation_inputs
from training.report import print_table, write_report
from training.runtime import Run, batches, open_run, progress, say, write_json, write_tensors


def evaluate(config: RunConfig) -> Path:
    """Measure every method on the test split; return the folder with evaluation.json and the plots.

    Raises:
        ConfigError: the posterior was not fitted yet, or from other inputs.
    """
    run = open_run(config)
    model = load_trained(run)
    verify_fitted(run)
    evaluations = measure(run, model, config.run_dir / "laplace")
    folder = config.run_dir / "report"
    write_json(folder / "evaluation.json", {k: v.to_json() for k, v in evaluations.items()})
    write_report(evaluations, folder, title=f"{config.name}: {len(run.splits.test)} test rows")
    print_table(evaluations, title=f"{config.name}, {len(run.splits.test)} test rows")
    say(f"report: {folder}")
    return folder


def measure(run: Run, model: Any, fitted: Path) -> dict[str, Evaluation]:
    """Return the evaluation of every method on the test split, in the order of the table.

    ``laplace`` is what the artifact serves; the other prior choices carry their method and granularity.
    """
    config, test = run.config, run.splits.test
    posterior = read_posterior(fitted / "posterior.safetensors", find_blocks(model, run.class_count))
    calibration = CalibrationRecord.model_validate_json((fitted / "calibrators.json").read_text())
    with model.disable_adapter():
        zero_shot = plain_probs(run, model, test)
    split = project_split(run, model, posterior, test, "test rows")
    write_tensors(
        config.run_dir / "report" / "test.safetensors", split_tensors(split), {"made_from": evaluation_inputs(run)}
    )
    map_probs, labels = class_probs(split.logits, split.class_mask), split.labels
    results = {
        "zero_shot": evaluate_probs(zero_shot, labels),
        "map": evaluate_probs(map_probs, labels),
        "temperature": evaluate_probs(
            temperature_probs(split.logits, calibration.temperature, split.class_mask), labels
        ),
    }
    choices = read_choices(fitted)
    served = served_choice(config, choices)
    for choice in [served, *(c for c in choices if c != served)]:
        predictive = laplace_predictive(split, covariance_under(posterior, choice.prior, split))
        name, score = f"laplace_{choice.method}_{choice.prior.granularity}", None
        if choice == served:
            name = "laplace"
            score = review_score(
                calibration.thresholds.for_mode("laplace"),
                map_probs=map_probs,
                probs=predictive.probs,
                epistemic=decompose(predictive).epistemic,
            )
        results[name] = evaluate_probs(predictive.probs, labels, score)
    return results


@torch.no_grad()
def plain_probs(run: Run, model: nn.Module, examples: tuple[Example, ...]) -> torch.Tensor:
    """Return class probabilities by forward passes alone, (rows, classes) float64, in row order."""
    rows = run.encode(examples)
    plan = batches(rows, run.config.laplace.batch_size)
    probs = torch.zeros(len(rows), run.class_count, dtype=torch.float64)
    for index in progress(plan, len(plan), "zero-shot rows"):
        batch = run.collate([rows[i] for i in index])
        logits = label_logits(model, last_hidden(model, batch), run.label_ids)
        probs[index] = class_probs(logits, batch.class_mask).cpu()
    return probs
