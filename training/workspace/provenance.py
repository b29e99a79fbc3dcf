"""What a result was made from, as a digest kept beside it, so that none is taken for another configuration's.

Each covers the rows themselves and the base's weights, not their names. Folders and the device do not enter.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from laplora.files import file_sha256
from laplora.fitting.store import digest, rows_digest
from laplora.models.hashes import weights_hash
from laplora.prompts.templates import PromptTemplate
from training.workspace.folds import fold_runs
from training.workspace.run import Run

#: Fields of the section ``laplace`` that the sums over the training rows depend on.
_CURVATURE = {"structure", "subset", "rank", "oversampling", "joint_rank", "batch_size", "factor_dtype", "many_classes"}


def adapter_inputs(run: Run) -> str:
    """Return the digest of what the trained adapter depends on."""
    config, task = run.config, run.splits.task
    weights = weights_hash(run.location, config.base.revision)
    base = [weights, config.base.quantization, config.base.dtype, config.max_tokens, _fields_of(task.template)]
    return digest(
        [*base, run.readout.token_ids],
        rows_digest(run.splits.train),
        config.seed,
        config.adapter.model_dump(mode="json"),
        config.optimizer.model_dump(mode="json"),
        *([run.student.digest] if run.student else []),
        *([rows_digest(run.splits.selection)] if run.splits.selection else []),
    )


def _fields_of(template: PromptTemplate) -> dict[str, Any]:
    """Return a template's fields that training reads; without ``cut`` where it has none, as before there was one."""
    read = {name: value for name, value in asdict(template).items() if name != "option_text"}
    return {name: value for name, value in read.items() if name != "cut" or value is not None}


def curvature_inputs(run: Run, folder: Path | None = None) -> str:
    """Return the digest of what the sums over the training rows depend on; ``folder`` is another adapter's."""
    adapter = file_sha256((folder or run.folder / "adapter") / "adapter_model.safetensors")
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
        *([folds] if folds else []),
    )


def evaluation_inputs(run: Run) -> str:
    """Return the digest of what the metrics depend on."""
    settings = run.config.evaluation.model_dump(mode="json")
    return digest(fit_inputs(run), rows_digest(run.splits.test), settings)
