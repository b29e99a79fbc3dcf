"""The inputs of a result, as a digest kept beside it, so that none is taken for another configuration's.

Each covers the rows themselves and the base's weights, not their names. Folders and the device do not enter.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from laplora.features.store import digest, rows_digest
from laplora.files.atomic import file_sha256
from laplora.models.hashes import weights_hash
from laplora.prompts.templates import PromptTemplate
from training.workspace.folds import fold_runs
from training.workspace.run import Run

#: Fields of the section ``laplace`` that the sums over the training rows depend on.
_CURVATURE = {"structure", "subset", "rank", "oversampling", "joint_rank", "batch_size", "factor_dtype", "many_classes"}


def adapter_inputs(run: Run) -> str:
    config = run.config
    return digest(
        _base(run),
        rows_digest(run.splits.train),
        config.seed,
        config.adapter.model_dump(mode="json"),
        config.optimizer.model_dump(mode="json"),
        *([rows_digest(run.splits.selection)] if run.splits.selection else []),
    )


def _base(run: Run) -> list[Any]:
    """Return what every answer of a run's base depends on."""
    base, template = run.config.base, _fields_of(run.splits.task.template)
    weights = weights_hash(run.location, base.revision)
    return [weights, base.quantization, base.dtype, run.config.max_tokens, template, run.readout.token_ids]


def base_inputs(run: Run) -> str:
    """Return the digest of what the base's own passes over rows depend on."""
    return digest(_base(run), list(run.splits.task.labels))


def frozen_inputs(run: Run) -> str:
    """Return the digest of what the frozen fit, and what is measured of it, depends on."""
    config = run.config
    return digest(
        base_inputs(run),
        [rows_digest(rows) for rows in (run.labelled, run.splits.test)],
        config.seed,
        config.calibration.settings.model_dump(mode="json"),
        run.experts.model_dump(mode="json"),
        config.evaluation.model_dump(mode="json"),
        # It changes no answer, and the artifact says it.
        *([config.question.model_dump(mode="json")] if config.question else []),
    )


def _fields_of(template: PromptTemplate) -> dict[str, Any]:
    """Return a template's fields that training reads; without ``cut`` where it has none, as before there was one."""
    read = {name: value for name, value in asdict(template).items() if name != "option_text"}
    return {name: value for name, value in read.items() if name != "cut" or value is not None}


def curvature_inputs(run: Run) -> str:
    """Return the digest of what the sums over the training rows depend on."""
    adapter = file_sha256(run.folder / "adapter" / "adapter_model.safetensors")
    return digest(adapter_inputs(run), adapter, run.config.laplace.model_dump(mode="json", include=_CURVATURE))


def fit_inputs(run: Run) -> str:
    """Return the digest of what the fitted posterior, its prior and the calibrators depend on."""
    config = run.config
    folds = [[curvature_inputs(fold), rows_digest(fold.splits.calibration)] for fold in fold_runs(run)]
    return digest(
        curvature_inputs(run),
        rows_digest(run.splits.calibration),
        config.laplace.model_dump(mode="json"),
        config.calibration.model_dump(mode="json"),
        config.predictives.model_dump(mode="json"),
        run.settings.experts.model_dump(mode="json"),
        *([folds] if folds else []),
    )


def evaluation_inputs(run: Run) -> str:
    """Return the digest of what the metrics depend on."""
    settings = run.config.evaluation.model_dump(mode="json")
    return digest(fit_inputs(run), rows_digest(run.splits.test), settings)
