"""Evaluate: zero-shot, every predictive and every prior choice on the same test rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from laplora.artifact.head_files import read_heads
from laplora.artifact.manifest import EXPERTS, FAMILIARITY, POSTERIOR
from laplora.artifact.report_page import REPORT_PAGE
from laplora.classifier import Classifier, without_adapter
from laplora.execution.workers import ALONE
from laplora.familiarity.file import read_familiarity_for
from laplora.familiarity.percentile import is_unfamiliar
from laplora.features.expert_passes import ExpertPasses, expert_passes
from laplora.features.outputs import HeadSource
from laplora.files.atomic import write_json, write_tensors
from laplora.fitting.calibrate import predictive_of
from laplora.fitting.evaluation import Gain, RowProbs, evaluate_predictives, gain_over_temperature, outputs_of
from laplora.fitting.projected import split_tensors
from laplora.fitting.saving import FitRecord, read_fit
from laplora.jacobians.contrasts import covered_blocks
from laplora.linearised import class_probs
from laplora.metrics.label_sets import SetQuality
from laplora.metrics.scores import Evaluation, evaluate_probs
from laplora.pool.served import NO_EXPERTS, ServedExperts
from laplora.posterior.file import read_posterior
from laplora.prompts.examples import Example
from laplora.prompts.rows import Batch
from laplora.report.records import Rows
from training.config import RunConfig
from training.report.evaluation import print_table, write_report
from training.report.page import answered_rows, run_report, write_pages
from training.workspace.provenance import evaluation_inputs
from training.workspace.results import load_trained, verify_fitted
from training.workspace.run import Run
from training.workspace.runtime import open_run
from training.workspace.terminal import Terminal, progress, say


@dataclass(frozen=True)
class Measured:
    """Every method on the test split, in the order of the table.

    Attributes:
        sets: of the predictives, which are the methods that have sets.
        over_temperature: of the recommended predictive; None where that is temperature scaling.
        unfamiliar: share of the rows that are flagged so; None where nothing says which.
        rows: as a server answers them.
    """

    evaluations: dict[str, Evaluation]
    sets: dict[str, SetQuality]
    over_temperature: Gain | None
    unfamiliar: float | None
    rows: Rows

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, lists and dicts, by method."""
        values = {name: evaluation.to_json() for name, evaluation in self.evaluations.items()}
        for name, quality in self.sets.items():
            values[name]["sets"] = vars(quality)
        if one := self.over_temperature:
            values[one.predictive]["less_temperature"] = {"nll": one.difference, "interval": [one.low, one.high]}
        if self.unfamiliar is not None:
            values["map"]["unfamiliar"] = self.unfamiliar  # of every predictive: it goes by the trained adapter's pass
        return values


def evaluate(config: RunConfig) -> Path:
    """Measure every method on the test split and return the report's folder; ConfigError where nothing is fitted."""
    return evaluate_run(open_run(config.fine_tuned))


def evaluate_run(run: Run) -> Path:
    """Measure an open run; as ``evaluate``."""
    config = run.config
    model = load_trained(run)
    verify_fitted(run)
    fitted, folder = config.run_dir / "laplace", config.run_dir / "report"
    measured = measure(run, model, fitted)
    run.workers.broadcast(lambda: _report(replace(run, workers=ALONE), measured, fitted, folder))
    return folder


def _report(run: Run, measured: Measured, fitted: Path, folder: Path) -> None:
    """Write the report of what was measured, and print it."""
    config = run.config
    values, record = measured.to_json(), read_fit(fitted)
    recommended = record.calibrated.recommended
    target = record.calibrated.predictives[recommended.predictive].thresholds.review.target_risk
    values[recommended.predictive]["accepted"] = _mistakes(measured.rows.wrong, ~measured.rows.review)
    if (alone := measured.rows.map_probs) is not None:
        sure = alone.amax(1) >= 1 - target
        values["map"]["at_its_word"] = _mistakes(alone.argmax(1) != measured.rows.right, sure)
    write_json(folder / "evaluation.json", values)
    title = f"{config.name}: {len(run.splits.test)} test rows"
    sentences = [str(gain) for gain in (record.fine_tuning, measured.over_temperature) if gain]
    if measured.unfamiliar is not None and record.familiarity:
        stated = record.familiarity.false_alarms
        sentences.append(f"Flagged as unfamiliar: {measured.unfamiliar:.1%} of the rows, stated at most {stated:.1%}")
    gain = measured.over_temperature
    report = run_report(
        run, record, values, measured.rows, (gain.difference, gain.low, gain.high) if gain else None, sentences
    )
    verdict = write_pages(report, config.run_dir, texts_travel=config.evaluation.report_texts)
    lines = (f"Served: {recommended.reason}", *sentences, f"{verdict.title}. {verdict.sentence.removesuffix('.')}")
    note = "\n\n".join(f"{sentence}." for sentence in lines)
    write_report(measured.evaluations, folder, title=title, sets=measured.sets, note=note)
    print_table(measured.evaluations, title=title)
    for sentence in sentences:
        say(sentence)
    say(f"{verdict.title}. {verdict.sentence}")
    say(f"served, chosen by the {recommended.chosen_by}: {recommended.reason}")
    say(f"report: {config.run_dir / Path(REPORT_PAGE).name}; what the artifact takes along is in {folder}")


def _mistakes(wrong: torch.Tensor, accepted: torch.Tensor) -> dict[str, int]:
    """Return how many rows are accepted, and how many of these are wrong; both (rows,) bool."""
    return {"rows": int(accepted.sum()), "wrong": int((wrong & accepted).sum())}


def measure(run: Run, model: Any, fitted: Path) -> Measured:
    """Return the evaluation of every method on the test split.

    ``laplace`` has the served prior; the other prior choices carry their method and granularity.
    """
    config, test, classifier = run.config, run.splits.test, run.classifier(model)
    record, blocks = read_fit(fitted), covered_blocks(model, run.readout)
    calibrated, familiar = record.calibrated, record.familiarity
    with without_adapter(model):
        zero_shot = plain_probs(classifier, test, config.laplace.batch_size)
    heads, passes = heads_of(classifier, record, fitted)
    posterior = read_posterior(fitted / POSTERIOR, blocks)
    row_outputs = outputs_of(
        classifier,
        config.fit.laplace.batch_size,
        posterior,
        record.served.prior,
        read_familiarity_for(model, fitted / FAMILIARITY, familiar.layers, familiar.tokens) if familiar else None,
        test,
        Terminal(),
        heads=heads,
        passes=passes,
    )
    outputs, split = row_outputs.outputs, row_outputs.outputs.split
    if run.workers.first:
        write_tensors(
            config.run_dir / "report" / "test.safetensors", split_tensors(split), {"made_from": evaluation_inputs(run)}
        )
    options: dict[str, Any] = {"groups": split.groups, "ordered": calibrated.calibration.ordered}
    results = {"zero_shot": evaluate_probs(zero_shot, split.labels, **options)}
    unfamiliar = None
    if record.familiarity and row_outputs.familiarity is not None:
        unfamiliar = is_unfamiliar(row_outputs.familiarity, record.familiarity.false_alarms)
    conformal = calibrated.calibration.conformal
    by_predictive = RowProbs.of(row_outputs, calibrated.temperatures)
    evaluations, sets, _ = evaluate_predictives(by_predictive, calibrated.predictives, conformal, unfamiliar)
    results |= evaluations
    for choice in record.choices:
        if choice != record.served:
            of_choice = replace(outputs, fitted=replace(outputs.fitted, prior=choice.prior))
            probs = predictive_of(of_choice, "laplace", 1.0).probs
            name = f"laplace_{choice.method}_{choice.prior.granularity}"
            results[name] = evaluate_probs(probs, split.labels, **options)
    encoded = classifier.encode_examples(test)
    share = None if unfamiliar is None else float(unfamiliar.double().mean())
    over_temperature = gain_over_temperature(by_predictive, calibrated.recommended.predictive)
    rows = answered_rows(row_outputs, calibrated, unfamiliar, test, encoded, classifier.labels)
    return Measured(results, sets, over_temperature, share, rows)


def heads_of(classifier: Classifier, record: FitRecord, fitted: Path) -> tuple[ServedExperts, ExpertPasses | None]:
    """Return the heads of a fit, and the passes of those that do not look at the adapter; None without such."""
    if not record.experts:
        return NO_EXPERTS, None
    weights = {str(name): weight for name, weight in record.pool.items()}
    heads = read_heads(fitted / EXPERTS, record.experts, weights, classifier.readout.likelihood, classifier.class_count)
    names = tuple(source for source in get_args(HeadSource) if source in heads.sources(heads.heads))
    if not names:
        return heads, None
    return heads, expert_passes(classifier, names, record.encoder.name if record.encoder else None, say)


@torch.no_grad()
def plain_probs(classifier: Classifier, examples: Sequence[Example], batch_size: int) -> torch.Tensor:
    """Return class probabilities by forward passes alone, (rows, classes) float64, in row order."""

    def answered(batch: Batch) -> torch.Tensor:
        return class_probs(classifier.readout.scores(classifier.model, batch).logits, batch.class_mask).cpu()

    parts, order = classifier.over_batches(
        examples, batch_size, answered, lambda items: progress(items, "zero-shot rows")
    )
    return torch.cat(parts)[order]
