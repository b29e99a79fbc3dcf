"""Corrupted inputs: the same for the same seed and row, as severe as wanted, labels and meaning of the choices kept."""

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
    if kind == "choice_noise":
        assert found.fields["question"] == example.fields["question"]
        choices = found.fields["choices"]
        assert len({choice.casefold() for choice in choices}) == len(choices) == example.class_count
    else:
        assert found.fields["choices"] == example.fields["choices"]


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_row_decide(kind: CorruptionKind) -> None:
    found = corrupt(QUESTION, kind, 0.3, 0)
    assert found.fields != QUESTION.fields
    if kind != "truncated_context":  # which always takes the first words
        assert corrupt(QUESTION, kind, 0.3, 1).fields != found.fields
        assert corrupt(replace(QUESTION, id="q-2"), kind, 0.3, 0).fields != found.fields


@pytest.mark.parametrize(
    ("kind", "question"),
    [
        ("typos", "Wuy does x lpant in a darj room grwo toeards tss nwiow?"),
        ("word_drop", "Why does a plant in a dark room grow"),
        ("word_shuffle", "Why does a in dark a plant room grow towards its window?"),
        ("truncated_context", "plant in a dark room grow towards its window?"),
        ("gibberish", "Why pxke a plant in a lzbd room lukn towards its window?"),
    ],
)
def test_what_was_measured_with_can_be_made_again(kind: CorruptionKind, question: str) -> None:
    """Golden: another Python, or a change here, must not quietly change the published figures' inputs."""
    assert corrupt(QUESTION, kind, 0.25, 0).fields["question"] == question


def test_a_higher_severity_drops_also_what_a_lower_one_does() -> None:
    less, some, more = (corrupt(QUESTION, "word_drop", s, 0).fields["question"].split() for s in (0.1, 0.25, 0.5))
    assert set(more) < set(some) < set(less)


def test_the_longest_text_is_the_context_and_typos_in_choices_leave_them_apart() -> None:
    passage = replace(QUESTION, fields={"question": "Is it green?", "passage": "Grass is green where it rains enough."})
    cut = {"question": "Is it green?", "passage": "green where it rains enough."}
    assert corrupt(passage, "truncated_context", 0.3, 0).fields == cut
    assert corrupt(QUESTION, "choice_noise", 0.25, 0).fields["choices"] == ("teh sunn", "a candkee", "ssoil")
