"""Fits of twenty classes: from fewer directions than contrasts, saved, and served with the same numbers."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from telling import assert_served_as_fitted
from tiny_models import add_lora
from tiny_runs import save_tiny_base
from transformers import AutoModelForCausalLM, AutoTokenizer

import laplora
from laplora.artifact.folder import read_artifact
from laplora.posterior.many_classes import ManyClassPosterior
from laplora.settings import FitSettings

CLASSES = 20
NAMES = [f"topic {letter}" for letter in string.ascii_uppercase[:CLASSES]]


def rows(start: int, count: int) -> list[dict[str, Any]]:
    """Return rows of every class in turn."""
    return [
        {"text": f"message number {i} of {i % 7}", "label": NAMES[i % CLASSES]} for i in range(start, start + count)
    ]


def test_what_is_served_is_what_was_fitted_and_the_record_says_how(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base", tied=False)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = add_lora(model, ["q_proj", "v_proj", "lm_head"], dtype=None)
    labels = {name: f" {name[-1]}" for name in NAMES}
    tokenizer = AutoTokenizer.from_pretrained(base)
    classifier = laplora.Classifier(model, tokenizer, "Message: {text}\nTopic:", labels, max_tokens=48)
    sections = {"laplace": {"rank": 3, "joint_rank": 10}, "many_classes": {"directions": 3, "reference_rows": 4}}
    predictives = {"temperature": False, "conditioned": False, "serve": "laplace"}
    settings = FitSettings.model_validate(sections | {"predictives": predictives})
    posterior = laplora.fit(classifier, rows(0, 40), rows(40, 40), settings=settings, progress=False)
    artifact, record = posterior.save(tmp_path / "tiny-topics"), posterior.fit.many_classes
    assert_served_as_fitted(posterior, artifact, [{"text": row["text"]} for row in rows(90, 5)])
    assert read_artifact(artifact).manifest.many_classes == record
    assert record is not None
    assert (record.limit, record.directions, record.reference_rows) == (16, 3, 4)
    assert 0 < record.filled_in < 1
    assert record.largest_error is not None
    assert 0 < record.largest_error < 10
    assert isinstance(posterior.fit.posterior, ManyClassPosterior)
