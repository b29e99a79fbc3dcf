"""Rows that begin alike: a pass runs what follows alone, and answers as one over all of their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_architectures import tiny_architecture
from tiny_classifiers import adapted_classifier
from tiny_models import PAD, VOCABULARY, generator, tiny_base, tiny_model

from laplora.models.beginning import WORTH_TOKENS, Beginning, continued, read_beginning
from laplora.models.readout import base_of, last_hidden
from laplora.predictive.batch_outputs import batch_outputs
from laplora.predictor import Predictor
from laplora.prompts.rows import Batch, EncodedRow, Side, collate
from laplora.prompts.templates import TEMPLATES, PromptTemplate, beginning_tokens
from laplora.readouts.classification_head import classification_head

TOKENS = tuple(range(10, 22))


def following(*lengths: int, first: tuple[int, ...] = TOKENS, side: Side = "left") -> Batch:
    """Return rows that begin with some tokens, so many random ones behind them."""
    draw = generator(7)
    ends = [torch.randint(3, VOCABULARY, (length,), generator=draw).tolist() for length in lengths]
    rows = [EncodedRow((*first, *end), 2) for end in ends]
    return collate(rows, class_count=2, pad_token_id=PAD, side=side)


@contextmanager
def counted(model: Any) -> Iterator[list[tuple[int, ...]]]:
    """Yield the (rows, tokens) of each pass."""
    base, seen = base_of(model), list[tuple[int, ...]]()
    handle = base.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    try:
        yield seen
    finally:
        handle.remove()


def compared(model: Any, batch: Batch, beginning: Beginning | None) -> float:
    """Return by how much of its norm a state at the last token moves at most."""
    assert beginning is not None
    assert beginning.begins(batch)
    with torch.no_grad():
        expected = last_hidden(model, batch)
        with continued(model, beginning), counted(model) as seen:
            found = last_hidden(model, batch)
    assert seen == [(len(batch), batch.input_ids.shape[1] - len(TOKENS))]
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


@pytest.mark.parametrize("kind", ["llama", "phi", "phi3"])
def test_states_are_those_of_a_pass_over_all_tokens(kind: Any) -> None:
    """In float64: 1e-12 is rounding."""
    model = tiny_model(kind)
    for lengths in ((5,), (1, 9, 4), (6, 6)):
        assert compared(model, following(*lengths), read_beginning(model, TOKENS, max_tokens=64)) < 1e-12, lengths


@pytest.mark.parametrize("kind", ["eager llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2", "mixtral"])
def test_kinds_that_share_a_beginning(kind: str) -> None:
    """In float32: of a float64 model transformers' other attention masks padding by a number that overflows."""
    model = tiny_architecture(kind) if " " not in kind else tiny_base("llama", attn_implementation="eager")
    assert compared(model, following(1, 9, 4), read_beginning(model, TOKENS, max_tokens=24)) < 1e-4


def test_a_classifiers_head_sees_the_same_state() -> None:
    model = adapted_classifier("llama", seed=1)
    readout, batch = classification_head(model), following(1, 9, 4)
    beginning = read_beginning(model, TOKENS, max_tokens=64)
    assert beginning is not None
    expected = readout.scores(model, batch).logits
    with continued(model, beginning):
        found = readout.scores(model, batch).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_other_batches_do_not_begin_so() -> None:
    """And a pass that fails leaves nothing of the beginning in the model."""
    model, batch = tiny_base("llama"), following(1, 3)
    beginning = read_beginning(model, TOKENS, max_tokens=64)
    assert beginning is not None
    assert beginning.begins(batch)
    with pytest.raises(ZeroDivisionError), continued(model, beginning):
        raise ZeroDivisionError
    with torch.no_grad(), counted(model) as seen:
        last_hidden(model, batch)
    assert seen == [tuple(batch.input_ids.shape)]
    other = (*TOKENS[:-1], 3)
    mixed = collate([EncodedRow((*first, 5, 6), 2) for first in (TOKENS, other)], class_count=2, pad_token_id=PAD)
    for batch in (following(0, 3), following(3, first=other), following(2, side="right"), mixed):
        assert not beginning.begins(batch)


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # inside of Bart
def test_nothing_is_shared_where_it_would_not_be_the_same_or_not_be_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_beginning(tiny_base("llama"), TOKENS[: WORTH_TOKENS - 1], max_tokens=64) is None
    windowed = tiny_base("mistral", sliding_window=20)
    assert read_beginning(windowed, TOKENS, max_tokens=21) is None
    assert read_beginning(windowed, TOKENS, max_tokens=20) is not None
    stretched = tiny_base("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0})
    assert read_beginning(stretched, TOKENS, max_tokens=65) is None
    assert read_beginning(tiny_architecture("bart"), TOKENS, max_tokens=64) is None  # its decoder keeps other caches
    model = tiny_base("llama")
    original = model.model.forward

    def without_cache(cache: Any = None, **inputs: Any) -> Any:
        return original(**inputs | {"attention_mask": inputs["attention_mask"][:, -inputs["input_ids"].shape[1] :]})

    monkeypatch.setattr(model.model, "forward", without_cache)
    assert read_beginning(model, TOKENS, max_tokens=64) is None


def test_a_device_that_fails_is_not_taken_for_a_model_that_shares_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Out of memory and a fault; then an error of a model."""
    errors = [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"),
    ]
    model = tiny_base("llama")

    def fail(*_: Any) -> None:
        raise error

    handle = model.model.layers[0].register_forward_hook(fail)
    try:
        for error in errors:
            with pytest.raises(RuntimeError) as raised:
                read_beginning(model, TOKENS, max_tokens=64)
            assert raised.value is error
        error = RuntimeError("a size does not match")
        with caplog.at_level("INFO", "laplora"):
            assert read_beginning(model, TOKENS, max_tokens=64) is None
    finally:
        handle.remove()
    assert "LlamaForCausalLM: RuntimeError: a size does not match" in caplog.text


def test_the_tokens_that_prompts_begin_with(choices_predictor: Predictor) -> None:
    tokenizer = choices_predictor.tokenizer
    for template in TEMPLATES.values():
        tokens = beginning_tokens(tokenizer, template)
        assert tokens == tuple(tokenizer.encode(template.beginning + "and")[: len(tokens)])
    assert beginning_tokens(tokenizer, TEMPLATES["entailment"]) == ()
    assert PromptTemplate("braces", 1, "a {{b}} c {text}").beginning == "a {b} c "


def test_a_loaded_artifact_shares_its_templates_beginning_and_laplace_runs_whole_rows(
    choices_predictor: Predictor,
) -> None:
    """The 4-bit model of a template that begins with an instruction; bfloat16 rounds by the number of tokens."""
    beginning = choices_predictor.adapted.beginning
    assert beginning is not None
    questions = [{"question": "which one " * times, "choices": ["this", "that"]} for times in (1, 4)]
    rows = [choices_predictor.encode(question, truncate=False) for question in questions]
    longest = max(len(row.token_ids) for row in rows)
    for predictive, skipped in (("map", len(beginning)), ("laplace", 0)):
        with counted(choices_predictor.adapted.model) as seen:
            choices_predictor.predict(rows, predictive)
        assert seen == [(2, longest - skipped)]
    whole = choices_predictor.encode({"prompt": "Answer: " * 20}, truncate=True)
    with counted(choices_predictor.adapted.model) as seen:
        choices_predictor.predict([rows[0], whole], "map")
    assert seen == [(2, max(len(rows[0].token_ids), len(whole.token_ids)))]
    assert choices_predictor.own_bytes > sum(t.nbytes for t in (*beginning.keys, *beginning.values))


def test_answers_and_familiarity_are_the_same(sentiment_predictor: Predictor) -> None:
    texts = ("a film about a film about a film that ends well", "a film about a film about a film")
    rows = [sentiment_predictor.encode({"text": text}, truncate=False) for text in texts]
    adapted = sentiment_predictor.adapted
    tokens = rows[1].token_ids[:WORTH_TOKENS]
    assert rows[0].token_ids[:WORTH_TOKENS] == tokens
    beginning = read_beginning(adapted.model, tokens, max_tokens=sentiment_predictor.max_tokens)
    assert beginning is not None
    batch = sentiment_predictor._batch(rows)
    expected, found = (
        batch_outputs(replace(adapted, beginning=shared), batch, covariance=False) for shared in (None, beginning)
    )
    for name in ("logits", "label_mass", "mean", "familiarity"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
