"""Prompts, label tokens, left-padded batches, and options in reverse: shown so, and exact on the way back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import pytest
from tiny_tokenizer import encoder_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from laplora.classifier import batches
from laplora.errors import ConfigError, InvalidInputError, LabelTokenError, TooManyTokensError
from laplora.prompts.rows import EncodedRow, collate, encode
from laplora.prompts.templates import (
    TEMPLATES,
    Cut,
    PromptTemplate,
    render,
    resolve_label_sequences,
    resolve_label_tokens,
)
from laplora.prompts.token_bounds import token_bounds
from laplora.prompts.token_roles import AFTER, FIELD, OTHER, encode_with_roles, ending_tokens

AB = ("A", "B")
ANSWER = PromptTemplate("t", 1, "{text} Answer:")
BARE = PromptTemplate("t", 1, "{text} Answer:", label_prefix="")


@pytest.fixture(scope="module")
def metaspace() -> Any:
    """A tokenizer of the SentencePiece kind: spaces are part of the word as ``▁``, and a text starts with one."""
    words = ["<unk>", "<s>", "</s>", "▁", ":", "▁Answer", "▁Answer:", "▁A", "▁B", "▁Yes", "▁No", "▁May", "be", "A", "B"]
    letters = sorted(set("Answer:ABYesNoMaybetxt?") - set(words))
    vocabulary = [(w, -1.0 - 0.01 * i) for i, w in enumerate(words)] + [(c, -20.0) for c in letters]
    inner = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def test_prompts_are_their_templates_texts() -> None:
    """Winogrande's of Yang et al. (arXiv 2308.13111), the missing dot after B included: artifacts depend on it."""
    inputs = {"question": "The trophy did not fit in the bag because the _ was big.", "choices": ["trophy", "bag"]}
    assert render(TEMPLATES["winogrande"], inputs, AB) == (
        "Select one of the choices that answers the following question: The trophy did not fit in the bag because "
        "the _ was big. Choices: A. trophy. B bag. Answer:",
        2,
    )
    assert render(TEMPLATES["winogrande"], {"prompt": " as is\n"}, AB) == (" as is\n", 2)
    inputs = {"question": "\tQ? ", "choices": ["x", " y\n", "z"]}  # what stands around a text is none of it
    prompt, classes = render(TEMPLATES["multiple_choice"], inputs, tuple("ABCDE"))
    assert prompt.endswith("Q? Choices:\nA. x\nB. y\nC. z\nAnswer:")
    assert classes == 3, "the row's choices alone"
    # Text in a field is never a placeholder.
    template, text = PromptTemplate("t", 1, "{{literal}} {text} end:"), "{text} {{x}} {other} %s \\1"
    assert render(template, {"text": text}, AB)[0] == "{literal} " + text + " end:"


@pytest.mark.parametrize(
    ("inputs", "field", "message"),
    [
        ({}, "question", "missing"),
        ({"question": "Q?"}, "choices", "missing"),
        ({"question": "Q?", "choices": ["x", "y"], "colour": "red"}, "colour", "unknown"),
        ({"question": " ", "choices": ["x", "y"]}, "question", "empty"),
        ({"question": 3, "choices": ["x", "y"]}, "question", "must be a string, got int"),
        ({"question": "secret", "choices": "secret"}, "choices", "list of strings"),
        ({"question": "secret", "choices": ["x", "y", "secret"]}, "choices", "takes 2 choices, got 3"),
        ({"question": "Q?", "choices": ["secret", None]}, "choices[1]", "must be a string"),
        ({"question": "secret\ud800", "choices": ["x", "y"]}, "question", "surrogate"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_by_field(inputs: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        render(TEMPLATES["winogrande"], inputs, AB)
    assert caught.value.field == field
    assert "secret" not in str(caught.value)


def test_templates_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"writes a choice with \['name'\]"):
        PromptTemplate("x", 1, "{question} {choices}", choice="{label}: {name}")
    assert PromptTemplate("x", 1, "{question} {choices}", choice="{{{label}}} {text}").takes_choices
    for field in ("title", "choices"):
        with pytest.raises(ConfigError, match=f"has no text '{field}' to cut: it has \\['question'\\]"):
            PromptTemplate("t", 1, "{question} {choices}", cut=Cut(field))
    for field in ("id", "label", "prompt"):
        with pytest.raises(ConfigError, match=f"has the field '{field}', and no field may be called id, label, prompt"):
            PromptTemplate("t", 1, f"{{text}} by {{{field}}}")
    with pytest.raises(ConfigError, match=r"no \{field\} placeholder"):
        PromptTemplate("t", 1, "Answer:")


def test_label_tokens_of_two_kinds_of_tokenizers(metaspace: Any, smollm: Any) -> None:
    """In one the space is part of the token, and a text alone would get a space in front of it too."""
    for template, labels in (("winogrande", AB), ("boolq", ("Yes", "No")), ("sentiment", ("negative", "positive"))):
        ids = resolve_label_tokens(smollm, TEMPLATES[template], [f" {label}" for label in labels])
        assert smollm.convert_ids_to_tokens(ids) == [f"Ġ{label}" for label in labels]
    assert metaspace.convert_ids_to_tokens(resolve_label_tokens(metaspace, ANSWER, (" Yes", " No"))) == ["▁Yes", "▁No"]
    assert metaspace.convert_ids_to_tokens(resolve_label_tokens(metaspace, BARE, AB)) == ["A", "B"]
    assert smollm.convert_ids_to_tokens(resolve_label_tokens(smollm, BARE, AB)) == ["A", "B"]


def test_label_sequences_are_what_a_generation_would_emit(smollm: Any) -> None:
    """The prompt's own tokens stay as they were; a label may begin with another one."""
    labels = (" positive", " very positive", " very negative", " very positive indeed")
    found = resolve_label_sequences(smollm, TEMPLATES["sentiment"], labels)
    prompt = TEMPLATES["sentiment"].text
    for label, tokens in zip(labels, found, strict=True):
        assert smollm.encode(prompt + label) == [*smollm.encode(prompt), *tokens]
    assert found[3][: len(found[1])] == found[1]
    one = resolve_label_tokens(smollm, TEMPLATES["boolq"], (" Yes", " No"))
    assert resolve_label_sequences(smollm, TEMPLATES["boolq"], (" Yes", " No")) == tuple((token,) for token in one)


@pytest.mark.parametrize(
    ("resolve", "template", "labels", "message"),
    [
        (resolve_label_tokens, ANSWER, (" Yes", " Maybe"), r"label ' Maybe' must be one token .*'▁May', 'be'"),
        (resolve_label_tokens, ANSWER, (" Yes", " Yes"), "labels ' Yes' and ' Yes' collide: both are token"),
        # every word out of a vocabulary is the same unknown token
        (resolve_label_tokens, BARE, ("映", "画"), r"label '映'|collide"),
        (resolve_label_tokens, ANSWER, (" Yes",), "at least two"),
        (resolve_label_sequences, ANSWER, (" Yes", " Yes"), "labels ' Yes' and ' Yes' collide: both are the tokens"),
        (resolve_label_sequences, ANSWER, (" Yes", ""), "label '' must add tokens after the prompt"),
        (resolve_label_sequences, ANSWER, (" Yes",), "at least two"),
        # Answer and Answers are one token each: nothing stands after the prompt.
        (resolve_label_sequences, PromptTemplate("t", 1, "{text} Answer"), (" no", "s"), "label 's' must add tokens"),
    ],
)
def test_labels_that_cannot_be_told_apart(
    resolve: Any, template: PromptTemplate, labels: tuple[str, ...], message: str, metaspace: Any, smollm: Any
) -> None:
    with pytest.raises(LabelTokenError, match=message):
        resolve(metaspace if resolve is resolve_label_tokens else smollm, template, labels)


def test_truncation_keeps_the_end_and_a_leading_special_token(smollm: Any, metaspace: Any) -> None:
    prompt, _ = render(TEMPLATES["sentiment"], {"text": "word " * 100}, AB)
    row = encode(smollm, prompt, 2, max_tokens=20, truncate=True)
    assert row == EncodedRow(tuple(smollm.encode(prompt)[-20:]), 2, truncated=True)
    assert smollm.decode(row.token_ids).endswith("positive or negative? Answer:")
    text = "text? text? text? Answer:"
    row = encode(metaspace, text, 2, max_tokens=4, truncate=True)
    assert row.token_ids == (1, *metaspace.encode(text)[-3:])
    # On the right the start is kept, and a trailing special token.
    whole = metaspace.encode(text)
    assert encode(metaspace, text, 2, max_tokens=4, truncate=True, side="right").token_ids == tuple(whole[:4])
    ends = MagicMock(encode=lambda _text: [*whole, 2], all_special_ids=[1, 2])
    assert encode(ends, text, 2, max_tokens=4, truncate=True, side="right").token_ids == (*whole[:3], 2)


def test_each_token_is_of_a_field_or_of_the_templates_words(smollm: Any, metaspace: Any) -> None:
    """By the characters that it stands for, whatever a tokenizer normalises and whatever was cut on either side."""

    def shown(tokenizer: Any, template: PromptTemplate, inputs: Any, limit: int, side: Any = "left") -> list[str]:
        bounds = token_bounds(tokenizer)
        row = encode_with_roles(
            tokenizer, template, inputs, AB, max_tokens=limit, truncate=True, bounds=bounds, side=side
        )
        of_role = [
            [t for t, r in zip(row.token_ids, row.roles, strict=True) if r == role] for role in (OTHER, FIELD, AFTER)
        ]
        return [tokenizer.decode(ids) for ids in of_role]

    film = PromptTemplate("t", 1, "The film: {text}\nTopic of {noun}? Answer:")
    inputs = {"text": "so dull. So weak.", "noun": "plots"}
    assert shown(smollm, film, inputs, 99) == ["The film:\nTopic of", " so dull. So weak. plots", "? Answer:"]
    long = {"text": "great " * 5000 + "end", "noun": "plots"}
    right, left = (replace(film, cut=Cut("text", side)) for side in ("right", "left"))
    assert shown(smollm, right, long, 13) == ["The film:\nTopic of", " great great great plots", "? Answer:"]
    assert shown(smollm, left, long, 13) == ["The film:\nTopic of", " great great end plots", "? Answer:"]
    # Without a field to cut, the prompt loses its start, or its end where it is an encoder's.
    assert shown(smollm, film, long, 9) == ["\nTopic of", " great end plots", "? Answer:"]
    assert shown(smollm, film, long, 5, "right") == ["The film:", " great great", ""]
    assert shown(smollm, film, {"prompt": "as it is"}, 9) == ["", "as it is", ""]
    question = {"question": "Is a film?", "choices": ["dull plot", "A"]}
    texts = [" Choices:\nA.\nB.", "Is a film? dull plot A", "\nAnswer:"]
    assert shown(smollm, PromptTemplate("c", 1, "{question} Choices:\n{choices}\nAnswer:"), question, 99) == texts
    # Special tokens belong to nobody. A token with a character of a field belongs to it.
    maybe = PromptTemplate("t", 1, "Answer{sign} {text} Answer:")
    assert shown(metaspace, maybe, {"sign": ":", "text": "Maybe"}, 9) == ["<s>", "Answer: Maybe", "Answer:"]
    assert shown(metaspace, maybe, {"sign": "x", "text": "Maybe Yes"}, 4) == ["<s>", "be Yes", "Answer:"]
    topic, great = PromptTemplate("t", 1, "Film: {text}? Topic"), {"text": "GREAT f\u00eflm"}
    assert shown(encoder_tokenizer(), topic, great, 9, "right") == ["[CLS] film : [SEP]", "great film", "? topic"]
    assert shown(encoder_tokenizer(), topic, great, 5, "right") == ["[CLS] film : [SEP]", "great", ""]
    # What every prompt ends in: "?" may be one token with a text's last dot, and words that are a field's are not in.
    ends = [smollm.encode(f"The film: so\nTopic of {noun}? Answer:") for noun in ("plots", "it.")]
    assert [smollm.decode(ids[-ending_tokens(smollm, film) :]) for ids in ends] == [" Answer:"] * 2
    assert ending_tokens(smollm, PromptTemplate("t", 1, "Film: {text}")) == 1


def test_a_prompt_at_the_limit_is_whole_and_one_over_is_refused(smollm: Any) -> None:
    text, length = "one two three four", len(smollm.encode("one two three four"))
    assert not encode(smollm, text, 2, max_tokens=length, truncate=False).truncated
    with pytest.raises(TooManyTokensError, match=f"has {length} tokens, the limit is {length - 1}") as caught:
        encode(smollm, text, 2, max_tokens=length - 1, truncate=False)
    assert (caught.value.got, caught.value.limit) == (length, length - 1)


@pytest.mark.parametrize("most", [1, 7, 20, 64, 1000])
def test_batches_keep_to_their_rows_and_padded_tokens(most: int) -> None:
    """Every row once; no more padded tokens than allowed, but for a row that alone has more."""
    rows = [EncodedRow((1,) * (1 + 7 * i % 23), 2) for i in range(40)]
    found = batches(rows, 8, (most, lambda row: 2 * len(row.token_ids)))
    assert sorted(i for batch in found for i in batch) == list(range(40))
    for batch in found:
        longest = max(2 * len(rows[i].token_ids) for i in batch)
        assert 1 <= len(batch) <= 8
        assert len(batch) * longest <= most or len(batch) == 1
    assert batches(rows, 8, (10**6, lambda row: 1)) == batches(rows, 8)
    assert [len(batch) for batch in batches(rows[:11], 8)] == [8, 3]


def test_batches_are_padded_on_the_left_and_of_encoders_on_the_right() -> None:
    """Padding is known by place, never by value: many tokenizers pad with a token that prompts hold."""
    rows = [EncodedRow((5, 6, 7), 2), EncodedRow((8,), 3)]
    batch = collate(rows, class_count=3, pad_token_id=8)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 8, 8]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch.class_mask.tolist() == [[True, True, False], [True] * 3]
    batch = collate(rows, class_count=3, pad_token_id=5, side="right")
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 5, 5]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.to("cpu").inputs.keys() == {"input_ids", "attention_mask"}  # they count positions themselves
