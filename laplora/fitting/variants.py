"""Inputs like the training rows, made from them, for what needs inputs and no labels.

Words dropped or shuffled, only the first or the last words, the beginning of one row with the end of another, and
choices in another order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from laplora.fitting.corruptions import corrupt
from laplora.prompts.examples import Example

_KINDS = ("word_drop", "word_shuffle", "truncated_context", "last_words", "splice", "splice")


def variants(examples: Sequence[Example], count: int, seed: int) -> list[tuple[Example, int]]:
    """Return so many variants, each with the number of the example that it begins as; the labels mean nothing."""
    draw = random.Random(f"{seed}/variants")
    made = []
    for number in range(count):
        origin = draw.randrange(len(examples))
        example = _variant(examples[origin], draw.choice(examples), draw.choice(_KINDS), draw)
        made.append((replace(example, id=f"{example.id}/variant-{number}"), origin))
    return made


def _variant(example: Example, other: Example, kind: str, draw: random.Random) -> Example:
    if kind in ("word_drop", "word_shuffle", "truncated_context"):
        severity = 1.0 if kind == "word_shuffle" else draw.choice((0.15, 0.3, 0.5))
        changed = corrupt(example, kind, severity, draw.randrange(1 << 30))  # type: ignore[arg-type]
        fields = dict(changed.fields)
    else:
        fields = {n: _cut(n, text, other, kind, draw) for n, text in example.fields.items() if n != "choices"}
    if "choices" in example.fields:
        choices = list(example.fields["choices"])
        draw.shuffle(choices)
        fields["choices"] = tuple(choices)
    return replace(example, fields=fields)


def _cut(name: str, text: str, other: Example, kind: str, draw: random.Random) -> str:
    """Return the last words of a text, or its first ones with the last ones of the other example's."""
    words = text.split()
    kept = draw.randrange(1, len(words) + 1) if words else 0
    if kind == "last_words":
        return " ".join(words[-kept:]) or text
    further = str(other.fields.get(name, "")).split()
    return " ".join(words[:kept] + further[draw.randrange(len(further) + 1) :]) or text
