"""Corrupted inputs: the same for the same seed and row, labels and choices kept."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.familiarity.corruptions import CorruptionKind, corrupt
from laplora.prompts.examples import Example
from laplora.prompts.templates import TEMPLATES, render

KINDS: tuple[CorruptionKind, ...] = get_args(CorruptionKind)
WORDS = st.text("abcdefgWXYZäß'5.", min_size=1, max_size=9)
TEXTS = st.lists(WORDS, min_size=1, max_size=30).map(" ".join)
EXAMPLES = st.builds(
    lambda number, question, choices, label: Example(
        f"row-{number}", {"question": question, "choices": tuple(choices)}, label % len(choices), len(choices)
    ),
    st.integers(0, 99),
    TEXTS,
    st.lists(TEXTS, min_size=2, max_size=5, unique_by=str.casefold),
    st.integers(0, 4),
)
TEXT, CHOICES = "Why does a plant in a dark room grow towards its window?", ("the sun", "a candle", "soil")
QUESTION = Example("q-1", {"question": TEXT, "choices": CHOICES}, 2, 3)


@pytest.mark.parametrize("kind", KINDS)
@given(example=EXAMPLES, severity=st.floats(0.01, 1), seed=st.integers(0, 9))
def test_the_question_stays(kind: CorruptionKind, example: Example, severity: float, seed: int) -> None:
    """Label, class count, id and fields; the prompt can still be rendered, so nothing is empty."""
    found = corrupt(example, kind, severity, seed)
    assert found == corrupt(example, kind, severity, seed)
    assert (found.id, found.label, found.class_count) == (example.id, example.label, example.class_count)
    assert list(found.fields) == list(example.fields)
    render(TEMPLATES["multiple_choice"], found.fields, "ABCDE")
    assert found.fields["choices"] == example.fields["choices"]


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_row_decide(kind: CorruptionKind) -> None:
    found = corrupt(QUESTION, kind, 0.3, 0)
    assert found.fields != QUESTION.fields
    assert corrupt(QUESTION, kind, 0.3, 1).fields != found.fields
    assert corrupt(replace(QUESTION, id="q-2"), kind, 0.3, 0).fields != found.fields


@pytest.mark.parametrize(
    ("kind", "question"),
    [
        ("typos", "Wuy does x lpant in a darj room grwo toeards tss nwiow?"),
        ("word_shuffle", "Why does a in dark a plant room grow towards its window?"),
        ("gibberish", "Why pxke a plant in a lzbd room lukn towards its window?"),
    ],
)
def test_what_was_measured_with_can_be_made_again(kind: CorruptionKind, question: str) -> None:
    """Golden: another Python, or a change here, must not quietly change the published figures' inputs."""
    assert corrupt(QUESTION, kind, 0.25, 0).fields["question"] == question
