"""What lies behind an artifact's hashes: each manifest is sealed again, so that only a deeper check finds the fault."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import FinishedRun, reseal

from laplora.artifact.folder import new_artifact
from laplora.artifact.manifest import GOLDEN, MANIFEST
from laplora.errors import (
    ArtifactCorruptError,
    GoldenMismatchError,
    LaploraError,
    ModelError,
)
from laplora.predictor import Predictor

ADAPTER = "adapter/adapter_model.safetensors"

Tensors = dict[str, torch.Tensor]


def refused(folder: Path, error: type[LaploraError], message: str) -> None:
    with pytest.raises(error, match=message):
        Predictor.load(folder, device="cpu")


PRIOR = {"method": "evidence", "granularity": "group", "precision": {"lora_A": 1.0}, "objective": 0.0}


def test_an_artifact_of_something_else(artifact_copy: Path) -> None:
    original = json.loads((artifact_copy / MANIFEST).read_text())
    for changes, error, message in (
        ({"quantization": "nf4"}, GoldenMismatchError, "not the one that was measured"),
        ({"base_model": "/nowhere/at/all"}, ModelError, "base model '/nowhere/at/all': no tokenizer"),
        ({"prior": PRIOR}, LaploraError, "no precision for .*lora_B"),
    ):
        reseal(artifact_copy, **{name: original[name] for name in ("quantization", "base_model", "prior")} | changes)
        refused(artifact_copy, error, message)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: {n: t[n] for n in t if n != min(t)}, ArtifactCorruptError, "missing .*lm_head.lora_A"),
        (
            lambda t: t | {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.zeros(4, 64)},
            ArtifactCorruptError,
            "not expected .*layers.9",
        ),
        # Valid in every respect but one: these are not the weights that were measured.
        (lambda t: {n: 1.5 * t[n] for n in t}, GoldenMismatchError, "golden answer 0: map_probs differs by"),
    ],
)
def test_an_adapter_that_is_not_the_artifacts(
    artifact_copy: Path, change: Callable[[Tensors], Tensors], error: type[LaploraError], message: str
) -> None:
    save_file(change(load_file(artifact_copy / ADAPTER)), artifact_copy / ADAPTER, {"format": "pt"})
    reseal(artifact_copy)
    refused(artifact_copy, error, message)


def test_another_prior_fails_the_golden_replay(artifact_copy: Path) -> None:
    """Its variances alone say so where the probabilities are allowed to move."""
    manifest = json.loads((artifact_copy / MANIFEST).read_text())
    golden = json.loads((artifact_copy / GOLDEN).read_text())
    assert golden["variance_tolerance"] == 0.05
    (artifact_copy / GOLDEN).write_text(json.dumps(golden | {"tolerance": 0.9}))
    prior = manifest["prior"] | {"precision": {k: 10 * v for k, v in manifest["prior"]["precision"].items()}}
    reseal(artifact_copy, prior=prior)
    message = r"golden answer 0: logit_variance differs by more than a factor of 1\.05: expected \[.*\], got \["
    refused(artifact_copy, GoldenMismatchError, message)


def test_an_artifact_replaced_while_it_loads(
    artifact_copy: Path, sentiment_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between verification and the last tensor read, another one takes its place: nobody gets a mixture."""
    from laplora.models import shared_base

    def slow(*arguments: Any, **options: Any) -> Any:
        base = original(*arguments, **options)
        with new_artifact(artifact_copy) as folder:
            shutil.copytree(sentiment_run.artifact, folder, dirs_exist_ok=True)
            reseal(folder, created="2001-01-01T00:00:00+00:00")
        return base

    original = shared_base.load_base_model
    monkeypatch.setattr(shared_base, "load_base_model", slow)
    refused(artifact_copy, ArtifactCorruptError, "was replaced while it was loaded")
