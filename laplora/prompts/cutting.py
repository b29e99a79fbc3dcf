"""Inputs as rows: a prompt that is too long loses tokens of one field, or of its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from laplora.errors import TooManyTokensError
from laplora.prompts.rows import EncodedRow, Side, encode
from laplora.prompts.templates import PromptTemplate, render
from laplora.prompts.token_bounds import UNBOUNDED, TokenBounds


def encode_inputs(
    tokenizer: Any,
    template: PromptTemplate,
    inputs: Mapping[str, Any],
    labels: Sequence[str],
    *,
    max_tokens: int,
    truncate: bool,
    bounds: TokenBounds = UNBOUNDED,
    side: Side = "left",
) -> EncodedRow:
    """Return one input as a row; of one that is too long as much as fits.

    With ``template.cut`` the text of its field is cut at its side until the prompt fits. Without it, for an input that
    is a whole prompt, and where the other fields alone are too long, the prompt is cut as by ``encode``.

    Args:
        max_tokens, truncate, bounds, side: as of ``encode``.

    Raises:
        InvalidInputError: fields that the template does not take, or text that cannot be used.
        TooManyTokensError: too long, with ``truncate`` off.
    """
    return encode_fitting(
        tokenizer, template, inputs, labels, max_tokens=max_tokens, truncate=truncate, bounds=bounds, side=side
    )[0]


def encode_fitting(
    tokenizer: Any,
    template: PromptTemplate,
    inputs: Mapping[str, Any],
    labels: Sequence[str],
    *,
    max_tokens: int,
    truncate: bool,
    bounds: TokenBounds,
    side: Side,
) -> tuple[EncodedRow, Mapping[str, Any]]:
    """Return the row of ``encode_inputs``, and the inputs with their one text as it was cut."""
    prompt, classes = render(template, inputs, labels)
    cut = template.cut
    field = cut.of(inputs) if cut else None
    encoded = partial(encode, max_tokens=max_tokens, bounds=bounds, side=side)
    if truncate and cut is not None and field is not None:
        try:
            return encoded(tokenizer, prompt, classes, truncate=False), inputs
        except TooManyTokensError:
            kept = fitting_text(tokenizer, template, field, cut.side, inputs, labels, max_tokens, bounds)
        if kept:
            inputs = {**inputs, field: kept}
            prompt, _ = render(template, inputs, labels)
            return EncodedRow(tuple(tokenizer.encode(prompt)), classes, truncated=True), inputs
    return encoded(tokenizer, prompt, classes, truncate=truncate), inputs


def fitting_text(
    tokenizer: Any,
    template: PromptTemplate,
    field: str,
    cut_side: Side,
    inputs: Mapping[str, Any],
    labels: Sequence[str],
    max_tokens: int,
    bounds: TokenBounds = UNBOUNDED,
) -> str:
    """Return as much of a field's text as a prompt of ``max_tokens`` has room for; empty where it has none."""
    text = str(inputs[field]).strip()
    # No more of it than could fit is tokenised, however long it is.
    kept = bounds.start(text, max_tokens) if cut_side == "right" else bounds.tail(text, max_tokens)
    while kept.strip():
        prompt, _ = render(template, {**inputs, field: kept}, labels)
        excess = len(tokenizer.encode(prompt)) - max_tokens
        if excess <= 0:
            return kept
        kept = _shortened(tokenizer, kept, excess, cut_side)
    return ""


def _shortened(tokenizer: Any, text: str, tokens: int, side: Side) -> str:
    """Return a text without so many tokens at a side; always shorter."""
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    left = len(places) - tokens
    if left <= 0:
        return ""
    kept = text[: places[left - 1][1]] if side == "right" else text[places[tokens][0] :]
    if len(kept) < len(text):
        return kept
    return text[:-1] if side == "right" else text[1:]
