"""Read-outs that a classifier has: the cheapest that tells its labels apart, and a head, with what is refused of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from head_artifacts import save_base
from tiny_classifiers import TARGETS, adapted_classifier, classifier_base, head_alone
from tiny_models import add_lora
from tiny_runs import FinishedRun
from transformers import AutoModelForCausalLM, AutoTokenizer

import laplora
from laplora.errors import ConfigError, LabelTokenError, ModelError
from laplora.fitting.priors import block_weights, squared_distances
from laplora.jacobians.contrasts import covered_blocks
from laplora.prompts.templates import TEMPLATES
from laplora.readouts.choice import choose_readout
from laplora.readouts.label_sequences import LabelSequences
from laplora.readouts.label_tokens import LabelTokens

LABELS = ["down", "up", "flat"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = save_base(tmp_path_factory.mktemp("heads") / "base", classifier_base("bert"), head=False)
    return AutoTokenizer.from_pretrained(base)


def classifier_of(tokenizer: Any, model: Any, labels: list[str] = LABELS, **options: Any) -> laplora.Classifier:
    return laplora.Classifier(model, tokenizer, labels, "{text}", **{"max_tokens": 12} | options)


def test_the_priors_distances_take_the_head_with_its_bias(tokenizer: Any) -> None:
    alone = head_alone("bert", dtype=torch.float32)
    getattr(alone, alone.base_model_prefix).requires_grad_(False)
    classifier = classifier_of(tokenizer, alone)
    blocks = covered_blocks(classifier.model, classifier.readout)
    layer = classifier.model.classifier
    expected = layer.weight.double().square().sum() + layer.bias.double().square().sum()
    torch.testing.assert_close(squared_distances(block_weights(classifier), blocks, None), expected.detach()[None])
    adapted = classifier_of(tokenizer, adapted_classifier("roberta", dtype=torch.float32))
    blocks, weights = covered_blocks(adapted.model, adapted.readout), block_weights(adapted)
    start = {name: weight - 0.5 for name, weight in weights.items()}
    moved = squared_distances(weights, blocks, start).tolist()
    assert moved == pytest.approx([0.25 * block.wide * block.narrow for block in blocks], rel=1e-6)


def test_a_model_that_does_not_fit_its_labels_is_refused_by_name(tokenizer: Any) -> None:
    model = adapted_classifier("bert", dtype=torch.float32)
    with pytest.raises(ModelError, match="the head has 3 classes, there are 2 labels"):
        classifier_of(tokenizer, model, LABELS[:2])
    with pytest.raises(ModelError, match="has positions for 64 tokens, max_tokens is 512: lower it"):
        classifier_of(tokenizer, model, max_tokens=512)
    with pytest.raises(ConfigError, match="is read at its head, not by label_tokens"):
        classifier_of(tokenizer, model, readout="label_tokens")
    keys = adapted_classifier("deberta", dtype=torch.float32, lora={"target_modules": ["key_proj"]})
    with pytest.raises(ModelError, match=f"choose adapter.targets among .*{TARGETS['deberta'][0]}"):
        classifier_of(tokenizer, keys)


def test_the_cheapest_read_out_that_can_tell_the_labels_apart(sentiment_run: FinishedRun) -> None:
    base = AutoModelForCausalLM.from_pretrained(sentiment_run.base, dtype=torch.float32)
    model, tokenizer = (
        add_lora(base, ["q_proj", "v_proj"], dtype=None),
        AutoTokenizer.from_pretrained(sentiment_run.base),
    )
    one, several = (" bad", " good"), (" rather bad", " very good indeed")  # of two and three tokens
    choose = partial(choose_readout, model, tokenizer, TEMPLATES["sentiment"])
    assert isinstance(choose(one), LabelTokens)
    assert isinstance(choose(one, "label_sequences"), LabelSequences)
    assert isinstance(choose(several), LabelSequences)
    with pytest.raises(LabelTokenError, match=r"' rather bad' must be one token .*or read whole texts"):
        choose(several, "label_tokens")
