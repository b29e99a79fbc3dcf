"""Corrupted inputs: the same for the same seed and row, as severe as wanted, labels and meaning of the choices kept."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
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
def test_as_much_is_touched_as_is_wanted(text: str, severity: float, seed: int) -> None:
    """Letters by typos, words by all others, at least one."""
    words = text.split()
    count = max(1, round(severity * len(words)))

    def made(corruption: Callable[[str, float, random.Random], str]) -> str:
        return corruption(text, severity, random.Random(seed))

    letters = sum(c.isalpha() for c in text)
    assert abs(len(made(typos)) - len(text)) <= min(letters, max(1, round(severity * letters)))
    assert Counter(c for c in made(typos) if not c.isalpha()) == Counter(c for c in text if not c.isalpha())
    left = made(drop_words).split()
    rest = iter(words)
    assert len(left) == max(1, len(words) - count)
    assert all(word in rest for word in left), "what is left keeps its order"
    more = drop_words(text, min(1.0, 2 * severity), random.Random(seed)).split()
    assert Counter(more) <= Counter(left), "a higher severity drops what a lower one does"
    shuffled = made(shuffle_words).split()
    assert Counter(shuffled) == Counter(words)
    assert sum(a != b for a, b in zip(words, shuffled, strict=True)) <= max(2, count)
    assert text.endswith(made(cut_start))
    assert len(made(cut_start).split()) == len(left)
    lettered = made(random_letters).split(" ")
    assert [len(word) for word in lettered] == [len(word) for word in text.split(" ")]
    assert sum(a != b for a, b in zip(text.split(" "), lettered, strict=True)) <= count


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_row_decide(kind: CorruptionKind) -> None:
    found = corrupt(QUESTION, kind, 0.3, 0)
    assert found.fields != QUESTION.fields
    if kind != "truncated_context":  # which always takes the first words
        assert corrupt(QUESTION, kind, 0.3, 1).fields != found.fields
        assert corrupt(replace(QUESTION, id="q-2"), kind, 0.3, 0).fields != found.fields


def test_what_was_measured_with_can_be_made_again() -> None:
    """Golden: another Python, or a change here, must not quietly change the published figures' inputs.

    The longest text is the context that is truncated.
    """
    assert corrupt(QUESTION, "typos", 0.05, 0).fields["question"] == (
        "A plant in a dark rooom ggrows towards the window because it needs light to maake its own fod"
    )
    assert corrupt(QUESTION, "word_drop", 0.2, 0).fields["question"] == (
        "A plant in dark room grows towards the because it needs light make its own"
    )
    passage = replace(QUESTION, fields={"question": "Is it green?", "passage": "Grass is green where it rains enough."})
    cut = {"question": "Is it green?", "passage": "green where it rains enough."}
    assert corrupt(passage, "truncated_context", 0.3, 0).fields == cut
