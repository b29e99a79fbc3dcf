"""Package: write the artifact that the server loads, and prove that it answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from laplora.answers.golden_inputs import golden_inputs
from laplora.artifact.describing import describe, summary
from laplora.artifact.manifest import MANIFEST
from laplora.artifact.readout_records import readout_record
from laplora.execution.workers import ALONE
from laplora.fitting.saving import Parts, fitted_fields, read_fit, write_artifact
from laplora.models.hashes import tokenizer_hash, weights_hash
from training.config import RunConfig, config_hash_fields
from training.config.folders import configuration_digest
from training.workspace.provenance import frozen_inputs
from training.workspace.results import verify_evaluated, verify_fitted
from training.workspace.run import Run, base_spec
from training.workspace.runtime import open_run
from training.workspace.selection import selection_record
from training.workspace.terminal import say


def package(config: RunConfig) -> Path:
    """Write the artifact of a finished run and return its folder; ConfigError where a step before it has not run."""
    return package_run(open_run(config.fine_tuned))


def package_run(run: Run) -> Path:
    """Write the artifact of an open run; as ``package``."""
    run.base.release()  # the artifact's answers are recorded by a model that is loaded as a server loads it
    return run.workers.broadcast(lambda: _packaged(replace(run, workers=ALONE)))


def _packaged(run: Run) -> Path:
    config = run.config
    fitted, report = config.run_dir / "laplace", config.run_dir / "report"
    verify_fitted(run)
    verify_evaluated(run)
    record = read_fit(fitted)
    fine_tuning = {"fine_tuning": str(record.fine_tuning)} if record.fine_tuning else {}
    parts = Parts(fitted, config.run_dir / "adapter", report)
    return write_of_run(run, fitted_fields(record), parts, selection_record(run) | fine_tuning)


def write_of_run(run: Run, fitted: Mapping[str, Any], parts: Parts, data: Mapping[str, Any]) -> Path:
    """Write a run's artifact, whose answers a freshly loaded one records, and return its folder.

    Args:
        fitted: the manifest's fields of what was fitted; data: what it says of its making beside the rows.
    """
    config, task, report = run.config, run.splits.task, parts.report
    assert report is not None
    if made_by_another(config):
        say(
            f"{config.artifact_dir} holds an artifact of another configuration, whose run is not in {config.runs}: "
            "it is replaced"
        )
    manifest = describe(
        fitted,
        name=config.artifact_dir.name,
        base=base_spec(run.config),
        base_weights_hash=weights_hash(run.location, config.base.revision),
        tokenizer_hash=tokenizer_hash(run.tokenizer),
        template=task.template,
        labels=task.labels,
        readout=readout_record(run.readout, run.verbalizers),
        max_tokens=config.max_tokens,
        question=config.question,
        metrics=summary(json.loads((report / "evaluation.json").read_text())),
        config=config_hash_fields(config),
        data={**run.splits.report, "made_from": frozen_inputs(run), **data},
    )
    rows = [example.fields for example in run.splits.calibration or run.splits.train]
    inputs = golden_inputs(config.golden_inputs, task.template, task.labels, rows)
    write_artifact(config.artifact_dir, parts, manifest, inputs, device=run.place, say=say)
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
