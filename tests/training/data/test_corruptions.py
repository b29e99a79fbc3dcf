"""Corrupted inputs: the same for the same seed and row, as severe as wanted, labels and meaning of the choices kept."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from laplora.prompts.examples import Example
from laplora.prompts.templates import TEMPLATES, render
from training.data.corruptions import (
    CorruptionKind,
    corrupt,
    cut_start,
    drop_words,
    random_letters,
    shuffle_words,
    typos,
)

KINDS: tuple[CorruptionKind, ...] = get_args(CorruptionKind)
WORDS = st.text("abcdefgWXYZäß'5.", min_size=1, max_size=9)
TEXTS = st.lists(WORDS, min_size=1, max_size=30).map(" ".join)
SEVERITIES = st.floats(0.01, 1)
SEEDS = st.integers(0, 9)
EXAMPLES = st.builds(
    lambda number, question, choices, label: Example(
        f"row-{number}", {"question": question, "choices": tuple(choices)}, label % len(choices), len(choices)
    ),
    st.integers(0, 99),
    TEXTS,
    st.lists(TEXTS, min_size=2, max_size=5, unique_by=str.casefold),
    st.integers(0, 4),
)
QUESTION = Example(
    "q-1",
    {
        "question": "A plant in a dark room grows towards the window because it needs light to make its own food",
        "choices": ("the sun", "a candle", "water", "soil"),
    },
    2,
    4,
)


def distance(one: str, other: str) -> int:
    """Return Levenshtein's distance."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


@pytest.mark.parametrize("kind", KINDS)
@given(example=EXAMPLES, severity=SEVERITIES, seed=SEEDS)
def test_the_question_stays(kind: CorruptionKind, example: Example, severity: float, seed: int) -> None:
    """Label, class count, id and fields; the prompt can still be rendered, so nothing is empty."""
    found = corrupt(example, kind, severity, seed)
    assert found == corrupt(example, kind, severity, seed)
    assert (found.id, found.label, found.class_count) == (example.id, example.label, example.class_count)
    assert list(found.fields) == list(example.fields)
    render(TEMPLATES["multiple_choice"], found.fields, "ABCDE")
    if kind == "choice_noise":
        assert found.fields["question"] == example.fields["question"]
        choices = found.fields["choices"]
        assert len({choice.casefold() for choice in choices}) == len(choices) == example.class_count
    else:
        assert found.fields["choices"] == example.fields["choices"]


@given(text=TEXTS, severity=SEVERITIES, seed=SEEDS)
@example(text="Wßß", severity=0.25, seed=0)
@example(text="12 + 30 = ?", severity=1.0, seed=0)
def test_typos_are_as_many_as_wanted(text: str, severity: float, seed: int) -> None:
    """A mistake is one edit, or two where letters change places."""
    letters = sum(c.isalpha() for c in text)
    wanted = min(letters, max(1, round(severity * letters)))
    found = typos(text, severity, random.Random(seed))
    assert distance(text, found) <= 2 * wanted
    if wanted == 1:
        assert found != text
    assert Counter(c for c in found if not c.isalpha()) == Counter(c for c in text if not c.isalpha())


@given(text=TEXTS, severity=SEVERITIES, seed=SEEDS)
def test_dropped_words_are_as_many_as_wanted(text: str, severity: float, seed: int) -> None:
    words = text.split()
    wanted = min(len(words) - 1, max(1, round(severity * len(words))))
    found = drop_words(text, severity, random.Random(seed)).split()
    assert len(found) == len(words) - wanted
    rest = iter(words)
    assert all(word in rest for word in found), "what is left keeps its order"
    if severity <= 0.5:  # what a lower severity drops, a higher one drops too
        more = drop_words(text, 2 * severity, random.Random(seed)).split()
        assert Counter(more) <= Counter(found)


@given(text=TEXTS, severity=SEVERITIES, seed=SEEDS)
def test_shuffled_words_are_the_same_words(text: str, severity: float, seed: int) -> None:
    words = text.split()
    found = shuffle_words(text, severity, random.Random(seed)).split()
    assert Counter(found) == Counter(words)
    wanted = min(len(words), max(2, round(severity * len(words))))
    moved = sum(a != b for a, b in zip(words, found, strict=True))
    assert moved == wanted if len(set(words)) == len(words) > 1 else moved <= wanted


@given(text=TEXTS, severity=SEVERITIES)
def test_less_context_is_the_end_of_the_text(text: str, severity: float) -> None:
    words = text.split()
    found = cut_start(text, severity, random.Random(0))
    assert text.endswith(found)
    assert len(found.split()) == max(1, len(words) - max(1, round(severity * len(words))))


@given(text=TEXTS, severity=SEVERITIES, seed=SEEDS)
def test_gibberish_has_as_many_letters_in_as_many_words(text: str, severity: float, seed: int) -> None:
    found = random_letters(text, severity, random.Random(seed))
    before, after = text.split(" "), found.split(" ")
    assert [len(word) for word in after] == [len(word) for word in before]
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= max(1, round(severity * len(before)))
    whole = random_letters(text, 1.0, random.Random(seed))
    assert all(word.islower() and word.isascii() and word.isalpha() for word in whole.split(" "))


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_row_decide(kind: CorruptionKind) -> None:
    found = corrupt(QUESTION, kind, 0.3, 0)
    assert found.fields != QUESTION.fields
    if kind != "truncated_context":  # which always takes the first words
        assert corrupt(QUESTION, kind, 0.3, 1).fields != found.fields
        assert corrupt(replace(QUESTION, id="q-2"), kind, 0.3, 0).fields != found.fields


def test_what_was_measured_with_can_be_made_again() -> None:
    """Golden: another Python, or a change here, must not quietly change the published figures' inputs."""
    assert corrupt(QUESTION, "typos", 0.05, 0).fields["question"] == (
        "A plant in a dark rooom ggrows towards the window because it needs light to maake its own fod"
    )
    assert corrupt(QUESTION, "word_drop", 0.2, 0).fields["question"] == (
        "A plant in dark room grows towards the because it needs light make its own"
    )


def test_the_longest_text_is_the_context() -> None:
    example = Example("b-1", {"question": "Is it green?", "passage": "Grass is green where it rains enough."}, 0, 2)
    found = corrupt(example, "truncated_context", 0.3, 0)
    assert found.fields == {"question": "Is it green?", "passage": "green where it rains enough."}
