"""Evaluate: zero-shot, every predictive and every prior choice on the same test rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from laplora.decisions.conformal import label_sets
from laplora.decisions.uncertainty import review_score
from laplora.jacobians.contrasts import covered_blocks
from laplora.linearised import class_probs
from laplora.metrics.scores import Evaluation, evaluate_probs
from laplora.posterior.file import read_posterior
from laplora.predictive.kinds import PredictiveName
from training.calibration.calibrate import predictive_of, read_calibrated
from training.calibration.distillation import predicted, watched_layers
from training.calibration.fidelity import Fidelity, measure_fidelity
from training.calibration.label_sets import SetQuality, set_quality
from training.calibration.members import read_member_fits
from training.calibration.order_average import OrderGain, order_averages
from training.calibration.outputs import Fitted, split_outputs
from training.calibration.posteriors import read_choices, served_choice
from training.calibration.projected import project_split, split_tensors
from training.config import RunConfig
from training.data.examples import Example
from training.report.evaluation import display_name, print_table, write_report
from training.workspace.files import write_json, write_tensors
from training.workspace.provenance import evaluation_inputs
from training.workspace.results import load_trained, verify_fitted
from training.workspace.run import Run
from training.workspace.runtime import batched, open_run
from training.workspace.terminal import say


@dataclass(frozen=True)
class Measured:
    """Every method on the test split, in the order of the table.

    Attributes:
        sets: of the predictives, which are the methods that have sets.
        gains: of the predictives that were averaged over the orders of the choices.
        fidelity: of the fast predictive; None without it.
    """

    evaluations: dict[str, Evaluation]
    sets: dict[str, SetQuality]
    gains: dict[str, OrderGain]
    fidelity: Fidelity | None

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, lists and dicts, by method."""
        values = {name: evaluation.to_json() for name, evaluation in self.evaluations.items()}
        for name, quality in self.sets.items():
            values[name]["sets"] = vars(quality)
        for name, gain in self.gains.items():
            values[name]["order_average"] = vars(gain)
        if self.fidelity:
            values["fast"]["fidelity"] = vars(self.fidelity)
        return values


def evaluate(config: RunConfig) -> Path:
    """Measure every method on the test split and return the report's folder; ConfigError where nothing is fitted."""
    run = open_run(config)
    model = load_trained(run)
    verify_fitted(run)
    fitted, folder = config.run_dir / "laplace", config.run_dir / "report"
    measured = measure(run, model, fitted)
    write_json(folder / "evaluation.json", measured.to_json())
    recommended = read_calibrated(fitted).recommended
    title = f"{config.name}: {len(run.splits.test)} test rows"
    sentences = [gain.sentence(display_name(name)) for name, gain in measured.gains.items()]
    sentences += [measured.fidelity.sentence()] if measured.fidelity else []
    note = "\n\n".join(f"{sentence}." for sentence in (f"Served: {recommended.reason}", *sentences))
    write_report(measured.evaluations, folder, title=title, sets=measured.sets, note=note)
    print_table(measured.evaluations, title=title)
    for sentence in sentences:
        say(sentence)
    say(f"served, chosen by the {recommended.chosen_by}: {recommended.reason}")
    say(f"report: {folder}")
    return folder


def measure(run: Run, model: Any, fitted: Path) -> Measured:
    """Return the evaluation of every method on the test split.

    ``laplace`` has the served prior; the other prior choices carry their method and granularity.
    """
    config, test = run.config, run.splits.test
    posterior = read_posterior(fitted / "posterior.safetensors", covered_blocks(model, run.readout))
    calibrated, choices = read_calibrated(fitted), read_choices(fitted)
    predictives, served = calibrated.predictives, served_choice(config, choices)
    with model.disable_adapter():
        zero_shot = plain_probs(run, model, test)
    split = project_split(run, model, posterior, test, "test rows", watched_layers(config, model))
    write_tensors(
        config.run_dir / "report" / "test.safetensors", split_tensors(split), {"made_from": evaluation_inputs(run)}
    )
    trained = Fitted(posterior, served.prior, split.projected)
    fits = read_member_fits(run, model)
    outputs = split_outputs(run, model, trained, split, fits, test, "test rows")
    estimate = predicted(config, model, split, run.class_count)
    outputs = replace(outputs, distilled=estimate.covariance if estimate else None)
    results = {"zero_shot": evaluate_probs(zero_shot, split.labels)}
    sets: dict[str, SetQuality] = {}
    map_probs = class_probs(split.logits, split.class_mask)
    for name, record in predictives.items():
        probs = predictive_of(outputs, name, record.temperature).probs
        scores = review_score(record.thresholds, probs=probs, map_probs=map_probs)
        results[name] = evaluate_probs(probs, split.labels, scores)
        chosen = label_sets(calibrated.calibration.conformal, probs, record.conformal, split.class_mask)
        sets[name] = set_quality(chosen, split.labels)
    gains: dict[str, OrderGain] = {}
    if config.evaluation.order_average:
        names: tuple[PredictiveName, ...] = ("map", calibrated.recommended.predictive)
        records = {name: predictives[name] for name in names}
        averaged, gains = order_averages(run, model, outputs, fits, test, records)
        results |= averaged
    for choice in choices:
        if choice != served:
            of_choice = replace(outputs, fitted=(replace(trained, prior=choice.prior),))
            probs = predictive_of(of_choice, "laplace", 1.0).probs
            results[f"laplace_{choice.method}_{choice.prior.granularity}"] = evaluate_probs(probs, split.labels)
    truncated = [row.truncated for row in run.encode(test)]
    fidelity = measure_fidelity(predictives, estimate, outputs, truncated) if estimate else None
    return Measured(results, sets, gains, fidelity)


@torch.no_grad()
def plain_probs(run: Run, model: nn.Module, examples: tuple[Example, ...]) -> torch.Tensor:
    """Return class probabilities by forward passes alone, (rows, classes) float64, in row order."""
    probs = torch.zeros(len(examples), run.class_count, dtype=torch.float64)
    for index, batch in batched(run, examples, "zero-shot rows"):
        logits = run.readout.scores(model, batch).logits
        probs[index] = class_probs(logits, batch.class_mask).cpu()
    return probs
