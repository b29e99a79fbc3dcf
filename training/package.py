"""Package: write the artifact that the server loads, and prove that it answers."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from laplora.answers.golden import golden_entry
from laplora.artifact.folder import file_records, new_artifact, write_manifest
from laplora.artifact.manifest import (
    ADAPTER_FOLDER,
    DISTILLED,
    FORMAT_VERSION,
    GOLDEN,
    MANIFEST,
    POSTERIOR,
    SCORES,
    Manifest,
    MemberRecord,
    PriorRecord,
    TemplateRecord,
)
from laplora.artifact.readout_records import LabelTokensRecord
from laplora.models.hashes import tokenizer_hash, weights_hash
from laplora.predictor import Predictor
from laplora.prior.search import PriorChoice
from training.calibration.calibrate import read_calibrated
from training.calibration.distillation import read_record
from training.calibration.members import dropout_record, fit_folder
from training.calibration.posteriors import read_choices, read_member_choice, served_choice
from training.config import RunConfig, config_hash_fields
from training.config.folders import configuration_digest
from training.workspace.files import write_json
from training.workspace.members import member_folder, member_steps
from training.workspace.provenance import installed_versions
from training.workspace.results import verify_evaluated, verify_fitted
from training.workspace.run import Run
from training.workspace.runtime import open_run
from training.workspace.terminal import say

#: How far a replayed probability may be from the recorded one. Activations in bfloat16 are rounded differently by
#: every processor and kernel: up to 0.20 was seen. What this lets through is
#: compared besides: hashes of base, quantization and tokenizer, and the variances. Float32 differs by the order of
#: sums.
TOLERANCE = {"bfloat16": 0.25, "float32": 2e-3}
#: The same of the logarithm of a variance: 0.57 was seen in bfloat16, of an answer with ten times the others' variance.
VARIANCE_TOLERANCE = {"bfloat16": 1.0, "float32": 0.05}


def package(config: RunConfig) -> Path:
    """Write the artifact of a finished run and return its folder; ConfigError where a step before it has not run."""
    run = open_run(config)
    fitted, report = config.run_dir / "laplace", config.run_dir / "report"
    verify_fitted(run)
    verify_evaluated(run)
    if made_by_another(config):
        say(
            f"{config.artifact_dir} holds an artifact of another configuration, whose run is not in {config.runs}: "
            "it is replaced"
        )
    with new_artifact(config.artifact_dir) as folder:
        shutil.copytree(config.run_dir / "adapter", folder / ADAPTER_FOLDER)
        shutil.copy(fitted / POSTERIOR, folder / POSTERIOR)
        shutil.copy(fitted / SCORES, folder / SCORES)
        if config.predictives.fast:
            shutil.copy(fitted / DISTILLED, folder / DISTILLED)
        copy_members(config, folder)
        shutil.copytree(report, folder / "report", ignore=shutil.ignore_patterns("*.safetensors"))
        shutil.copy(fitted / "fit.json", folder / "report" / "fit.json")
        manifest = describe(run, fitted, report)
        write_json(folder / GOLDEN, {"tolerance": TOLERANCE[config.base.dtype], "answers": []})
        write_manifest(folder, manifest.model_copy(update={"files": file_records(folder)}))
        predictor = Predictor.load(folder, device=str(run.device), verify_golden=False, progress=say)
        write_json(folder / GOLDEN, golden_answers(run, predictor))
        write_manifest(folder, manifest.model_copy(update={"files": file_records(folder)}))
    say(f"artifact: {config.artifact_dir}")
    return config.artifact_dir


def made_by_another(config: RunConfig) -> bool:
    """Return whether there is an artifact of this name that another configuration made."""
    path = config.artifact_dir / MANIFEST
    if not path.exists():
        return False
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))["config"]
        return configuration_digest(fields) != configuration_digest(config_hash_fields(config))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return True


def describe(run: Run, fitted: Path, report: Path) -> Manifest:
    """Return the manifest of a run, its files not yet listed."""
    config, task = run.config, run.splits.task
    choice = served_choice(config, read_choices(fitted))
    template = {k: v for k, v in asdict(task.template).items() if k in TemplateRecord.model_fields}
    return Manifest(
        format_version=FORMAT_VERSION,
        name=config.artifact_dir.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base_model=config.base.model,
        revision=config.base.revision,
        base_weights_hash=weights_hash(run.location, config.base.revision),
        quantization=config.base.quantization,
        dtype=config.base.dtype,
        tokenizer_hash=tokenizer_hash(run.tokenizer),
        template=TemplateRecord(**template),
        labels=task.labels,
        readout=LabelTokensRecord(kind="label_tokens", verbalizers=run.verbalizers, token_ids=run.readout.token_ids),
        max_tokens=config.max_tokens,
        prior=prior_record(choice),
        members=member_records(config),
        dropout=dropout_record(config),
        distilled=read_record(config),
        **dict(read_calibrated(fitted)),
        metrics=summary(json.loads((report / "evaluation.json").read_text())),
        config=config_hash_fields(config),
        data=run.splits.report,
        versions=installed_versions(),
        files={},
    )


def member_records(config: RunConfig) -> tuple[MemberRecord, ...]:
    """Return the ensemble's further adapters, in the order of training."""
    records = []
    for number, step in enumerate(member_steps(config), 1):
        fitted = config.predictives.laplace_ensemble
        prior = prior_record(read_member_choice(fit_folder(config, step))) if fitted else None
        records.append(MemberRecord(folder=f"members/{number}", step=step, prior=prior))
    return tuple(records)


def copy_members(config: RunConfig, folder: Path) -> None:
    """Copy the ensemble's further adapters and their posteriors into an artifact."""
    for record in member_records(config):
        shutil.copytree(member_folder(config, record.step), folder / record.folder / ADAPTER_FOLDER)
        if record.prior:
            shutil.copy(fit_folder(config, record.step) / POSTERIOR, folder / record.folder / POSTERIOR)


def prior_record(choice: PriorChoice) -> PriorRecord:
    """Return a prior choice as an artifact records it."""
    return PriorRecord(
        method=choice.method,
        granularity=choice.prior.granularity,
        precision=choice.prior.precision,
        objective=choice.objective,
    )


def summary(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return the scalar metrics of every method."""
    names = ("rows", "accuracy", "nll", "ece", "brier", "auroc_error", "auprc_error", "aurc")
    return {
        method: {n: values[n] for n in names}
        | ({f"set_{n}": values["sets"][n] for n in ("coverage", "mean_size")} if "sets" in values else {})
        | ({"fidelity": values["fidelity"]} if "fidelity" in values else {})
        for method, values in evaluation.items()
    }


def golden_answers(run: Run, predictor: Predictor) -> dict[str, Any]:
    """Return inputs and the answers that the server must reproduce."""
    inputs = [dict(i) for i in run.config.golden_inputs] or [dict(e.fields) for e in run.splits.calibration[:4]]
    rows = [predictor.encode(i, truncate=True) for i in inputs]
    answers = [answer for row in rows for answer in predictor.predict([row], also=predictor.predictives)]
    return {
        "tolerance": TOLERANCE[run.config.base.dtype],
        "variance_tolerance": VARIANCE_TOLERANCE[run.config.base.dtype],
        "answers": [golden_entry(i, a) for i, a in zip(inputs, answers, strict=True)],
    }
