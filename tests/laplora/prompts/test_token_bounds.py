"""Bounds on a text's tokens before it is tokenised, and cuts that change no token."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from laplora.errors import TooManyTokensError
from laplora.prompts.rows import encode
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
