"""Fits of twenty classes and of 150: from fewer directions than contrasts, saved, and served with the same numbers."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import changed, settings, started
from telling import assert_served_as_fitted
from tiny_models import add_lora
from tiny_runs import save_tiny_base
from transformers import AutoModelForCausalLM, AutoTokenizer

import laplora
from laplora.artifact.folder import read_artifact
from laplora.jacobians.many_classes import ManyClasses
from laplora.posterior.many_classes import ManyClassPosterior
from laplora.settings import FitSettings
from service.app import create_app

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


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize("classes", [CLASSES, 150])
async def test_later_labels_are_learned_in_memory_from_a_folder_and_by_a_server(
    classes: int, base: Path, tmp_path: Path
) -> None:
    """And the three answer alike."""
    tokens = [t.replace("\u0120", " ") for t in AutoTokenizer.from_pretrained(base).get_vocab() if t[0] == "\u0120"]
    labels = {f"topic {text.strip()}": text for text in sorted(tokens) if text[1:].isalpha()}
    names = list(labels)[:classes]
    chosen = FitSettings.model_validate({"laplace": LAPLACE, "many_classes": {"directions": 3, "reference_rows": 4}})
    fit = laplora.fit(
        classifier_of(base, {name: labels[name] for name in names}),
        rows(0, classes, names),
        rows(classes, 20, names),
        settings=chosen,
        progress=False,
    )
    folder, later = fit.save(tmp_path / "topics"), rows(2 * classes, 20, names[:3])
    beside, inputs = tmp_path / "beside", [{"text": row["text"]} for row in rows(900, 3, names)]
    learned = fit.condition(later, force=True)
    assert laplora.condition(folder, later, out=beside, device="cpu", progress=False, force=True).rows == len(later)
    offline = laplora.Predictor.load(beside, device="cpu")
    app = create_app(settings(artifact="topics", artifacts_root=tmp_path, device="cpu", conditioning=True))
    async with started(app) as client:
        answer = await changed(client, "topics/condition", json={"rows": later, "force": True})
        assert answer.status_code == 200, answer.text
        for name in ("conditioned", "pooled"):
            body = {"inputs": inputs, "options": {"predictive": name}}
            served = (await client.post("/predict", json=body)).json()["predictions"]
            of_folder = offline.predict([offline.encode(one, truncate=True) for one in inputs], name)
            given = zip(served, of_folder, learned.predict(inputs, name), fit.predict(inputs, name), strict=True)
            for by_server, by_folder, mine, packaged in given:
                # Their priors and temperatures are searched on sums that are rounded differently.
                assert by_folder.probs == pytest.approx(mine.probs, rel=2e-3, abs=1e-4)
                assert by_server["probs"] == pytest.approx(mine.probs, rel=2e-3, abs=1e-4)
                assert mine.probs != pytest.approx(packaged.probs, rel=1e-6)
