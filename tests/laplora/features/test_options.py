"""Features of options, against transformers' own record of each option alone behind its question."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_classifiers import features_of, head_alone
from tiny_models import add_lora, tiny_base
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM

import laplora
from laplora.classifier import frozen
from laplora.errors import ConfigError, InvalidInputError
from laplora.features.layers import feature_layers
from laplora.features.options import SCORES
from laplora.prompts.examples import Example
from laplora.prompts.option_tokens import OptionText, encode_question, option_prompt, option_texts
from laplora.prompts.templates import TEMPLATES, PromptTemplate

LETTERS = ("A", "B", "C", "D")
BARE = PromptTemplate("bare", 1, "{question} {choices}")
FILLED = PromptTemplate("filled", 1, "Q: {question}\n{choices}\nA:", option_text="{question}")
QUESTIONS = (
    ("Is the film good", ("yes, rather great", "no", "I say so after seeing it twice", "not very")),
    ("The _ was dull and weak, and I say so", ("plot", "cast of the film")),
    ("I say so after seeing it twice. Which of them was not funny, _?", ("no", "yes", "the \u4e2d score")),
)


def example(question: str, choices: tuple[str, ...]) -> Example:
    return Example("", {"question": question, "choices": choices}, 0, len(choices))


def classifier_of(kind: str, template: PromptTemplate, max_tokens: int = 64, **options: Any) -> laplora.Classifier:
    """Return a classifier of a random model of four layers, whose adapter must not show."""
    tokenizer = tiny_tokenizer()
    base = tiny_base(kind, vocab_size=len(tokenizer), layers=4, max_position_embeddings=128, **options)
    adapted = add_lora(base, ["qkv_proj" if kind == "phi3" else "q_proj"], dtype=None)
    return laplora.Classifier(adapted, tokenizer, template, LETTERS, max_tokens=max_tokens)


def naive(classifier: laplora.Classifier, before: str, text: OptionText) -> dict[str, torch.Tensor]:
    """Return by block what a pass over one option's text says of the scored one's tokens."""
    tokenizer, given = classifier.tokenizer, before + text.filled
    found = tokenizer(given + text.scored, return_offsets_mapping=True)
    ids = found["input_ids"] if before else [tokenizer.bos_token_id, *found["input_ids"]]
    count = sum(end > len(given) for _, end in found["offset_mapping"])
    with frozen(classifier.model):
        out = classifier.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    steps = out.logits[0, -count - 1 : -1].log_softmax(-1).gather(1, torch.tensor(ids[-count:])[:, None])
    blocks = {"sum": steps.sum(), "tokens": torch.tensor(count)}
    states = torch.cat([out.hidden_states[layer][0, -count:] for layer in feature_layers(classifier.model)], 1)
    return blocks | {"mean": states.mean(0), "last": states[-1]}


def check(classifier: laplora.Classifier, questions: tuple[tuple[str, tuple[str, ...]], ...]) -> None:
    """Compare with the naive passes; 1e-4 of a block's largest value is float32's rounding over the layers."""
    examples = [example(*one) for one in questions]
    found = features_of(classifier, "options", examples, 2)
    blocks = found.features["options"]
    assert list(blocks) == ["mean", "last", "scores"]
    for row, one in enumerate(examples):
        texts = option_texts(classifier.template, one.fields, LETTERS)
        assert found.class_mask[row].tolist() == [k < len(texts) for k in range(len(LETTERS))]
        for k, text in enumerate(texts):
            asked, alone = (naive(classifier, before, text) for before in (text.question, text.alone))
            gained = asked["sum"] - alone["sum"]
            lengths = (1, asked.pop("tokens"), len(text.scored.strip()))
            asked["scores"] = torch.stack([s / by for s in (asked.pop("sum"), gained) for by in lengths])
            assert len(SCORES) == len(asked["scores"])
            for name, expected in asked.items():
                block = blocks[name]
                assert torch.allclose(block[row, k], expected, rtol=0, atol=1e-4 * float(block.abs().max())), name
        assert all(not block[row, len(texts) :].any() for block in blocks.values())
    turned = [example(question, choices[::-1]) for question, choices in questions]
    of_turned = features_of(classifier, "options", turned, 2).features["options"]
    for row, (_, choices) in enumerate(questions):
        for name, block in blocks.items():
            # Bit for bit: the options run in the order of their texts.
            assert torch.equal(of_turned[name][row, : len(choices)].flip(0), block[row, : len(choices)])


@pytest.mark.parametrize("kind", ["llama", "phi3", "gemma3", "mistral"])
def test_options_are_as_if_each_were_alone_behind_its_question(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one pass; one by one where rows are long, or a window of attention is shorter (mistral, gemma3)."""
    options = {"sliding_window": 6} if kind in ("gemma3", "mistral") else {}
    check(classifier_of(kind, TEMPLATES["multiple_choice"], **options), QUESTIONS)
    if kind == "llama":
        check(classifier_of(kind, FILLED), QUESTIONS[1:])
        check(classifier_of(kind, BARE), QUESTIONS)
        monkeypatch.setattr("laplora.features.options._MOST_TOKENS", 1)
        check(classifier_of(kind, BARE), QUESTIONS[:1])


def test_options_of_the_real_base(smollm: Any, base_model_folder: Path) -> None:
    """The first tokens of all options are in the shared beginning, and are still the options'."""
    base = AutoModelForCausalLM.from_pretrained(base_model_folder, dtype=torch.float32)
    classifier = laplora.Classifier(base, smollm, TEMPLATES["multiple_choice"], LETTERS)
    check(classifier, (("What do plants need?", ("the light", "the night", "the")),))


def test_the_prompt_of_an_option() -> None:
    """The list goes, and the words that lead to it; letters never show."""
    texts = {
        "{passage}\nQ: {question}\nOptions:\n{choices}\nA:": "{passage}\nQ: {question}\nA: {option}",
        "{question} Choices: {choices}. Answer:": "{question} Answer: {option}",
        "Answer this: {choices}\nWhich is right? {question}\nSo": "Which is right? {question}\nSo {option}",
        "{question} Is it one of these? {choices}": "{question} Is it one of these? {option}",
    }
    assert {text: option_prompt(PromptTemplate("t", 1, text)) for text in texts} == texts
    inputs = {"question": " A _ {x}?\n", "choices": ("b", "\tc ")}
    said = replace(BARE, option_text="{{so}} {question} A: {option}!")
    assert option_texts(said, inputs, LETTERS)[1] == OptionText("{so} A _ {x}? A:", "A:", "", " c!")
    assert option_texts(FILLED, inputs, LETTERS)[1] == OptionText("A ", "", "c", " {x}?")
    # Without a word behind the blank the option is scored.
    assert option_texts(FILLED, inputs | {"question": "A _."}, LETTERS)[1] == OptionText("A", "", "", " c.")


def test_a_text_that_is_too_long_loses_its_beginning() -> None:
    """And then the end of the option; its first token stays, which may be a special one."""
    tokenizer = tiny_tokenizer()
    short, long = (
        OptionText("I say so after seeing it twice", "", "", f" {text}") for text in ("no", "the film was dull")
    )
    whole = tokenizer.encode(long.question + long.scored)
    found = encode_question(tokenizer, [short, long], 8)
    assert found.begins == (whole[0], *whole[len(whole) - 7 : -4])
    assert (found.ends[1], found.scored) == (tuple(whole[-4:]), (1, 4))
    found = encode_question(tokenizer, [short, long], 3)
    assert (found.begins, found.ends[1], found.scored) == (tuple(whole[:1]), tuple(whole[-4:-2]), (1, 2))


def test_what_has_no_options_is_refused_by_name() -> None:
    """Each says what to do; no text of the user's is in it."""
    named = PromptTemplate("named", 1, "{question} A. {option1} B. {option2}:")
    for template, said in (
        (TEMPLATES["boolq"], "has no {choices}"),
        (named, "say by option_text"),
        (replace(BARE, option_text="{question} {option} {option}"), "takes {option} once"),
        (replace(BARE, option_text="{passage} {option}"), "any of \\['question'\\]"),
    ):
        with pytest.raises(ConfigError, match=said):
            option_prompt(template)
    with pytest.raises(InvalidInputError, match="the text has 2"):
        option_texts(FILLED, {"question": "A _ or _", "choices": ("b", "c")}, LETTERS)
    headed = laplora.Classifier(head_alone("llama", classes=4), tiny_tokenizer(), BARE, LETTERS)
    with pytest.raises(ConfigError, match="got a LlamaForSequenceClassification"):
        features_of(headed, "options", [example(*QUESTIONS[0])], 1)
