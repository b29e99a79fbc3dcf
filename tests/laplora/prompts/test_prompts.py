"""Prompts, label tokens and left-padded batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from laplora.errors import ConfigError, InvalidInputError, LabelTokenError, TooManyTokensError
from laplora.models.offline import ensure_model
from laplora.prompts.rows import EncodedRow, collate, encode
from laplora.prompts.templates import TEMPLATES, PromptTemplate, render, resolve_label_tokens

AB = ("A", "B")


@pytest.fixture(scope="module")
def smollm() -> Any:
    return AutoTokenizer.from_pretrained(str(ensure_model("smollm2-135m-instruct")))


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


def test_winogrande_has_the_papers_text() -> None:
    """Yang et al. (arXiv 2308.13111), the missing dot after B included; byte for byte, artifacts depend on it."""
    inputs = {"question": "The trophy did not fit in the bag because the _ was big.", "choices": ["trophy", "bag"]}
    prompt, classes = render(TEMPLATES["winogrande"], inputs, AB)
    assert prompt == (
        "Select one of the choices that answers the following question: The trophy did not fit in the bag because "
        "the _ was big. Choices: A. trophy. B bag. Answer:"
    )
    assert classes == 2


def test_multiple_choice_lists_only_the_rows_choices() -> None:
    prompt, classes = render(
        TEMPLATES["multiple_choice"], {"question": "Q?", "choices": ["x", "y", "z"]}, ("A", "B", "C", "D", "E")
    )
    assert prompt.endswith("Q? Choices:\nA. x\nB. y\nC. z\nAnswer:")
    assert classes == 3


def test_text_in_a_field_is_never_a_placeholder() -> None:
    template = PromptTemplate("t", 1, "{{literal}} {text} end:")
    assert (
        render(template, {"text": "{text} {{x}} {other} %s \\1"}, AB)[0] == "{literal} {text} {{x}} {other} %s \\1 end:"
    )


@given(st.text(min_size=1).filter(lambda t: t.strip()))
def test_any_text_is_rendered_unchanged(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        with pytest.raises(InvalidInputError, match="surrogate"):
            render(TEMPLATES["sentiment"], {"text": text}, AB)
        return
    prompt, _ = render(TEMPLATES["sentiment"], {"text": text}, AB)
    assert prompt == f"Review: {text}\nIs this review positive or negative? Answer:"


def test_a_ready_prompt_is_taken_as_it_is() -> None:
    assert render(TEMPLATES["winogrande"], {"prompt": "as is"}, AB) == ("as is", 2)


@pytest.mark.parametrize(
    ("inputs", "field", "message"),
    [
        ({}, "question", "missing"),
        ({"question": "Q?"}, "choices", "missing"),
        ({"question": "Q?", "choices": ["x", "y"], "colour": "red"}, "colour", "unknown"),
        ({"question": " ", "choices": ["x", "y"]}, "question", "empty"),
        ({"question": 3, "choices": ["x", "y"]}, "question", "must be a string, got int"),
        ({"question": "Q?", "choices": "xy"}, "choices", "list of strings"),
        ({"question": "Q?", "choices": ["x"]}, "choices", "takes 2 choices, got 1"),
        ({"question": "Q?", "choices": ["x", "y", "z"]}, "choices", "takes 2 choices, got 3"),
        ({"question": "Q?", "choices": ["x", None]}, "choices[1]", "must be a string"),
        ({"question": "Q\ud800", "choices": ["x", "y"]}, "question", "surrogate"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_by_field(inputs: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message.replace("[", r"\[")) as caught:
        render(TEMPLATES["winogrande"], inputs, AB)
    assert caught.value.field == field


def test_no_error_repeats_the_prompt() -> None:
    for inputs in ({"question": "secret", "choices": ["secret"]}, {"question": "secret", "choices": "secret"}):
        with pytest.raises(InvalidInputError) as caught:
            render(TEMPLATES["winogrande"], inputs, AB)
        assert "secret" not in str(caught.value)


def test_a_template_without_a_placeholder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no \{field\} placeholder"):
        PromptTemplate("t", 1, "Answer:")


@pytest.mark.parametrize(
    ("template", "labels"),
    [
        ("winogrande", AB),
        ("multiple_choice", tuple("ABCDE")),
        ("boolq", ("Yes", "No")),
        ("sentiment", ("negative", "positive")),
    ],
)
def test_label_tokens_are_what_a_generation_would_emit(smollm: Any, template: str, labels: tuple[str, ...]) -> None:
    """Byte-level BPE: the label with its leading space, and the prompt's own tokens stay as they were."""
    ids = resolve_label_tokens(smollm, TEMPLATES[template], labels)
    assert smollm.convert_ids_to_tokens(ids) == [f"Ġ{label}" for label in labels]
    prompt = TEMPLATES[template].text
    for label, token in zip(labels, ids, strict=True):
        assert smollm.encode(f"{prompt} {label}") == [*smollm.encode(prompt), token]


def test_label_tokens_of_a_sentencepiece_tokenizer(metaspace: Any) -> None:
    """There the space is part of the token, and a text alone would get a space in front of it too."""
    ids = resolve_label_tokens(metaspace, PromptTemplate("t", 1, "{text} Answer:"), ("Yes", "No"))
    assert metaspace.convert_ids_to_tokens(ids) == ["▁Yes", "▁No"]


def test_label_without_a_space_before_it(metaspace: Any, smollm: Any) -> None:
    template = PromptTemplate("t", 1, "{text} Answer:", label_prefix="")
    assert metaspace.convert_ids_to_tokens(resolve_label_tokens(metaspace, template, AB)) == ["A", "B"]
    assert smollm.convert_ids_to_tokens(resolve_label_tokens(smollm, template, AB)) == ["A", "B"]


def test_a_label_of_several_tokens_is_named(smollm: Any, metaspace: Any) -> None:
    with pytest.raises(LabelTokenError, match=r"label 'unbelievably bad' must be one token .*Ġbad"):
        resolve_label_tokens(smollm, TEMPLATES["sentiment"], ("good", "unbelievably bad"))
    with pytest.raises(LabelTokenError, match=r"label 'Maybe' must be one token .*'▁May', 'be'"):
        resolve_label_tokens(metaspace, PromptTemplate("t", 1, "{text} Answer:"), ("Yes", "Maybe"))


def test_labels_that_share_a_token_are_named(smollm: Any) -> None:
    with pytest.raises(LabelTokenError, match="labels 'good' and 'good' collide: both are token"):
        resolve_label_tokens(smollm, TEMPLATES["sentiment"], ("good", "good"))


def test_labels_unknown_to_the_tokenizer_collide(metaspace: Any) -> None:
    """Every word out of a vocabulary is the same unknown token."""
    with pytest.raises(LabelTokenError, match=r"label '映'|collide"):
        resolve_label_tokens(metaspace, PromptTemplate("t", 1, "{text} Answer:", label_prefix=""), ("映", "画"))


def test_one_label_is_no_classifier(smollm: Any) -> None:
    with pytest.raises(LabelTokenError, match="at least two"):
        resolve_label_tokens(smollm, TEMPLATES["sentiment"], ("good",))


def test_truncation_keeps_the_end(smollm: Any) -> None:
    prompt, _ = render(TEMPLATES["sentiment"], {"text": "word " * 100}, AB)
    whole = smollm.encode(prompt)
    row = encode(smollm, prompt, 2, max_tokens=20, truncate=True)
    assert row == EncodedRow(tuple(whole[-20:]), 2, truncated=True)
    assert smollm.decode(row.token_ids).endswith("positive or negative? Answer:")


def test_truncation_keeps_a_leading_special_token(metaspace: Any) -> None:
    row = encode(metaspace, "text? text? text? Answer:", 2, max_tokens=4, truncate=True)
    whole = metaspace.encode("text? text? text? Answer:")
    assert row.token_ids == (1, *whole[-3:])


def test_a_prompt_at_the_limit_is_whole_and_one_over_is_refused(smollm: Any) -> None:
    length = len(smollm.encode("one two three four"))
    assert not encode(smollm, "one two three four", 2, max_tokens=length, truncate=False).truncated
    with pytest.raises(TooManyTokensError, match=f"has {length} tokens, the limit is {length - 1}") as caught:
        encode(smollm, "one two three four", 2, max_tokens=length - 1, truncate=False)
    assert (caught.value.got, caught.value.limit) == (length, length - 1)


def test_batches_are_padded_on_the_left() -> None:
    batch = collate(
        [EncodedRow((5, 6, 7), 2), EncodedRow((8,), 3), EncodedRow((9, 10), 3)], class_count=3, pad_token_id=99
    )
    assert batch.input_ids.tolist() == [[5, 6, 7], [99, 99, 8], [99, 9, 10]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 1]]
    assert batch.class_mask.tolist() == [[True, True, False], [True] * 3, [True] * 3]
    assert len(batch) == 3


def test_a_pad_token_inside_a_prompt_is_a_real_token() -> None:
    """Padding is known by place, never by value: many tokenizers pad with a token that prompts hold."""
    batch = collate([EncodedRow((99, 5, 99), 2), EncodedRow((5,), 2)], class_count=2, pad_token_id=99)
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=9), min_size=1, max_size=6))
def test_a_row_is_the_same_in_every_batch(rows: list[list[int]]) -> None:
    batch = collate([EncodedRow(tuple(r), 2) for r in rows], class_count=2, pad_token_id=0)
    for i, row in enumerate(rows):
        real = batch.attention_mask[i].bool()
        assert batch.input_ids[i][real].tolist() == row
        assert batch.position_ids[i][real].tolist() == list(range(len(row)))
        assert torch.equal(real, torch.arange(len(real)) >= len(real) - len(row))
