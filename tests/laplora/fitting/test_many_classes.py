"""Fits of twenty classes: from fewer directions than contrasts, saved, and served with the same numbers."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from telling import assert_served_as_fitted
from tiny_models import add_lora
from tiny_runs import save_tiny_base
from transformers import AutoModelForCausalLM, AutoTokenizer

import laplora
from laplora.artifact.folder import read_artifact
from laplora.jacobians.many_classes import ManyClasses
from laplora.posterior.many_classes import ManyClassPosterior
from laplora.settings import FitSettings

CLASSES = 20
NAMES = [f"topic {letter}" for letter in string.ascii_uppercase[:CLASSES]]
LAPLACE = {"rank": 3, "joint_rank": 10}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base") / "base", tied=False)


def classifier_of(base: Path, labels: dict[str, str]) -> laplora.Classifier:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = add_lora(model, ["q_proj", "v_proj", "lm_head"], dtype=None)
    tokenizer = AutoTokenizer.from_pretrained(base)
    return laplora.Classifier(model, tokenizer, labels=labels, template="Message: {text}\nTopic:", max_tokens=48)


@pytest.fixture(scope="module")
def classifier(base: Path) -> laplora.Classifier:
    return classifier_of(base, dict(zip(NAMES, (f" {letter}" for letter in string.ascii_uppercase), strict=False)))


def rows(start: int, count: int, names: Sequence[str] = NAMES) -> list[dict[str, Any]]:
    """Return rows of every class in turn."""
    return [
        {"text": f"message number {i} of {i % 7}", "label": names[i % len(names)]} for i in range(start, start + count)
    ]


def fitted(classifier: laplora.Classifier, **settings: Any) -> laplora.CalibratedPosterior:
    predictives = {"temperature": False, "conditioned": False, "serve": "laplace"}
    chosen = FitSettings.model_validate({"laplace": LAPLACE, "predictives": predictives} | settings)
    return laplora.fit(classifier, rows(0, 40), rows(40, 40), settings=chosen, progress=False)


def test_what_is_served_is_what_was_fitted_and_the_record_says_how(
    classifier: laplora.Classifier, tmp_path: Path
) -> None:
    posterior = fitted(classifier, many_classes=ManyClasses(directions=3, reference_rows=4))
    artifact, record = posterior.save(tmp_path / "tiny-topics"), posterior.fit.many_classes
    assert_served_as_fitted(posterior, artifact, [{"text": row["text"]} for row in rows(90, 5)])
    assert read_artifact(artifact).manifest.many_classes == record
    assert record is not None
    assert (record.limit, record.directions, record.reference_rows) == (16, 3, 4)
    assert 0 < record.filled_in < 1
    assert record.largest_error is not None
    assert 0 < record.largest_error < 10
    assert isinstance(posterior.fit.posterior, ManyClassPosterior)


def test_all_directions_are_the_exact_fit(classifier: laplora.Classifier) -> None:
    every = CLASSES - 1
    one = fitted(classifier, many_classes=ManyClasses(leading=every, samples=0, directions=every, reference_rows=4))
    other = fitted(classifier, many_classes=ManyClasses(limit=CLASSES))
    assert other.fit.many_classes is None
    inputs = [{"text": row["text"]} for row in rows(90, 4)]
    precision = [posterior.fit.served.prior.precision["all"] for posterior in (one, other)]
    assert precision[0] == pytest.approx(precision[1], rel=0.02)  # the search's tolerance
    for mine, exact in zip(one.predict(inputs, "laplace"), other.predict(inputs, "laplace"), strict=True):
        # The float32 Jacobians and the average's condition; the priors differ by a per cent.
        assert mine.logit_variance == pytest.approx(exact.logit_variance, rel=0.05)
        assert mine.probs == pytest.approx(exact.probs, abs=5e-3)
