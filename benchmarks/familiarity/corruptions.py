"""Corrupted inputs: the same texts with typing mistakes, words in other places or random letters, labels unchanged.

The seed, the row's id and the kind decide which places change, so a higher severity includes the changes of a lower
one. Typing mistakes are those of Belinkov and Bisk (arXiv 1711.02173): a neighbouring key, two letters that changed
places, one missing, one twice.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from string import ascii_lowercase
from typing import Any, Literal

from laplora.prompts.examples import Example

CorruptionKind = Literal["typos", "word_shuffle", "gibberish"]

#: The keys beside each letter on a QWERTY keyboard.
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {
    letter: "".join(
        other
        for r, row in enumerate(_ROWS)
        for c, other in enumerate(row)
        if abs(r - own_row) <= 1 and abs(c - own_column) <= 1 and other != letter
    )
    for own_row, keys in enumerate(_ROWS)
    for own_column, letter in enumerate(keys)
}


def corrupt(example: Example, kind: CorruptionKind, severity: float, seed: int) -> Example:
    """Return an example with corrupted texts, choices left alone, and the same label.

    No text becomes empty, and one without a letter, or of one word, may stay as it is.

    Args:
        severity: share of the letters or words that are touched, at least one of them; above 0 and at most 1.
    """
    fields: dict[str, Any] = dict(example.fields)
    for name in fields:
        if name != "choices":
            draw = random.Random(f"{seed}/{kind}/{name}/{example.id}")
            fields[name] = _TEXT[kind](fields[name], severity, draw)
    return replace(example, fields=fields)


def typos(text: str, severity: float, draw: random.Random) -> str:
    """Return the text with a typing mistake at that share of its letters."""
    characters = list(text)
    letters = [i for i, c in enumerate(characters) if c.isalpha()]
    order = draw.sample(letters, len(letters))
    mistakes = {position: random.Random(draw.random()) for position in order}
    # From the right, so that what an edit adds or takes away moves no position that is still to come.
    for position in sorted(order[: _count(len(letters), severity)], reverse=True):
        here, following = characters[position], "".join(characters[position + 1 : position + 2])
        edits = [[here, here]]
        if keys := _NEIGHBOURS.get(here.lower()):
            key = mistakes[position].choice(keys)
            edits.append([key.upper() if here.isupper() else key])
        swapped = [following, here]
        if following.isalpha() and following != here:
            edits += [swapped, []]
        chosen = mistakes[position].choice(edits)
        # By identity: of a letter before its like, doubling gives the same letters and takes the place of one.
        characters[position : position + (2 if chosen is swapped else 1)] = chosen
    return "".join(characters)


def shuffle_words(text: str, severity: float, draw: random.Random) -> str:
    """Return the text with that share of its words, at least two, in each other's places."""
    start, words, order = _drawn(text, draw)
    places = order[: _count(len(words), severity, least=2)]
    moved = {place: words[source][0] for place, source in zip(places, places[1:] + places[:1], strict=True)}
    return start + "".join(moved.get(i, word) + space for i, (word, space) in enumerate(words))


def random_letters(text: str, severity: float, draw: random.Random) -> str:
    """Return the text with that share of its words in random small letters, as many as each had."""
    start, words, order = _drawn(text, draw)
    letters = {place: random.Random(draw.random()) for place in order}
    for place in order[: _count(len(words), severity)]:
        word, space = words[place]
        words[place] = ("".join(letters[place].choices(ascii_lowercase, k=len(word))), space)
    return start + "".join(word + space for word, space in words)


_TEXT: dict[str, Callable[[str, float, random.Random], str]] = {
    "typos": typos,
    "word_shuffle": shuffle_words,
    "gibberish": random_letters,
}


def _drawn(text: str, draw: random.Random) -> tuple[str, list[tuple[str, str]], list[int]]:
    """Return the white space in front, each word with the white space behind it, and the words' places in a draw."""
    start = text[: len(text) - len(text.lstrip())]
    words = re.findall(r"(\S+)(\s*)", text)
    return start, words, draw.sample(range(len(words)), len(words))


def _count(available: int, severity: float, least: int = 1) -> int:
    """Return how many of the available places are touched."""
    return min(available, max(least, round(severity * available)))
