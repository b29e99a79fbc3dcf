"""Which tokens of a prompt are of its fields' own texts, and which are of the template's words after them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from laplora.prompts.cutting import encode_fitting
from laplora.prompts.rows import EncodedRow, Side
from laplora.prompts.templates import Piece, PromptTemplate, render_pieces
from laplora.prompts.token_bounds import TokenBounds

#: The role of a token: of the template's words between the fields or special; of a field's text; after the last field.
OTHER, FIELD, AFTER = range(3)


def encode_with_roles(
    tokenizer: Any,
    template: PromptTemplate,
    inputs: Mapping[str, Any],
    labels: Sequence[str],
    *,
    max_tokens: int,
    truncate: bool,
    bounds: TokenBounds,
    side: Side,
) -> EncodedRow:
    """Return the row of ``encode_inputs``, with the role of each of its tokens.

    A token with a character of a field's text is of that text.

    Args:
        tokenizer: a fast one, whose offsets say which characters a token stands for; the others are of
            ``encode_inputs``, and so are the errors.
    """
    row, kept = encode_fitting(
        tokenizer, template, inputs, labels, max_tokens=max_tokens, truncate=truncate, bounds=bounds, side=side
    )
    pieces, _ = render_pieces(template, kept, labels)
    return replace(row, roles=_roles(tokenizer, pieces, row, bounds, side))


def ending_tokens(tokenizer: Any, template: PromptTemplate) -> int:
    """Return how many last tokens of a prompt are of the template's words after its last field alone, at least 1.

    A token that may hold a text's end too is not counted.
    """
    ending = template.ending if template.ends_alike else ""
    counts: list[int] = []
    for text in ("a", "1", ".", "\n"):
        offsets = tokenizer(text + ending, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
        counts.append(sum(start >= len(text) for start, _ in offsets))
    return max(1, min(counts))


def _roles(
    tokenizer: Any, pieces: Sequence[Piece], row: EncodedRow, bounds: TokenBounds, side: Side
) -> tuple[int, ...]:
    text, of_characters = "".join(text for text, _ in pieces), bytearray()
    last = max(place for place, (_, is_field) in enumerate(pieces) if is_field)
    for place, (piece, is_field) in enumerate(pieces):
        of_characters += bytes([FIELD if is_field else AFTER if place > last else OTHER]) * len(piece)
    count = len(row.token_ids)
    if row.truncated:  # no more of a long text is tokenised than the row's tokens come from
        shown = bounds.tail(text, count) if side == "left" else bounds.start(text, count)
        of_characters = of_characters[-len(shown) :] if side == "left" else of_characters[: len(shown)]
        text = shown
    encoding = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    roles = [
        OTHER if special else _of_span(of_characters[start:end])
        for (start, end), special in zip(encoding["offset_mapping"], encoding["special_tokens_mask"], strict=True)
    ]
    ids = list(encoding["input_ids"])
    if tuple(ids) == row.token_ids:
        return tuple(roles)
    # Tokens were cut at a side; a special one that is kept there is no neighbour of the others in the text.
    back = -1 if side == "left" else 1
    alike = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids[::back], row.token_ids[::back], strict=False))
    )
    cut = [OTHER] * (count - alike)
    return tuple(cut + roles[len(roles) - alike :] if side == "left" else roles[:alike] + cut)


def _of_span(characters: bytearray) -> int:
    return FIELD if FIELD in characters else characters[0] if characters else OTHER
