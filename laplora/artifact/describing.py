"""The manifest of a fit's artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

from laplora.artifact.manifest import FORMAT_VERSION, Manifest, TemplateRecord
from laplora.artifact.readout_records import ReadOutRecord
from laplora.metrics.noise import ece_limit
from laplora.models.base import BaseSpec
from laplora.prompts.questions import Question
from laplora.prompts.templates import PromptTemplate

#: Packages whose versions shape an artifact, beside torch.
PACKAGES = ("laplora", "transformers", "peft", "bitsandbytes", "safetensors", "tokenizers")
#: The fields of an evaluation that a manifest records for each method.
_METRICS = ("rows", "accuracy", "nll", "ece", "brier", "auroc_error", "auprc_error", "aurc")


def describe(
    fitted: Mapping[str, Any],
    *,
    name: str,
    base: BaseSpec,
    base_weights_hash: str,
    tokenizer_hash: str,
    template: PromptTemplate,
    labels: Sequence[str],
    readout: ReadOutRecord,
    max_tokens: int,
    question: Question | None,
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
    data: Mapping[str, Any],
) -> Manifest:
    """Return the manifest of a fit, its files not yet listed.

    Args:
        fitted: the fields that the fit gives; of them ``most_options`` is recorded where the template takes choices.
    """
    options = {"question": question, "most_options": fitted.get("most_options") if template.takes_choices else None}
    fields = {k: v for k, v in asdict(template).items() if k in TemplateRecord.model_fields}
    return Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base_model=base.model,
        revision=base.revision,
        base_weights_hash=base_weights_hash,
        quantization=base.quantization,
        dtype=base.dtype,
        tokenizer_hash=tokenizer_hash,
        template=TemplateRecord(**fields),
        labels=tuple(labels),
        readout=readout,
        max_tokens=max_tokens,
        **{**fitted, **options},
        metrics=dict(metrics),
        config=dict(config),
        data=dict(data),
        versions=installed_versions(),
        files={},
    )


def summary(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scalar metrics of every method, from an evaluation's JSON values.

    ``ece_limit`` is the ECE that one calibrated model in 40 exceeds by chance, with the same confidences.
    """
    return {
        method: {n: values[n] for n in _METRICS}
        | {"ece_limit": ece_limit(values["reliability"])}
        | ({f"set_{n}": values["sets"][n] for n in ("coverage", "mean_size")} if "sets" in values else {})
        for method, values in evaluation.items()
    }


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that shape an artifact."""
    versions = {"torch": str(torch.__version__)}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
