"""What a result was made from, as a digest kept beside it, so that none is taken for another configuration's.

Each covers the rows themselves and the base's weights, not their names. Folders and the device do not enter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import laplora
from laplora.files import file_sha256
from laplora.models.hashes import weights_hash
from training.data.examples import Example
from training.workspace.run import Run

#: Packages whose versions shape an artifact, beside laplora and torch.
PACKAGES = ("transformers", "peft", "bitsandbytes", "safetensors", "tokenizers")
#: Fields of the section ``laplace`` that the sums over the training rows depend on.
_CURVATURE = {"structure", "subset", "rank", "oversampling", "joint_rank", "batch_size", "factor_dtype"}


def adapter_inputs(run: Run) -> str:
    """Return the digest of what the trained adapter depends on."""
    config, task = run.config, run.splits.task
    weights = weights_hash(run.location, config.base.revision)
    base = [weights, config.base.quantization, config.base.dtype, config.max_tokens, asdict(task.template)]
    return _digest(
        [*base, run.readout.token_ids],
        rows_digest(run.splits.train),
        config.seed,
        config.adapter.model_dump(mode="json"),
        config.optimizer.model_dump(mode="json"),
    )


def curvature_inputs(run: Run, folder: Path | None = None) -> str:
    """Return the digest of what the sums over the training rows depend on; ``folder`` is another adapter's."""
    adapter = file_sha256((folder or run.config.run_dir / "adapter") / "adapter_model.safetensors")
    return _digest(adapter_inputs(run), adapter, run.config.laplace.model_dump(mode="json", include=_CURVATURE))


def fit_inputs(run: Run) -> str:
    """Return the digest of what the fitted posterior, its prior and the calibrators depend on."""
    config = run.config
    members = sorted((config.run_dir / "members").glob("*/adapter_model.safetensors"))
    unlabelled = config.predictives.fast_inputs
    return _digest(
        curvature_inputs(run),
        rows_digest(run.splits.calibration),
        config.laplace.model_dump(mode="json"),
        config.calibration.model_dump(mode="json"),
        config.predictives.model_dump(mode="json", exclude={"fast_inputs"}),
        file_sha256(unlabelled) if unlabelled else None,
        [[path.parent.name, file_sha256(path)] for path in members],
    )


def evaluation_inputs(run: Run) -> str:
    """Return the digest of what the metrics depend on."""
    settings = run.config.evaluation.model_dump(mode="json")
    return _digest(fit_inputs(run), rows_digest(run.splits.test), settings)


def rows_digest(examples: Sequence[Example]) -> str:
    """Return the digest of examples, in order."""
    return _digest(*([dict(e.fields), e.label, e.class_count] for e in examples))


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that shape an artifact."""
    versions = {"laplora": laplora.__version__, "torch": str(torch.__version__)}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
