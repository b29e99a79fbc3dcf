"""The four large models at their true width: trained a step, fitted, saved, loaded by a server and asked over HTTP."""

from __future__ import annotations

import gc
import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from server_process import server_process
from tiny_models import generator
from tiny_runs import sentiment_rows
from tiny_tokenizer import tiny_tokenizer

import laplora
from benchmarks.harness.architectures import architecture
from laplora.jacobians.contrasts import reverse_pass
from laplora.models.base import BaseSpec, load_base_model, load_tokenizer
from laplora.models.held_weights import packed_linears
from training.config import RunConfig, load_config
from training.fine_tuning.new_adapter import add_adapter
from training.workspace.targets import target_loss

CONFIGS = Path(__file__).resolve().parents[2] / "training" / "configs"
LABELS = ("negative", "positive")
TRAIN, CALIBRATION, TEST = 6, 8, 2
#: A model this wide takes a minute or two, most of it to be quantized twice, and on a busy machine many times that.
PATIENCE_S = 1800.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is gone afterwards: a base takes up to 3 GB, and pytest would keep those of three runs."""
    with tempfile.TemporaryDirectory(prefix="laplora-full-width-") as name:
        yield Path(name)


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE_S)
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["phi3-mini-128k", "phi2", "llama2-7b", "llama3-8b"])
def test_a_large_model_from_a_step_of_training_to_http(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(CONFIGS / f"winogrande-s-{name}.yaml", ["adapter.rank=2", "adapter.alpha=4"])
    base = save_base(folder / "base", config.base.model)
    gc.collect()  # the plain model has cycles, and would stay beside the packed one
    artifact, expected = fitted(config, base, folder / "artifacts" / name)
    gc.collect()
    monkeypatch.setattr("server_process.GIVE_UP_S", PATIENCE_S)
    patience = ["--request-timeout-s", str(PATIENCE_S), "--stall-s", str(PATIENCE_S)]
    command = ["-m", "service", "--artifact", str(artifact), "--dequantize", "never", "--device", "cpu", *patience]
    with server_process(command) as process, process.client() as client:
        response = client.post("/predict", json={"inputs": texts(TEST), "options": {"detail": "full"}})
        assert response.status_code == 200, response.text
    answers: list[dict[str, Any]] = json.loads(response.text)["predictions"]
    for answer, prediction in zip(answers, expected, strict=True):
        assert answer["answered_by"] == prediction.predictive == "laplace"
        # Sums of 4,096 and more products in float32 move a probability by up to 2e-4 where rows are batched otherwise.
        assert answer["probs"] == pytest.approx(prediction.probs, abs=1e-3)
        assert answer["map_probs"] == pytest.approx(prediction.map_probs, abs=1e-3)
        assert answer["logit_variance"] == pytest.approx(prediction.logit_variance, rel=1e-3)


def fitted(config: RunConfig, base: Path, target: Path) -> tuple[Path, list[laplora.Prediction]]:
    """Train one step, fit and save; return the artifact and what the library answers to the test's texts."""
    spec = BaseSpec(str(base), quantization="nf4", dtype="float32")
    loaded = load_base_model(str(base), spec, device=torch.device("cpu"), dequantize=False).model
    packed = {"microsoft/phi-2": 12, "microsoft/Phi-3-mini-128k-instruct": 8}.get(config.base.model, 14)
    assert len(packed_linears(loaded)) == packed
    model = add_adapter(loaded, config.model_copy(update={"base": config.base.model_copy(update={"model": str(base)})}))
    classifier = laplora.Classifier(
        model, load_tokenizer(str(base)), "Review: {text}\nSentiment:", list(LABELS), max_tokens=64
    )
    rows, calibration = sentiment_rows()[3 : 3 + TRAIN], sentiment_rows()[15 : 15 + CALIBRATION]
    train_a_step(classifier, rows)
    settings = laplora.FitSettings.model_validate(
        {"laplace": {"rank": 2, "oversampling": 2}, "predictives": {"serve": "laplace"}}
    )
    posterior = laplora.fit(classifier, rows, calibration, settings=settings, progress=False)
    assert reverse_pass(model).kind == ("automatic" if config.base.model == "microsoft/phi-2" else "written_out")
    found = list(posterior.predict(texts(TEST)))
    for prediction in found:
        assert sum(prediction.probs.values()) == pytest.approx(1)
        assert min(prediction.logit_variance) > 0
    return posterior.save(target), found


def train_a_step(classifier: laplora.Classifier, rows: list[dict[str, Any]]) -> None:
    """Take one step of AdamW on the rows' labels; every B of the adapter moves, no A yet: B begins at zero."""
    trained = {name: p for name, p in classifier.model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0)
    batch = classifier.collate([classifier.encode({"text": row["text"]}) for row in rows])
    labels = torch.tensor([LABELS.index(row["label"]) for row in rows])
    classifier.model.train()
    loss: Any = target_loss(classifier.readout.scores(classifier.model, batch).logits, labels, batch.class_mask)
    loss.backward()
    optimizer.step()
    classifier.model.eval()
    moved = {name for name, p in trained.items() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if ".lora_B." in name}


def texts(count: int) -> list[dict[str, str]]:
    return [{"text": row["text"]} for row in sentiment_rows()[-count:]]


def save_base(folder: Path, name: str) -> Path:
    """Write a random model of an architecture in bfloat16, of two layers, with a tokenizer; return the folder."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    tokens = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    settings = architecture(name, num_hidden_layers=2, **tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers', about settings of its own
        with torch.device("meta"):
            model = hf.AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
        fill(model.to_empty(device="cpu"), settings.initializer_range)
        model.save_pretrained(folder)
    return folder


def fill(model: torch.nn.Module, scale: float) -> None:
    """Give a model random matrices, as its own initialisation would, in a tenth of the time: one draw, repeated."""
    noise = torch.randn(1_000_003, generator=generator(0)).mul(scale)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        for part in parameter.data.view(-1).split(len(noise)):
            part.copy_(noise[: len(part)])
