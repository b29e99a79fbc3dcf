"""Inputs like the training rows, made from them: for what needs inputs and no labels.

Words dropped or shuffled, only the first or the last words, the beginning of one row with the end of another, and
choices in another order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from training.data.corruptions import corrupt
from training.data.examples import Example

_KINDS = ("word_drop", "word_shuffle", "truncated_context", "last_words", "splice", "splice")


def variants(examples: Sequence[Example], count: int, seed: int) -> list[tuple[Example, int]]:
    """Return so many variants, each with the number of the example that it begins as; the labels mean nothing.

    Args:
        seed: with the examples, all that the result depends on.
    """
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
        return _with_choices_shuffled(changed, draw)
    fields = dict(example.fields)
    for name, text in example.fields.items():
        if name == "choices":
            continue
        words = text.split()
        kept = draw.randrange(1, len(words) + 1) if words else 0
        if kind == "last_words":
            fields[name] = " ".join(words[-kept:]) or text
        else:
            further = str(other.fields.get(name, "")).split()
            fields[name] = " ".join(words[:kept] + further[draw.randrange(len(further) + 1) :]) or text
    return _with_choices_shuffled(replace(example, fields=fields), draw)


def _with_choices_shuffled(example: Example, draw: random.Random) -> Example:
    if "choices" not in example.fields:
        return example
    choices = list(example.fields["choices"])
    draw.shuffle(choices)
    return replace(example, fields={**example.fields, "choices": tuple(choices)})
