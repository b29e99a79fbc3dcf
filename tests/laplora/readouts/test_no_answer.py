"""Models with neither adapter nor head: what is read of them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from head_artifacts import letters
from tiny_classifiers import _BERT
from tiny_models import tiny_base, tiny_model
from torch import nn

import laplora
from laplora.errors import ConfigError, ModelError
from laplora.readouts.label_sequences import LabelSequences
from laplora.readouts.label_tokens import LabelTokens
from laplora.readouts.no_answer import NoAnswer

LABELS, LONG = {"no": " w1", "yes": " w2"}, ["no w1", "yes w2"]


def encoder(kind: Any = hf.BertModel) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(hf.BertConfig(initializer_range=0.5, **_BERT))


def classifier(model: Any, labels: Any = LABELS, around: str = "[CLS] $A", **options: Any) -> laplora.Classifier:
    return laplora.Classifier(model, letters(around), "{text}", labels, max_tokens=16, **options)


@pytest.mark.parametrize(
    ("labels", "around", "wanted", "readout"),
    [
        (LABELS, "[CLS] $A", None, LabelTokens),
        (LONG, "[CLS] $A", None, NoAnswer),
        (["w", "w1 w2"], "[CLS] $A [SEP]", None, NoAnswer),
        (LONG, "[CLS] $A", "label_sequences", LabelSequences),
    ],
)
def test_a_language_model_answers_by_label_tokens_alone(labels: Any, around: str, wanted: Any, readout: Any) -> None:
    """Labels of several tokens cost too much for an answer that nothing was trained for, unless they are asked for."""
    found = classifier(tiny_base("llama"), labels, around, readout=wanted)
    assert isinstance(found.readout, readout)
    assert (found.readout.side, found.readout.class_count, found.is_trained) == ("left", 2, False)
    assert classifier(tiny_model("llama", targets=["q_proj"])).is_trained


def test_an_encoder_has_no_answer() -> None:
    found = classifier(encoder(), around="[CLS] $A [SEP]")
    assert found.readout == NoAnswer(2, "right")
    assert not found.is_trained
    with pytest.raises(ModelError, match="a BertModel has no answer of its own for these labels"):
        found.readout.scores(found.model, found.collate([found.encode({"text": "a b"})]))
    with pytest.raises(ConfigError, match="a BertModel has no output embedding for label_tokens"):
        classifier(encoder(), around="[CLS] $A [SEP]", readout="label_tokens")


class Blind(hf.BertModel):  # type: ignore[misc]
    """An encoder that ignores its attention mask."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return super().forward(input_ids)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Linear(2, 2), "one that from_pretrained returned, got Linear"),
        (lambda: encoder(hf.BertForMaskedLM), "BertForMaskedLM transforms its logits"),
        (lambda: tiny_model("llama", targets=["q_proj"]).get_base_model(), "has LoRA layers in it"),
        (lambda: encoder(Blind), "gives other states where a row is padded on the right"),
        (
            lambda: hf.T5Model(hf.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=64)),
            "T5Model does not run on token ids",
        ),
    ],
)
def test_models_that_cannot_be_read_are_refused(model: Callable[[], Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        classifier(model().eval(), around="[CLS] $A [SEP]")
