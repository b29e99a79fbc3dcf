"""A model over two devices answers, differentiates and is fitted as the same model on one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from emulated_devices import FIRST, PLACES, SECOND, TIED, emulated_devices, place_of
from shared_fits import STRUCTURES
from tiny_classifiers import adapted_classifier, batch_of, features_of, random_rows
from tiny_models import TARGETS, Architecture, add_lora, tiny_base
from tiny_runs import FinishedRun, sentiment_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

import laplora
from laplora.fitting.rows import read_rows
from laplora.jacobians.contrasts import ContrastJacobians, contrast_jacobians, covered_blocks, reverse_pass
from laplora.models.spread import Spread, input_device, spread_of
from laplora.predictive import gaussian
from laplora.predictor import Predictor
from laplora.prior import search
from laplora.prompts.rows import Batch
from laplora.readouts.classification_head import classification_head
from laplora.readouts.label_sequences import LabelSequences
from laplora.readouts.label_tokens import LabelTokens
from laplora.settings import FitSettings

pytestmark = pytest.mark.process  # accelerate asks nvidia-smi for the kind of GPU


@pytest.fixture(autouse=True)
def two_devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And searches that are coarse: each call of torch takes long here."""
    monkeypatch.setattr(search, "PRECISION_GRID", 15)
    monkeypatch.setattr(gaussian, "SOBOL_POINTS", 64)
    with emulated_devices():
        yield


def spread(model: Any, places: dict[str, str]) -> Any:
    """Return a base dispatched by accelerate."""
    return accelerate.dispatch_model(model, places, main_device="cpu:0")


def both(architecture: Architecture, targets: list[str] | None = None) -> list[Any]:
    """Return the same adapted model on one device and on two, in float32."""
    targets = targets or TARGETS[architecture]
    norm = "model.final_layernorm" if architecture == "phi" else "model.norm"
    places = {name.replace("model.norm", norm): place for name, place in PLACES.items()}
    return [
        add_lora(tiny_base(architecture), targets, dtype=None),
        add_lora(spread(tiny_base(architecture), places), targets, dtype=None),
    ]


def rows_of(side: str = "left") -> Batch:
    return batch_of(random_rows(5), side)  # type: ignore[arg-type]


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Check two tensors on the CPU, whatever devices they are on."""
    torch.testing.assert_close(other.detach().cpu(), one.detach().cpu(), rtol=1e-5, atol=1e-6)


def same_jacobians(one: ContrastJacobians, other: ContrastJacobians) -> None:
    same(one.logits, other.logits)
    for mine, theirs in zip(one.blocks, other.blocks, strict=True):
        same(mine.jacobian, theirs.jacobian)


TOKENS = LabelTokens((5, 6, 7))


@pytest.mark.parametrize("automatic", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "phi", "phi3"])
def test_jacobians_are_those_of_one_device_and_lie_with_their_modules(
    architecture: Architecture, automatic: bool
) -> None:
    """For Llama by the written-out pass, of which nobody is warned."""
    found = []
    for model in both(architecture):
        batch = rows_of().to(input_device(model.get_base_model()))
        blocks = covered_blocks(model, TOKENS)
        assert reverse_pass(model).kind == ("automatic" if architecture == "phi" else "written_out")
        found.append((blocks, contrast_jacobians(model, batch, TOKENS, blocks, automatic=automatic)))
        mass = TOKENS.label_mass(model, found[-1][1].hidden, batch.class_mask)
        assert mass.device == found[-1][1].logits.device == batch.input_ids.device
    (blocks, one), (_, other) = found
    same_jacobians(one, other)
    for block, mine, theirs in zip(blocks, one.blocks, other.blocks, strict=True):
        same(mine.mean_input, theirs.mean_input)
        first = "layers.0." in block.name
        assert place_of(theirs.jacobian) == (FIRST if first else SECOND), block.name


def test_a_classifier_with_a_trained_head() -> None:
    """Its head is on the second device."""
    places = {name: place for name, place in PLACES.items() if name != "lm_head"} | {"score": "cpu:1"}
    found = []
    for place in (None, places):
        model = adapted_classifier("llama", dtype=torch.float32)
        if place is not None:
            spread(model.get_base_model(), place)
        readout = classification_head(model)
        batch = rows_of().to(input_device(model.get_base_model()))
        blocks = covered_blocks(model, readout)
        for automatic in (False, True):
            found.append(contrast_jacobians(model, batch, readout, blocks, automatic=automatic))
    for other in found[1:]:
        same_jacobians(found[0], other)


def test_label_sequences_and_gradients_of_training_are_those_of_one_device() -> None:
    readout, jacobians, found = LabelSequences(((5, 6), (7,), (8, 9, 10))), [], []
    for model in both("llama", ["q_proj", "v_proj"]):
        batch = rows_of().to(input_device(model.get_base_model()))
        jacobians.append(contrast_jacobians(model, batch, readout, covered_blocks(model, readout)))
        logits = TOKENS.scores(model, batch).logits
        torch.nn.functional.cross_entropy(
            logits, torch.zeros(len(batch), dtype=torch.int64, device=logits.device)
        ).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    same_jacobians(*jacobians)
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        same(gradient, found[1][name])


LABELS = {"bill": " A", "card": " B", "app": " C"}


def classifier_of(base: Path, places: dict[str, str] | None) -> laplora.Classifier:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = add_lora(model if places is None else spread(model, places), ["q_proj", "v_proj", "lm_head"], dtype=None)
    tokenizer = AutoTokenizer.from_pretrained(base)
    return laplora.Classifier(model, tokenizer, "Message: {text}\nTopic:", LABELS, max_tokens=48)


def messages(count: int, kind: str = "message") -> list[dict[str, str]]:
    return [{"text": f"{kind} {i} of {'so ' * (i % 4)}many", "label": list(LABELS)[i % 3]} for i in range(count)]


def test_frozen_states_are_those_of_one_device(tiny_base_folder: Path) -> None:
    found = []
    for places in (None, TIED):
        classifier = classifier_of(tiny_base_folder, places)
        found.append(features_of(classifier, "frozen", read_rows(messages(5), classifier, "label"), 3, answers=True))
    one, other = found
    for name, block in one.features["frozen"].items():
        same(block, other.features["frozen"][name])
        assert place_of(other.features["frozen"][name]) == torch.device("cpu")
    same(one.log_probs["zero_shot"], other.log_probs["zero_shot"])


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_fit_of_every_structure_is_that_of_one_device(tiny_base_folder: Path, tmp_path: Path, structure: str) -> None:
    """The curvature, and what the posterior says of rows with its bases where the modules are, saved too."""
    laplace = {"structure": structure, "rank": 4, "joint_rank": 12, "oversampling": 4, "batch_size": 2}
    settings = FitSettings.model_validate({"laplace": laplace, "predictives": {"conditioned": False}})
    answers = []
    for places in (None, TIED):
        classifier = classifier_of(tiny_base_folder, places)
        posterior = laplora.fit(classifier, messages(18), messages(12, "note"), settings=settings)
        answers.append((posterior, posterior.predict([{"text": "a message"}, {"text": "another one"}], "laplace")))
    (one, mine), (other, theirs) = answers
    for a, b in zip(mine, theirs, strict=True):
        assert b.probs == pytest.approx(a.probs, abs=1e-4)
        assert b.logit_variance == pytest.approx(a.logit_variance, rel=1e-3)
    blocks = other.fit.posterior.blocks
    placed = other.predictor.posterior
    on = {
        block.name: place_of(t)
        for block, t in zip(blocks, getattr(placed, "wide", ()) or placed.directions, strict=True)
    }
    assert {on[name] for name in on if "layers.1." in name} == {SECOND}
    assert {on[name] for name in on if "layers.1." not in name} == {FIRST}
    assert one.predictor.device == torch.device("cpu")
    assert other.classifier.place == Spread.of(TIED)
    if structure == "joint_core":
        plain = Predictor.load(other.save(tmp_path / "messages"), device="cpu")
        (answer,) = plain.predict([plain.encode({"text": "a message"}, truncate=True)], "laplace")
        assert answer.probs == pytest.approx(theirs[0].probs, abs=1e-4)


def test_an_artifact_over_two_devices_answers_as_on_one(sentiment_run: FinishedRun) -> None:
    """Loaded by transformers with the map; its golden answers, which are of one device, are replayed on the way."""
    found = []
    for place in ("cpu", Spread.of(TIED)):
        predictor = Predictor.load(sentiment_run.artifact, device=place)
        rows = [predictor.encode({"text": row["text"]}, truncate=True) for row in sentiment_rows()[:7]]
        each = predictor.predict_each(rows)
        found.append((predictor, each))
    (one, mine), (other, theirs) = found
    assert other.device == FIRST
    assert other.devices == (FIRST, SECOND)
    assert spread_of(other.base.model) == Spread.of(TIED)
    assert other.reverse_pass.kind == one.reverse_pass.kind == "written_out"
    assert mine.keys() == theirs.keys()
    for name, answers in mine.items():
        for a, b in zip(answers, theirs[name], strict=True):
            assert b.probs == pytest.approx(a.probs, abs=1e-4), name
