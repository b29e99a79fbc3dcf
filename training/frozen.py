"""The frozen fit: heads on the base as it is, which every label trains, measured and served before any fine-tuning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from laplora.artifact.encoders import encoder_record
from laplora.artifact.manifest import EXPERTS, MANIFEST
from laplora.execution.terminal import program
from laplora.execution.workers import ALONE
from laplora.files.atomic import write_json
from laplora.fitting.entry import fit_as_it_is
from laplora.fitting.evaluation import evaluated
from laplora.fitting.saving import Parts
from laplora.settings import FitSettings
from training.package import made_by_another, write_of_run
from training.report.evaluation import print_table, write_report
from training.report.page import configuration, provenance, write_pages
from training.report.posterior import posterior_report
from training.workspace.provenance import frozen_inputs
from training.workspace.run import Run
from training.workspace.stores import frozen_store
from training.workspace.terminal import Terminal, say


def frozen_run(run: Run) -> Path:
    """Fit heads on an open run's base, measure them, write the artifact that serves at once, and return its folder.

    The first of several processes does so. An artifact of the same rows and settings stays, above all a fine-tuned one.

    Raises:
        DataError: rows that no head can be fitted on, such as none of some label.
    """
    return run.workers.broadcast(lambda: _frozen(replace(run, workers=ALONE)))


def _frozen(run: Run) -> Path:
    target, made_from = run.config.artifact_dir, frozen_inputs(run)
    if _stands(run, made_from):
        say(f"{target} is there, of the same rows and settings")
        return target
    folder = run.config.run_dir / "frozen"
    for name in ("fitted", "report"):
        shutil.rmtree(folder / name, ignore_errors=True)
    fields = _fitted(run, folder)
    run.base.release()  # the artifact's answers are recorded by a model that is loaded as a server loads it
    write_of_run(run, fields, Parts(folder / "fitted", report=folder / "report"), {})
    say(f"serve it: {program()} serve {target}")
    return target


def _stands(run: Run, made_from: str) -> bool:
    """Return whether the run's artifact is there, with or without an adapter, of the same rows and settings."""
    path = run.config.artifact_dir / MANIFEST
    if not path.is_file() or made_by_another(run.config):
        return False
    return bool(json.loads(path.read_text(encoding="utf-8")).get("data", {}).get("made_from") == made_from)


def _fitted(run: Run, folder: Path) -> Mapping[str, Any]:
    """Write the heads and their report into a folder, and return what a manifest says of them."""
    config, test = run.config, run.splits.test
    classifier = run.classifier(run.adapted(lambda base: base))
    calibration = config.calibration.settings.model_copy(update={"guarantee": "empirical"})
    if config.calibration.guarantee != "empirical":
        say("guarantee: upper_bound needs rows that trained nothing, and every row trains these heads: empirical")
    settings = FitSettings(calibration=calibration, experts=run.experts, seed=config.seed)
    posterior = fit_as_it_is(classifier, run.labelled, settings, Terminal(), frozen_store(run))
    posterior.write_fitted(folder / "fitted")
    measured = evaluated(posterior.predictor, classifier, test, Terminal())
    values, report = measured.to_json(), folder / "report"
    write_json(report / "evaluation.json", values)
    title = f"{config.name}, not fine-tuned: {len(test)} test rows"
    served = f"served, chosen by the calibration: {posterior.heads.choice.reason}"
    write_report(measured.evaluations, report, title=title, sets=measured.sets, note=f"{served}.")
    page = posterior_report(
        posterior,
        test,
        measured,
        title=f"{config.name}, not fine-tuned",
        measured_on=f"{len(test)} test rows of {run.splits.report['dataset']}, which no head has seen",
        provenance=provenance(run, {"heads": folder / "fitted" / EXPERTS}),
        configuration=configuration(config),
        texts=True,
    )
    verdict = write_pages(page, folder, texts_travel=config.evaluation.report_texts)
    print_table(measured.evaluations, title=title)
    say(f"{verdict.title}. {verdict.sentence}")
    shutil.copyfile(folder / "report.html", config.run_dir / "report.html")  # until what is fine-tuned has one
    say(f"report: {config.run_dir / 'report.html'}")
    encoder = posterior.passes.encoder
    return posterior.heads.manifest_fields(encoder_record(encoder) if encoder else None)
