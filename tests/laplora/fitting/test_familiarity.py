"""Every read-out from the fit to the served answer; familiarity: what is flagged, and what a flag changes."""

from __future__ import annotations

import random
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from head_artifacts import save_base
from telling import assert_served_as_fitted
from tiny_classifiers import adapted_classifier, classifier_base, head_alone
from tiny_models import add_lora
from tiny_runs import FinishedRun
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import laplora
from laplora.artifact.folder import read_artifact
from laplora.artifact.manifest import FAMILIARITY, HEAD
from laplora.execution.progress import Silent
from laplora.fitting.familiarity import forward_states
from laplora.predictor import Predictor
from laplora.prompts.examples import Example
from laplora.prompts.templates import TEMPLATES
from laplora.settings import FitSettings

LABELS = ["down", "up", "flat"]
SETTINGS: dict[str, Any] = {"laplace": {"joint_rank": 12}}
KINDS = ["llama", "modernbert_mean", "roberta", "deberta", "alone", "several", "words", "sequences"]
Rows = list[dict[str, Any]]


def rows(count: int, seed: int, kind: str, letters: str = "abcdefgh") -> Rows:
    """Return random rows of the first letters; others are of the last ones."""
    draw = random.Random(seed)

    def label(number: int) -> Any:
        if kind == "several":
            return draw.sample(LABELS, draw.randint(0, 3))
        names = ["negative", "positive"] if kind in ("words", "sequences") else LABELS
        return names[number % len(names)]

    return [{"text": " ".join(draw.choices(letters, k=draw.randint(4, 9))), "label": label(i)} for i in range(count)]


def classifier_of(kind: str, folder: Path, run: FinishedRun) -> laplora.Classifier:
    """Return a tiny random classifier of a kind, its base on disk."""
    if kind in ("words", "sequences"):
        base = AutoModelForCausalLM.from_pretrained(run.base, dtype=torch.float32)
        model, tokenizer = add_lora(base, ["q_proj", "v_proj"], dtype=None), AutoTokenizer.from_pretrained(run.base)
        labels = {"negative": " rather bad", "positive": " very good indeed"}
        names: Any = labels if kind == "sequences" else list(labels)
        return laplora.Classifier(model, tokenizer, TEMPLATES["sentiment"], names, max_tokens=64)
    family = {"alone": "llama", "several": "llama"}.get(kind, kind)
    base_folder = save_base(folder / "base", classifier_base(family), head=family in ("deberta", "modernbert_mean"))
    problem = {"problem_type": "multi_label_classification"} if kind == "several" else {}
    if kind == "alone":
        model = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=3, dtype=torch.float32)
        model.load_state_dict(head_alone(family, dtype=torch.float32).state_dict())
        getattr(model, model.base_model_prefix).requires_grad_(False)
    else:
        model = adapted_classifier(family, dtype=torch.float32, **problem)
        model.get_base_model().config._name_or_path = str(base_folder)
    return laplora.Classifier(model, AutoTokenizer.from_pretrained(base_folder), "{text}", LABELS, max_tokens=12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_read_out_has_familiarity_and_is_served_as_fitted(
    kind: str, tmp_path: Path, sentiment_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In range, the same alone and in a batch, and with the flag go review and every label."""
    monkeypatch.setenv("LAPLORA_CACHE", str(tmp_path / "cache"))
    classifier = classifier_of(kind, tmp_path, sentiment_run)
    settings = FitSettings.model_validate(SETTINGS | {"calibration": {"unfamiliar_rate": 0.3}})
    posterior = laplora.fit(classifier, rows(30, 1, kind), rows(29, 2, kind), settings=settings, progress=False)
    manifest = posterior.predictor.artifact.manifest
    assert manifest.familiarity is not None
    assert manifest.familiarity.rows == 30
    assert manifest.familiarity.false_alarms == 0.3
    inputs = [{"text": row["text"]} for row in [*rows(12, 3, kind), *rows(12, 3, kind, "zyxwv")]]
    together = posterior.predict(inputs)
    flagged = 0
    for one, answer in zip(inputs, together, strict=True):
        assert answer.familiarity is not None
        assert answer.familiarity * 30 == pytest.approx(round(answer.familiarity * 30))
        assert 1 / 30 <= answer.familiarity <= 1
        # Within a step: rounding may move a row past one that is as far.
        alone = posterior.predict(one, "map")[0].familiarity
        assert alone == pytest.approx(answer.familiarity, abs=1 / 30 + 1e-9)
        assert ("unfamiliar" in answer.flags) == (answer.familiarity <= 0.3)
        if "unfamiliar" in answer.flags:
            flagged += 1
            assert answer.decision == "review"
            assert answer.prediction_set == list(classifier.labels)
    assert flagged >= 1
    fitted = posterior.fit.familiar
    assert fitted is not None
    # These models are random, so their logits tell nothing of other texts; the states' places do.
    places = replace(fitted.familiarity.score, weight=0.0)
    examples = [Example(str(i), one, 0, classifier.class_count) for i, one in enumerate(inputs)]
    states = forward_states(classifier, examples, places.layers, 8, Silent())
    # As of the training rows, by a plain pass: it shows what an answer's does.
    answered = torch.tensor([answer.familiarity for answer in together], dtype=torch.float64)
    torch.testing.assert_close(fitted.familiarity.of(states), answered, rtol=0, atol=1 / 30 + 1e-9)
    far = places.of(states)
    assert float(far[:12].mean()) < float(far[12:].mean())
    ends_alike = kind in ("words", "sequences")
    assert (fitted.familiarity.score.weight > 0) == (kind != "several" and not ends_alike)
    assert (fitted.familiarity.tokens > 1) == ends_alike
    measured = posterior.evaluate(rows(20, 4, kind))
    assert measured.unfamiliar is not None
    assert f"{measured.unfamiliar:.1%} unfamiliar" in str(measured)
    artifact = posterior.save(tmp_path / "artifact")
    assert FAMILIARITY in read_artifact(artifact).manifest.files
    assert (artifact / HEAD).is_file() == (kind == "alone")
    predictor = assert_served_as_fitted(posterior, artifact, inputs[:4])
    if kind == "sequences":
        assert predictor.reverse_pass.kind == "automatic"
        assert predictor.artifact.manifest.readout.verbalizers == (" rather bad", " very good indeed")
    for one, mine in zip(inputs[:4], together, strict=False):
        (served,) = predictor.predict([predictor.encode(one, truncate=True)])
        assert served.familiarity == pytest.approx(mine.familiarity, abs=1 / 30 + 1e-9)


@pytest.mark.parametrize("off", ["as told", "unwatched"])
def test_off_there_is_none(off: str, tmp_path: Path, sentiment_run: FinishedRun, monkeypatch: Any) -> None:
    """As told, or of a model whose layers cannot be watched, which has answers all the same."""
    kind = {"as told": "words", "unwatched": "llama"}[off]
    classifier = classifier_of(kind, tmp_path, sentiment_run)
    settings = FitSettings.model_validate(
        SETTINGS | {"calibration": {"unfamiliar_rate": 0 if off == "as told" else 0.05}}
    )
    if off == "unwatched":
        monkeypatch.setattr(classifier.model.get_base_model().model.config, "num_hidden_layers", 9)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        posterior = laplora.fit(classifier, rows(20, 1, kind), rows(20, 2, kind), settings=settings, progress=False)
    assert any(str(one.message).startswith("familiarity is off: ") for one in told) == (off == "unwatched")
    (answer,) = posterior.predict({"text": "z y x"})
    assert answer.familiarity is None
    assert "unfamiliar" not in answer.flags
    assert posterior.evaluate(rows(10, 3, kind)).unfamiliar is None
    if off == "as told":
        artifact = posterior.save(tmp_path / "artifact", verify=False)
        assert not (artifact / FAMILIARITY).exists()
        assert Predictor.load(artifact, device="cpu").artifact.manifest.familiarity is None
