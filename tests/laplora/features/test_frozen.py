"""States of the base without adapter, against transformers' own record of rows that run alone and unpadded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_classifiers import adapted_classifier, features_of, head_alone
from tiny_models import add_lora, tiny_base
from tiny_tokenizer import encoder_tokenizer, tiny_tokenizer

import laplora
from laplora.classifier import frozen
from laplora.features.expert_passes import ExpertPasses
from laplora.features.layers import feature_layers
from laplora.models.classifier_head import is_adapted
from laplora.prompts.examples import Example
from laplora.prompts.templates import PromptTemplate
from laplora.prompts.token_roles import AFTER, FIELD
from laplora.readouts.no_answer import NoAnswer

TEMPLATE = "The film: {text}\nTopic of {noun}? Answer:"
TEXTS = ("great", "The plot was dull and I say so after seeing it twice", "superb, and\n not   weak", "x" * 200)
EXAMPLES = [Example(str(i), {"text": text, "noun": "the film"}, 0, 2) for i, text in enumerate(TEXTS)]
MAX_TOKENS = 30


def classifier_of(kind: str, labels: list[str], template: str = TEMPLATE) -> laplora.Classifier:
    """Return a classifier of a random model of four layers: causal with LoRA; with a head, and LoRA or not; plain."""
    how, _, name = kind.rpartition(" ")
    tokenizer = encoder_tokenizer() if name in ("bert", "modernbert") else tiny_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "num_hidden_layers": 4, "max_position_embeddings": 128}
    if how == "lora":
        lora = {"modules_to_save": ["classifier"]} if name == "bert" else None
        model = adapted_classifier(name, dtype=torch.float32, classes=2, lora=lora, **sizes)
    elif how == "head":  # of which the last linear was trained
        model = head_alone(name, dtype=torch.float32, classes=2, **sizes)
        model.head.requires_grad_(False)
    elif kind == "plain bert":
        model = head_alone(name, dtype=torch.float32, **sizes).bert
    else:
        sizes["layers"] = sizes.pop("num_hidden_layers")
        model = tiny_base(name, **sizes)
    if not how:
        model = add_lora(model, ["up_proj" if "sees" in name else "q_proj"], dtype=None)
    return laplora.Classifier(model, tokenizer, template, labels, max_tokens=MAX_TOKENS)


def naive(classifier: laplora.Classifier, example: Example) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return a row's blocks by transformers' own hidden states, and its logits, of the whole vocabulary if causal."""
    side: Any = classifier.readout.side
    row = ExpertPasses.of(classifier, ("frozen",)).encode(example.fields)
    assert replace(row, roles=()) == classifier.encode(example.fields)
    base = classifier.model.get_base_model() if is_adapted(classifier.model) else classifier.model
    out = base(input_ids=torch.tensor([row.token_ids]), output_hidden_states=True)
    blocks = {}
    for number in feature_layers(base):
        hidden = out.hidden_states[number][0]
        for name, role in (("fields", FIELD), ("after", AFTER)):
            places = [place for place, one in enumerate(row.roles) if one == role]
            if name == "fields" or side == "left":
                blocks[f"{name}.{number}"] = hidden[places].mean(0)
        name, place = ("last", -1) if side == "left" else ("first", 0)
        blocks[f"{name}.{number}"] = hidden[place]
    return blocks, out.logits[0] if "logits" in out else hidden


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("llama", ["good", "bad"]),
        ("gemma3_sees", ["good", "bad"]),
        ("phi", ["rather good", "very bad", "very dull"]),
        ("plain phi3", ["good", "bad"]),
        ("plain llama", ["rather good", "very bad"]),
        ("plain bert", ["good", "bad"]),
        ("lora qwen2", ["good", "bad"]),
        ("lora bert", ["good", "bad"]),
        ("head modernbert", ["good", "bad"]),
    ],
)
@torch.no_grad()
def test_states_are_those_of_each_row_alone_without_the_adapter(kind: str, labels: list[str]) -> None:
    """Whatever is beside it in a batch, on whichever side it is padded, and where its prompt was cut."""
    classifier = classifier_of(kind, labels)
    model = classifier.model
    silent = isinstance(classifier.readout, NoAnswer) or kind.startswith("lora")
    found = features_of(classifier, "frozen", EXAMPLES, 3, answers=not silent)
    assert not any(module._forward_hooks for module in model.modules())
    again = features_of(classifier, "frozen", EXAMPLES[::-1], 2)
    assert not again.log_probs
    own = found.log_probs.get("zero_shot")
    batch = classifier.collate(classifier.encode_examples(EXAMPLES))
    adapted = None if isinstance(classifier.readout, NoAnswer) else classifier.readout.scores(model, batch).logits
    if is_adapted(model):
        assert any(weight.requires_grad for name, weight in model.named_parameters() if "lora" in name)
        with model.disable_adapter():
            expected = [naive(classifier, example) for example in EXAMPLES]
    else:
        expected = [naive(classifier, example) for example in EXAMPLES]
    layers = (1, 2, 3, 4)
    blocks, others = found.features["frozen"], again.features["frozen"]
    assert {int(name.partition(".")[2]) for name in blocks} == set(layers)
    assert list(blocks) == list(others) == sorted(expected[0][0], key=list(blocks).index)
    for name, block in blocks.items():
        assert block.dtype == torch.float32
        torch.testing.assert_close(block, torch.stack([each[name] for each, _ in expected]), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(block, others[name].flip(0), atol=2e-5, rtol=1e-4)
    if silent:
        assert own is None
        return
    if kind.startswith("head"):
        logits = adapted
    elif len(labels) == 2:
        logits = torch.stack([logits[-1] for _, logits in expected])[:, list(classifier.readout.token_ids)]  # type: ignore[attr-defined]
    else:
        with frozen(model):
            logits = classifier.readout.scores(model, batch).logits
    torch.testing.assert_close(own, logits.double().log_softmax(1), atol=1e-5, rtol=1e-4)
    same = torch.allclose(adapted.double().log_softmax(1), own, atol=1e-5)
    assert same == kind.startswith(("plain", "head"))


def test_a_template_that_ends_in_its_field_has_nothing_after_it_and_odd_rows_have_all_they_can() -> None:
    classifier = classifier_of("llama", ["good", "bad"], "The film: {text}")
    blocks = features_of(classifier, "frozen", [Example("", {"text": "great"}, 0, 2)], 4).features["frozen"]
    assert {name.partition(".")[0] for name in blocks} == {"fields", "last"}
    classifier = classifier_of("llama", ["good", "bad"])
    long = PromptTemplate("t", 1, "{text}" + " The film was great." * 20)
    classifier = laplora.Classifier(classifier.model, classifier.tokenizer, long, ["good", "bad"], max_tokens=9)
    blocks = features_of(classifier, "frozen", [Example("", {"text": "dull"}, 0, 2)], 4).features["frozen"]
    torch.testing.assert_close(blocks["fields.4"], blocks["after.4"])
