"""Bounds on a text's tokens before it is tokenised, cuts that change no token, and cuts of one field."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from exhaustive import drawn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from laplora.errors import TooManyTokensError
from laplora.prompts.cutting import encode_inputs
from laplora.prompts.rows import encode
from laplora.prompts.templates import Cut, PromptTemplate
from laplora.prompts.token_bounds import _LLAMA3, UNBOUNDED, TokenBounds, token_bounds

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
#: Letters, digits, marks, spaces of every kind, other scripts, emoji, and the names of special tokens.
PIECES = [
    *"abzAZ019.,!?'-_()#=\t\n\r\x00 éß🎬ا\u00a0\u2003\u200b\U00020000",
    *["  ", "    ", " \n ", "'s", "'LL", " don't", "word", " Word", " the film", " the film was long", "12345"],
    *["e\u0301", "漢字", " 映画 ", "👩\u200d👩\u200d👧", "क्ष"],
    *["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "<repo_name> a", "a" * 90, "#" * 170, "\n" + " " * 170],
]


def byte_level(change: Callable[[Tokenizer], None] = lambda inner: None, **model: Any) -> Any:
    """A byte-level BPE of a few merges, with a token that starts each text."""
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("a", "a"), ("aa", "aa")]
    words = ["<s>", *ALPHABET, *dict.fromkeys(a + b for a, b in merges)]
    inner = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges, **model))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    change(inner)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")


def llama3(inner: Tokenizer) -> None:
    split = pre_tokenizers.Split(Regex(_LLAMA3), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])


def digits(inner: Tokenizer) -> None:
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])


@pytest.mark.parametrize("max_tokens", [4, 16])
def test_cut_text_has_the_tokens_of_the_whole(smollm: Any, max_tokens: int) -> None:
    """Runs of one piece as well as mixtures: what a vocabulary has long tokens for."""
    cut = 0
    for tokenizer in (smollm, byte_level(), byte_level(digits), byte_level(llama3)):
        bounds, rng = token_bounds(tokenizer), random.Random(max_tokens)
        for _ in range(40):
            text = "".join(rng.choice(PIECES) * rng.choice((1, 1, 1, 2, 12)) for _ in range(60))
            how: dict[str, Any] = {"max_tokens": max_tokens, "truncate": True}
            assert encode(tokenizer, text, 2, **how, bounds=bounds) == encode(tokenizer, text, 2, **how)
            start = encode(tokenizer, text, 2, **how, side="right")
            assert start == encode(tokenizer, text, 2, **how, bounds=bounds, side="right")
            assert start.token_ids == tuple(tokenizer.encode(text)[:max_tokens])
            assert bounds.fewest(len(text.encode())) <= len(tokenizer.encode(text))
            cut += (bounds.tail(text, max_tokens) != text) + (bounds.start(text, max_tokens) != text)
    assert cut > 160


def test_text_without_a_place_to_cut_stays_whole() -> None:
    bounds = TokenBounds(2)
    for text in ("a" * 500, " " * 500, "1 2 " * 100, "é è " * 100):
        assert bounds.tail(text, 4) == bounds.start(text, 4) == text
    assert bounds.tail("ab cd " + "." * 400, 4) == " cd " + "." * 400
    assert bounds.start("." * 400 + " ab cd", 4) == "." * 400 + " ab"


def test_a_text_above_the_bound_is_not_tokenised(smollm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, tokenize = list[int](), smollm.encode
    monkeypatch.setattr(smollm, "encode", lambda text: seen.append(len(text)) or tokenize(text))
    text = "a long film . " * 100_000
    bounds = token_bounds(smollm)
    assert bounds.longest_bytes == 81  # a line break and 80 spaces
    assert bounds.longest_special == len("<jupyter_output>")
    with pytest.raises(TooManyTokensError) as caught:
        encode(smollm, text, 2, max_tokens=64, truncate=False, bounds=bounds)
    assert (caught.value.limit, caught.value.got, seen) == (64, -(-len(text) // 81), [])
    assert encode(smollm, text, 2, max_tokens=64, truncate=True, bounds=bounds).truncated
    assert sum(seen) < 2 * 64 * 81


WHOLE_TEXT = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
SPLIT = pre_tokenizers.Split(Regex(r"(?<=a)b|\s+"), "isolated")


@pytest.mark.parametrize(
    "change",
    [
        lambda inner: setattr(inner.model, "unk_token", "<s>"),
        lambda inner: setattr(inner, "pre_tokenizer", WHOLE_TEXT),
        lambda inner: setattr(inner, "pre_tokenizer", pre_tokenizers.Sequence([SPLIT, WHOLE_TEXT])),
        lambda inner: setattr(inner, "normalizer", normalizers.Strip()),
        lambda inner: inner.add_special_tokens([AddedToken("<x>", lstrip=True)]),
        lambda inner: inner.add_special_tokens([AddedToken("<a b>")]),
    ],
)
def test_other_tokenisers_have_no_bound(change: Callable[[Tokenizer], None]) -> None:
    assert token_bounds(byte_level(change)) == token_bounds(object()) == UNBOUNDED
    assert (UNBOUNDED.fewest(10**9), UNBOUNDED.tail("a long film", 1)) == (1, "a long film")
    assert UNBOUNDED.start("a long film", 1) == "a long film"


LABELS = ("yes", "no")
TEXT = "Read this: {body} By {author}. Is it good? Answer:"


def template(side: str | None) -> PromptTemplate:
    return PromptTemplate("t", 1, TEXT, cut=None if side is None else Cut("body", side))  # type: ignore[arg-type]


def row(smollm: Any, side: str | None, body: str, limit: int = 32, *, truncate: bool = True, known: bool = True) -> Any:
    bounds = token_bounds(smollm) if known else UNBOUNDED
    inputs = {"body": body, "author": "Ann"}
    return encode_inputs(smollm, template(side), inputs, LABELS, max_tokens=limit, truncate=truncate, bounds=bounds)


LONG = " ".join(f"word{i} and" for i in range(200))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_field_is_cut_and_the_rest_is_whole(smollm: Any, side: str) -> None:
    found = row(smollm, side, LONG)
    text = smollm.decode(found.token_ids)
    assert found.truncated
    assert 28 <= len(found.token_ids) <= 32
    assert text.startswith("Read this: ")
    assert text.endswith(" By Ann. Is it good? Answer:")
    body = text.removeprefix("Read this: ").removesuffix(" By Ann. Is it good? Answer:")
    assert LONG.startswith(body) if side == "right" else LONG.endswith(body)
    # Nobody says which: the longest text, at its right, so that no instruction is lost.
    plain = template(None)
    for longest, other in (("body", "author"), ("author", "body")):
        inputs = {longest: LONG, other: "Ann"}
        row_of = encode_inputs(smollm, plain.cutting_texts(), inputs, LABELS, max_tokens=32, truncate=True)
        cut = smollm.decode(row_of.token_ids)
        assert re.fullmatch(r"Read this: .* By .*\. Is it good\? Answer:", cut)
        assert "Ann" in cut
        assert row_of.truncated
    words = replace(plain, text="{body}")
    assert (words.cutting_texts(), template("left").cutting_texts()) == (words, template("left"))


def test_what_fits_or_may_not_be_cut_is_as_without(smollm: Any) -> None:
    for side in (None, "left", "right"):
        short = row(smollm, side, "Short.")
        assert short == row(smollm, None, "Short.")
        assert not short.truncated
        with pytest.raises(TooManyTokensError, match="the limit is 32"):
            row(smollm, side, LONG, truncate=False)
    prompt = {"prompt": LONG}
    whole = encode(smollm, LONG, 2, max_tokens=16, truncate=True)
    assert encode_inputs(smollm, template("right"), prompt, LABELS, max_tokens=16, truncate=True) == whole
    # Other fields that are too long leave the prompt to be cut.
    assert row(smollm, "right", LONG, 10) == row(smollm, None, LONG, 10)


@settings(max_examples=drawn(60), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300).filter(lambda t: bool(t.strip())),
    st.sampled_from(["left", "right"]),
    st.integers(24, 40),
)
def test_any_text_fits_and_keeps_what_is_around_it(smollm: Any, body: str, side: str, limit: int) -> None:
    """Also characters of several tokens, of which no half is left, and with or without bounds on the tokens."""
    found = row(smollm, side, body, limit)
    assert len(found.token_ids) <= limit
    assert found == row(smollm, side, body, limit, known=False)
    text = smollm.decode(found.token_ids)
    if found.truncated:
        assert text.startswith("Read this: ") == (row(smollm, None, body, limit) != found)
        assert text.endswith(" By Ann. Is it good? Answer:")
